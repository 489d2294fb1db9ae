"""Tree search on SGLang with a GPU, in one run: sharing on and off, our client and a text client, the engine's peak.

    python -m benchmarks.sglang_gpu --model FOLDER [--trees 16] [--json]
    python -m benchmarks.sglang_gpu --model FOLDER --dry-run

It starts servers of its own from the Python that runs it, which needs `sglang` and this package. Measured are tokens a
second and wall time of the tree of `benchmarks.workload`, for one tree and for many side by side, with the radix cache
and without it; the same tree by a client that sends each branch whole, as text; the share of prompts that came from the
cache at each level; and, as the machine's own measure, one batch of requests with as many tokens and nothing in common.
`--dry-run` checks everything up to the device: the package, the model's folder and the commands.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.served import Counter, free_port, run_text
from benchmarks.workload import (
    BRANCH_TOKENS,
    KEEP,
    LABELS,
    LEVELS,
    PROMPT_TOKENS,
    QUESTION,
    SAMPLED_TOKENS,
    WIDTH,
    prompt,
)
from tts_agent.engines import Sampling
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.prefix import Prefix
from tts_agent.usage import ZERO, Usage, total_usage

START_SECONDS = 900.0

FLAGS = ("--enable-metrics", "--enable-custom-logit-processor")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `cached` is the share of prompt tokens from the cache, by level of the tree."""

    arm: str
    trees: int
    seconds: float
    sampled: int
    computed: int
    cached: tuple[float, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        return self.sampled / self.seconds


def command(model: str, port: int, flags: Sequence[str]) -> list[str]:
    """How a server is launched."""
    launch = [sys.executable, "-m", "sglang.launch_server", "--host", "127.0.0.1"]
    return [*launch, "--port", str(port), "--model-path", model, *FLAGS, *flags]


@contextlib.contextmanager
def serving(model: str, flags: Sequence[str]) -> Iterator[str]:
    """The address of a server of its own."""
    port, log = free_port(), Path(tempfile.mkstemp(prefix="sglang-", suffix=".log")[1])
    with log.open("wb") as out:
        process = subprocess.Popen(command(model, port, flags), stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        address = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health", timeout=10).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise SystemExit(f"the server did not start; the end of {log}:\n{tail}")
            time.sleep(1.0)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def grow_tree(engine: SGLangEngine, seed: int, prompts: list[Usage]) -> None:
    """One tree of the workload; adds the usage of each level to `prompts`."""
    rng = random.Random(seed)
    parents = [Prefix(tuple(prompt(seed)))]
    for level in range(LEVELS):
        seeds = [[rng.getrandbits(63) for _ in range(WIDTH)] for _ in parents]
        grown = await asyncio.gather(*(_grow(engine, p, s) for p, s in zip(parents, seeds, strict=True)))
        prompts[level] += total_usage(usage for _, usage in grown)
        branches = sorted((one for siblings, _ in grown for one in siblings), key=lambda one: one[0], reverse=True)
        parents = [prefix for _, prefix in branches[:KEEP]]


async def _grow(engine: SGLangEngine, parent: Prefix, seeds: Sequence[int]) -> tuple[list[tuple[float, Prefix]], Usage]:
    stream = engine.sample(parent, Sampling(max_tokens=BRANCH_TOKENS), seeds=seeds)
    children = [completion async for completion in stream]
    prefixes = [parent.extend(child.ids) for child in children]
    scores = await engine.label_logprobs(prefixes, QUESTION, LABELS)
    judged = [(score.logprobs[0] - score.logprobs[1], one) for score, one in zip(scores, prefixes, strict=True)]
    return judged, total_usage(child.usage for child in children)


async def measure_trees(address: str, arm: str, trees: int) -> Row:
    """So many trees side by side, through our client."""
    engine, counter = SGLangEngine(address, seeds=False), Counter(address)
    try:
        await grow_tree(engine, 10_000, [ZERO] * LEVELS)  # kernels are compiled and graphs captured
        await engine.flush()
        prompts, before, begun = [ZERO] * LEVELS, counter.read(), time.perf_counter()
        await asyncio.gather(*(grow_tree(engine, seed, prompts) for seed in range(trees)))
        seconds = time.perf_counter() - begun
        computed = sum(counter.read()) - sum(before)
        shares = tuple(round(usage.prompt_cached / usage.prompt, 4) for usage in prompts)
        return Row(arm, trees, seconds, trees * SAMPLED_TOKENS, computed, shares)
    finally:
        counter.close()
        await engine.aclose()


async def measure_text(address: str) -> Row:
    """One tree by a client that sends each branch whole."""
    engine, counter = SGLangEngine(address, seeds=False), Counter(address)
    root, question = engine.decode(prompt(1)), engine.decode(QUESTION)
    try:
        run = await run_text(address, counter, root=root, question=question, read=engine.encode)
        return Row("text client", 1, run.seconds, run.sampled, run.computed)
    finally:
        counter.close()
        await engine.aclose()


async def measure_peak(address: str, trees: int) -> Row:
    """As many samples of as many tokens in one batch, each below a prompt of its own: what the machine can do."""
    samples = trees * SAMPLED_TOKENS // BRANCH_TOKENS
    rng, counter = random.Random(5), Counter(address)
    body = {
        "input_ids": [[rng.randrange(512) for _ in range(PROMPT_TOKENS)] for _ in range(samples)],
        "sampling_params": {"max_new_tokens": BRANCH_TOKENS, "ignore_eos": True},
    }
    try:
        async with httpx.AsyncClient(timeout=3600) as client:
            await client.post(f"{address}/flush_cache")
            before, begun = counter.read(), time.perf_counter()
            (await client.post(f"{address}/generate", json=body)).raise_for_status()
            seconds = time.perf_counter() - begun
        computed = sum(counter.read()) - sum(before)
        return Row("one batch, nothing shared", trees, seconds, samples * BRANCH_TOKENS, computed)
    finally:
        counter.close()


async def measure(address: str, *, shared: bool, trees: int) -> list[Row]:
    arm = "sharing" if shared else "no radix cache"
    rows = [await measure_trees(address, arm, 1), await measure_trees(address, arm, trees)]
    if shared:
        rows += [await measure_text(address), await measure_peak(address, trees)]
    return rows


def check(model: str) -> list[str]:
    """What is missing for a run on this machine; the device itself is not touched."""
    problems = []
    if importlib.util.find_spec("sglang") is None:
        problems.append("sglang is not installed in this Python; pip install 'sglang[all]'")
    for name in ("config.json", "tokenizer.json"):
        if not (Path(model) / name).is_file():
            problems.append(f"{model!r} has no {name}; pass a Hugging Face model folder")
    if not any(Path(model).glob("*.safetensors")):
        problems.append(f"{model!r} has no weights")
    return problems


def dry_run(model: str) -> int:
    """Say what a run would do; 1 if it could not."""
    for flags in ((), ("--disable-radix-cache",)):
        print(shlex.join(command(model, 30000, flags)))
    device = shutil.which("nvidia-smi")
    print(f"GPU: {'nvidia-smi is at ' + device if device else 'no nvidia-smi here'}")
    problems = check(model)
    for problem in problems:
        print(f"missing: {problem}")
    return int(bool(problems))


def report(rows: Sequence[Row]) -> Table:
    table = Table(title="8 + 32 + 32 branches x 24 tokens below a prompt of 256, a question each")
    for name in ("", "trees", "seconds", "tokens/s", "computed", "cached by level"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        shares = " ".join(f"{share:.1%}" for share in row.cached)
        numbers = (f"{row.trees}", f"{row.seconds:.2f}", f"{row.tokens_per_second:,.0f}", f"{row.computed:,}", shares)
        table.add_row(row.arm, *numbers)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sglang_gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a Hugging Face model folder with a tokenizer")
    parser.add_argument("--trees", type=int, default=16, help="trees side by side (16)")
    parser.add_argument("--flags", default="", help="more launch flags of the servers, as one text")
    parser.add_argument("--dry-run", action="store_true", help="check everything up to the device")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if options.dry_run:
        return dry_run(options.model)
    if problems := check(options.model):
        raise SystemExit("\n".join(problems))
    rows: list[Row] = []
    for shared in (True, False):
        flags = [*shlex.split(options.flags), *([] if shared else ["--disable-radix-cache"])]
        with serving(options.model, flags) as address:
            rows += asyncio.run(measure(address, shared=shared, trees=options.trees))
    Console().print(report(rows))
    if options.json:
        print(json.dumps([asdict(row) | {"tokens_per_second": round(row.tokens_per_second, 1)} for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
