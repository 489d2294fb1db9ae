"""What the controller costs: CPU time a thought, on an engine that answers at once.

    python -m benchmarks.overhead [--json] [--thoughts 10000]

Best-first search, 32 samples in flight (8 expansions of 4), until the given number of thoughts was sampled. The
engine is scripted and has no latency, so what is measured is the CPU time of the process (all threads) from the
first event to the outcome, the engine's own share included; `engine_us_per_thought` is that share, measured by
asking the engine alone for as many samples. Two settings:

* full: a verifier asked about every thought, limits on calls and on every kind of token, and a log that is made
  durable (written to a file, with fsync) chunk by chunk under write-ahead grants;
* bare: no verifier, no limit but the number of expansions, no journal.

Beside it, in the same run, the controllers of its_hub (one beam search of as many thoughts, width 32) and treequest
(one StandardMCTS tree of 1,000), where they are installed (extra `bench`): neither has budgets, a log, durability or
usage. The shapes differ: its_hub's one beam of as many thoughts is 312 levels deep at 10,000, our tree at most 8, and
its_hub's cost a thought grows with depth; beams of a few levels cost it a fraction of what is printed.

`growth_100k_over_10k` is the cost a thought, with full duties, at ten times the thoughts over that at the given number.
"""

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import peers
from tts_agent import BestFirst, Budget, LabelVerifier, Prefix, Reading, Sampling, ScriptedEngine, Task, Thought, search
from tts_agent.trace import Recorder

K, PARALLEL = 4, 8
PROMPT = 64  # tokens
THOUGHT = 8  # tokens, the newline included
DEPTH = 8


def script(prefix: str, seed: int) -> str:
    """Seven hexadecimal digits and a newline."""
    return f"{seed & 0xFFFFFFF:07x}\n"


def judge(prefix: str) -> float:
    """Cheap and spread over [0, 1): the last digits of the branch decide."""
    return int(prefix[-5:-1], 16) / 0x10000 if prefix[-1] == "\n" else 0.5


def read(parent: Thought | None, text: str) -> Reading:
    """One thought in sixteen breaks a rule, the others are open."""
    if text[0] == "f":
        return Reading("invalid", reason="begins with f")
    return Reading("open", text, f"{parent.id if parent else 0}:{text}")


def make_task(engine: ScriptedEngine) -> Task:
    prompt = "".join(Random(0).choices("abcdefgh", k=PROMPT))
    return Task(
        root=Prefix(engine.encode(prompt)),
        thought=Sampling(max_tokens=THOUGHT, stop_ids=engine.encode("\n")),
        read=read,
        max_depth=DEPTH,
    )


async def full(thoughts: int, folder: Path) -> int:
    """Search with every duty on; returns the thoughts sampled."""
    engine = ScriptedEngine(script, judge=judge)
    plenty = 10**12
    outcome = await search(
        engine,
        make_task(engine),
        strategy=BestFirst(k=K, parallel=PARALLEL, max_expansions=thoughts // K),
        verifier=LabelVerifier(engine, question="?", good="y", bad="n"),
        budget=Budget(calls=plenty, generated_tokens=plenty, total_tokens=plenty, computed_tokens=plenty),
        journal=Recorder(folder / f"{thoughts}.jsonl"),
    )
    return len(outcome.tree)


async def bare(thoughts: int, folder: Path) -> int:
    """Search with nothing but the search; returns the thoughts sampled."""
    engine = ScriptedEngine(script)
    strategy = BestFirst(k=K, parallel=PARALLEL, max_expansions=thoughts // K)
    return len((await search(engine, make_task(engine), strategy=strategy)).tree)


async def engine_alone(thoughts: int, folder: Path) -> int:
    """As many samples and questions from the engine, with no search around it."""
    engine = ScriptedEngine(script, judge=judge)
    task = make_task(engine)
    prefix = task.root.extend(engine.encode("0000000\n") * (DEPTH // 2))
    for first in range(0, thoughts, K):
        async for _ in engine.sample(prefix, task.thought, seeds=range(first, first + K)):
            pass
        await engine.label_logprobs([prefix] * K, engine.encode("?"), [ord("y"), ord("n")])
    return thoughts


def measure(work: Callable[[int, Path], Coroutine[Any, Any, int]], thoughts: int) -> float:
    """Microseconds of CPU a thought."""
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        begun = time.process_time()
        done = asyncio.run(work(thoughts, Path(folder)))
        return (time.process_time() - begun) / done * 1e6


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--thoughts", type=int, default=10_000, help="thoughts of the small case (10000)")
    options = parser.parse_args(argv)
    small, large = options.thoughts, 10 * options.thoughts
    measure(full, 1000)  # warm up
    alone = measure(engine_alone, small)
    us_bare = measure(bare, small)
    us_small = measure(full, small)
    us_large = measure(full, large)
    others = {name: measure(run, count) for name, run, count in peers.installed(small)}
    print(f"best-first, width {K * PARALLEL}; microseconds of CPU a thought, engine included")
    print(f"  engine alone               {alone:8.1f}")
    print(f"  bare, {small:,} thoughts     {us_bare:8.1f}")
    print(f"  full, {small:,} thoughts     {us_small:8.1f}")
    print(f"  full, {large:,} thoughts    {us_large:8.1f}   growth {us_large / us_small:.2f}")
    for name, cost in others.items():
        print(f"  {name:<26} {cost:8.1f}   bare / it {us_bare / cost:.2f}, full / it {us_small / cost:.2f}")
    if options.json:
        ratios = {
            f"{kind}_over_{name}": round(ours / cost, 3)
            for name, cost in others.items()
            for kind, ours in (("bare", us_bare), ("full", us_small))
        }
        result = {
            "us_per_thought_10k": round(us_small, 1),
            "us_per_thought_10k_bare": round(us_bare, 1),
            "us_per_thought_100k": round(us_large, 1),
            "growth_100k_over_10k": round(us_large / us_small, 3),
            "engine_us_per_thought": round(alone, 1),
            **{f"{name}_us_per_thought": round(cost, 1) for name, cost in others.items()},
            **ratios,
        }
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
