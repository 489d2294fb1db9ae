"""Whether the requests of a tree reach the worker that holds its prefix: our list of addresses, and sglang-router.

    python -m benchmarks.sglang_workers [--address URL --address URL] [--json]

Two SGLang servers of the same model, those at the addresses or two that are started on the CPU (`make test-sglang`
installs them, and the router). 16 trees grow side by side: a prompt of 64 random tokens, then five levels of three
siblings of 8 tokens, each with a question to every sibling. A request after the first of a tree is a hit if it computed
no more than the two tokens a sample, or the question and two tokens, that a worker with its prefix computes. The same
trees are grown through the plain list (rendezvous hashing of the root) and through the router under three policies.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.served import Counter, free_port, make_served
from tts_agent.engines import Sampling
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.prefix import Prefix
from tts_agent.usage import total_usage

TREES, LEVELS, SIBLINGS, PROMPT_TOKENS, BRANCH_TOKENS = 16, 5, 3, 64, 8
QUESTION, LABELS = (3, 5, 7, 11), (13, 17)
POLICIES = ("cache_aware", "manual", "round_robin")
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """How one way of routing did. `shares` are the parts of all computed tokens that each worker computed."""

    way: str
    later: int
    hits: int
    computed: int
    shares: tuple[float, ...]

    @property
    def rate(self) -> float:
        return self.hits / self.later


async def grow(engine: SGLangEngine, rng: random.Random) -> list[bool]:
    """One tree; whether each of its requests but the first found its prefix."""
    prefix = Prefix(tuple(rng.randrange(20, 100) for _ in range(PROMPT_TOKENS)))
    found = []
    for _ in range(LEVELS):
        seeds = [rng.getrandbits(63) for _ in range(SIBLINGS)]
        stream = engine.sample(prefix, Sampling(max_tokens=BRANCH_TOKENS), seeds=seeds)
        children = [completion async for completion in stream]
        found.append(total_usage(child.usage for child in children).prompt_computed <= 2 * SIBLINGS)
        branches = [prefix.extend(child.ids) for child in children]
        scores = await engine.label_logprobs(branches, QUESTION, LABELS)
        usage = total_usage(score.usage for score in scores)
        found.append(usage.computed <= (len(QUESTION) + 2) * SIBLINGS)
        prefix = rng.choice(branches)
    return found[1:]


async def measure(way: str, engine: SGLangEngine, workers: Sequence[str], seed: int) -> Row:
    """Grow all trees through `engine`, whose requests end up at `workers`."""
    counters = [Counter(address) for address in workers]
    try:
        before = [sum(counter.read()) for counter in counters]
        rngs = [random.Random(f"{seed} {tree}") for tree in range(TREES)]
        found = [hit for tree in await asyncio.gather(*(grow(engine, rng) for rng in rngs)) for hit in tree]
        computed = [sum(counter.read()) - then for counter, then in zip(counters, before, strict=True)]
    finally:
        for counter in counters:
            counter.close()
    total = sum(computed)
    return Row(way, len(found), sum(found), total, tuple(round(one / total, 3) for one in computed))


@contextlib.contextmanager
def routing(python: Path, policy: str, workers: Sequence[str]) -> Iterator[str]:
    """The address of a router in front of `workers`."""
    port, metrics = free_port(), free_port()
    command = [str(python), "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(metrics), "--policy", policy, "--worker-urls", *workers]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _ready(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"the router did not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/readiness", timeout=5).status_code == 200
    return False


async def through(policy: str, address: str, workers: Sequence[str], seed: int) -> Row:
    """All trees through the router at `address`."""
    engine = SGLangEngine(address)
    try:
        return await measure(f"sglang-router, {policy}", engine, workers, seed)
    finally:
        await engine.aclose()


async def listed(workers: Sequence[str], seed: int) -> Row:
    """All trees through a plain list of addresses."""
    engine = SGLangEngine(*workers)
    try:
        return await measure("list of addresses", engine, workers, seed)
    finally:
        await engine.aclose()


def compare(workers: Sequence[str], python: Path) -> list[Row]:
    """Every way of routing, each with trees of its own, so that none finds what another has left in a cache."""
    rows = [asyncio.run(listed(workers, 0))]
    for seed, policy in enumerate(POLICIES, 1):
        with routing(python, policy, workers) as address:
            rows.append(asyncio.run(through(policy, address, workers, seed)))
    return rows


@contextlib.contextmanager
def serving(addresses: Sequence[str] | None) -> Iterator[list[str]]:
    """The addresses of two servers, started for this unless they are given."""
    if addresses:
        yield [address.rstrip("/") for address in addresses]
        return
    from tests.sglang.install import FOLDER
    from tests.sglang.install import python as interpreter
    from tests.sglang.server import Server

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_served(model)
        flags = ["--context-length", "1024"]
        servers = [Server(interpreter(FOLDER), model, log=Path(folder) / f"{i}.log", flags=flags) for i in range(2)]
        try:
            yield [server.wait().address for server in [server.start() for server in servers]]
        finally:
            for server in servers:
                server.kill()


def report(rows: Sequence[Row]) -> Table:
    table = Table(title=f"{TREES} trees on two workers: requests after a tree's first that found its prefix")
    for name in ("", "found", "of", "share", "computed", "by worker"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        shares = " : ".join(f"{share:.0%}" for share in row.shares)
        table.add_row(row.way, f"{row.hits}", f"{row.later}", f"{row.rate:.1%}", f"{row.computed:,}", shares)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sglang_workers", description=__doc__.partition("\n")[0])
    parser.add_argument("--address", action="append", help="of an SGLang server; give it once for each worker")
    parser.add_argument("--router-python", type=Path, help="the interpreter that has sglang-router")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if options.router_python is None:
        from tests.sglang.install import FOLDER
        from tests.sglang.install import python as interpreter

        options.router_python = interpreter(FOLDER)
    with serving(options.address) as workers:
        rows = compare(workers, options.router_python)
    Console().print(report(rows))
    if options.json:
        print(json.dumps([asdict(row) | {"rate": round(row.rate, 4)} for row in rows]))


if __name__ == "__main__":
    main()
