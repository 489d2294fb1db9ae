"""The workload of `benchmarks.sharing` on a real SGLang server, through our client and as plain text.

The server is the one at `--address`, or one on the CPU that is started for this (`make test-sglang` installs it). What
was computed is the server's own count (`realtime_tokens_total` of its `/metrics`).
"""

import asyncio
import json
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.sharing import Run, grow
from benchmarks.workload import BRANCH_TOKENS, KEEP, LABELS, LEVELS, PROMPT_TOKENS, QUESTION, WIDTH, make_model, prompt
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.prefix import Prefix

AT_ONCE = 64
"""Requests that the text client has in flight."""


class Counter:
    """The server's count of the tokens that it ran through its model."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = httpx.Client(timeout=60)

    def read(self) -> tuple[int, int]:
        """Tokens of prompts and tokens of decoding steps."""
        time.sleep(1.0)  # the scheduler counts after it has answered
        text = self._client.get(f"{self._address}/metrics").text
        return self._sum(text, "prefill_compute"), self._sum(text, "decode")

    @staticmethod
    def _sum(text: str, mode: str) -> int:
        rows = [row for row in text.splitlines() if row.startswith("sglang:realtime_tokens_total{")]
        return int(sum(float(row.rsplit(" ", 1)[1]) for row in rows if f'mode="{mode}"' in row))

    def close(self) -> None:
        self._client.close()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_served(folder: Path) -> None:
    """The workload's model with a tokenizer of one word for each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    make_model(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(512)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@contextmanager
def serving(address: str | None) -> Iterator[str]:
    """The address of the server, started for this unless one is given."""
    if address is not None:
        yield address.rstrip("/")
        return
    from tests.sglang.install import FOLDER, python
    from tests.sglang.server import Server

    with tempfile.TemporaryDirectory() as folder:
        make_served(Path(folder) / "model")
        server = Server(
            python(FOLDER), Path(folder) / "model", log=Path(folder) / "log", flags=["--context-length", "1024"]
        )
        try:
            yield server.start().wait().address
        finally:
            server.kill()


async def run_tree(engine: SGLangEngine, counter: Counter) -> tuple[Run, int]:
    """The workload through our client; also what its completions report as computed."""
    rng, run = random.Random(1), Run()
    await engine.flush()
    before, start = counter.read(), time.perf_counter()
    parents = [Prefix(tuple(prompt(1)))]
    for _ in range(LEVELS):
        seeds = [[rng.getrandbits(63) for _ in range(WIDTH)] for _ in parents]
        grown = await asyncio.gather(*(grow(engine, p, s) for p, s in zip(parents, seeds, strict=True)))
        branches = [branch for siblings in grown for branch in siblings]
        branches.sort(key=lambda branch: branch[0], reverse=True)
        run.note(prefix.ids for _, prefix in branches)
        parents = [prefix for _, prefix in branches[:KEEP]]
    run.seconds = time.perf_counter() - start
    prefill, decoded = (now - then for now, then in zip(counter.read(), before, strict=True))
    run.computed = prefill + decoded
    return run, prefill


async def run_text(
    address: str, counter: Counter, *, root: str, question: str, read: Callable[[str], tuple[int, ...]]
) -> Run:
    """The workload by a client that sends each branch whole, as text, a request for each sample and each question.

    `read` makes ids of a text, for the account.
    """
    run, gate = Run(), asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        await client.post("/flush_cache")
        before, start = counter.read(), time.perf_counter()

        async def ask(body: dict[str, Any]) -> dict[str, Any]:
            async with gate:
                answer: dict[str, Any] = (await client.post("/generate", json=body)).json()
            return answer

        async def branch(parent: str) -> tuple[float, str]:
            params = {"max_new_tokens": BRANCH_TOKENS, "ignore_eos": True}
            child = parent + " " + (await ask({"text": parent, "sampling_params": params}))["text"].strip()
            asked = {"text": f"{child} {question}", "sampling_params": {"max_new_tokens": 0}}
            judged = await ask({**asked, "return_logprob": True, "token_ids_logprob": list(LABELS)})
            good, bad = (entry[0] for entry in judged["meta_info"]["output_token_ids_logprobs"][0])
            return good - bad, child

        parents = [root]
        for _ in range(LEVELS):
            branches = list(await asyncio.gather(*(branch(parent) for parent in parents for _ in range(WIDTH))))
            branches.sort(reverse=True)
            run.note(read(child) for _, child in branches)
            parents = [child for _, child in branches[:KEEP]]
        run.seconds = time.perf_counter() - start
        run.computed = sum(counter.read()) - sum(before)
    return run


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in ids)


async def measure(address: str) -> tuple[Run, int, Run]:
    """The workload through our client, with its tokens of prompts, and as text."""
    counter = Counter(address)
    engine = SGLangEngine(address, seeds=False)
    try:
        ours, prefill = await run_tree(engine, counter)
        root, question = words(prompt(1)), words(QUESTION)
        return ours, prefill, await run_text(address, counter, root=root, question=question, read=engine.encode)
    finally:
        await engine.aclose()
        counter.close()


def explained(ours: Run) -> dict[str, int]:
    """What the server computes by its nature, to the token: last prompt tokens again, last sampled tokens for questions
    instead of for children.
    """
    branches = ours.sampled // BRANCH_TOKENS
    return {
        "prompt, once": PROMPT_TOKENS,
        "sampled, decoded": ours.sampled - branches,
        "last prompt token of each sample, again": branches,
        "questions": ours.asked,
        "last token of each branch, for its question": branches,
    }


def main(address: str | None, *, as_json: bool) -> None:
    with serving(address) as found:
        ours, prefill, text = asyncio.run(measure(found))
    parts = explained(ours)
    table = Table(
        title="8 + 32 + 32 branches x 24 tokens below a prompt of 256, a question each, on a real SGLang server"
    )
    table.add_column("")
    table.add_column("our client", justify="right")
    table.add_column("text client", justify="right")
    for label, rows in {
        "tokens computed (server's count)": [f"{run.computed:,}" for run in (ours, text)],
        "ratio": [f"{run.ratio:.3f}" for run in (ours, text)],
        "ratio to distinct tokens": [f"{run.distinct_ratio:.3f}" for run in (ours, text)],
        "seconds": [f"{run.seconds:.2f}" for run in (ours, text)],
    }.items():
        table.add_row(label, *rows)
    for label, tokens in parts.items():
        table.add_row(f"  {label}", f"{tokens:,}")
    Console().print(table)
    if as_json:
        fields = {
            "ratio": round(ours.ratio, 4),
            "radix_distinct_ratio": round(ours.distinct_ratio, 4),
            "computed": ours.computed,
            "prefill": prefill,
            "explained": sum(parts.values()),
            "seconds": round(ours.seconds, 3),
            "text_computed": text.computed,
            "text_ratio": round(text.ratio, 4),
            "text_seconds": round(text.seconds, 3),
        }
        print(json.dumps(fields))
