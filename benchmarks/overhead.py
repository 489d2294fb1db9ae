"""What the controller costs: CPU time a thought, on engines that answer at once.

    python -m benchmarks.overhead [--json] [--thoughts 10000] [--runs 5]

What is measured is the CPU time of the process (all threads) from the first event to the outcome, in two settings:

* full: a verifier asked about every thought, limits on calls and on every kind of token, and a log that is made
  durable (written to a file, with fsync) chunk by chunk under write-ahead grants;
* bare: no verifier, no limit but the size of the search, no journal.

The first table is best-first search, 32 samples in flight (8 expansions of 4), on the scripted engine with its virtual
clock: at the given number of thoughts and at ten times as many. `engine_us_per_thought` is the engine's own share,
measured by asking it alone for as many samples and questions; it is included in the other figures.

The second table is our beam search beside its_hub's, in one shape for both: 32 samples a level, the best 4 kept, as
many levels as it takes to sample the given number of thoughts (312 for 10,000), thoughts of 8 characters, models that
answer at once. Fewer levels follow: its_hub's cost a thought grows with the depth, ours hardly, so `*_over_its_hub`
(at the given number of thoughts) is the most favourable row for us. Beside them treequest's StandardMCTS, one tree
of 1,000 thoughts. Both need the extra `bench`, and neither has budgets, a log, durability or usage. Runs are
interleaved, figures are medians.
"""

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks import peers
from benchmarks.instant import LENGTH, InstantEngine
from tts_agent import (
    Beam,
    BestFirst,
    Budget,
    LabelVerifier,
    Prefix,
    Reading,
    Sampling,
    ScriptedEngine,
    Task,
    Thought,
    search,
)
from tts_agent.engines.base import Engine
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
    strategy = BestFirst(k=K, parallel=PARALLEL, max_expansions=thoughts // K)
    return await _with_every_duty(engine, make_task(engine), strategy, folder)


async def _with_every_duty(engine: Engine, task: Task, strategy: BestFirst | Beam, folder: Path) -> int:
    plenty = 10**12
    outcome = await search(
        engine,
        task,
        strategy=strategy,
        verifier=LabelVerifier(engine, question="?", good="y", bad="n"),
        budget=Budget(calls=plenty, generated_tokens=plenty, total_tokens=plenty, computed_tokens=plenty),
        journal=Recorder(folder / "search.jsonl"),
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


def _beam(thoughts: int) -> tuple[InstantEngine, Task, Beam]:
    engine = InstantEngine()
    levels = thoughts // peers.WIDTH
    task = Task(
        root=Prefix(engine.encode("a" * PROMPT)),
        thought=Sampling(max_tokens=LENGTH, stop_ids=engine.encode("\n")),
        max_depth=levels + 1,
    )
    return engine, task, Beam(k=peers.WIDTH // peers.KEPT, keep=peers.KEPT, depth=levels)


async def full_beam(thoughts: int, folder: Path) -> int:
    """A beam in its_hub's shape with every duty on; returns the thoughts sampled."""
    engine, task, strategy = _beam(thoughts)
    return await _with_every_duty(engine, task, strategy, folder)


async def bare_beam(thoughts: int, folder: Path) -> int:
    """A beam in its_hub's shape with nothing but the search; returns the thoughts sampled."""
    engine, task, strategy = _beam(thoughts)
    return len((await search(engine, task, strategy=strategy)).tree)


Work = Callable[[int, Path], Coroutine[Any, Any, int]]


def measure(work: Work, thoughts: int) -> float:
    """Microseconds of CPU a thought."""
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        begun = time.process_time()
        done = asyncio.run(work(thoughts, Path(folder)))
        return (time.process_time() - begun) / done * 1e6


def medians(works: Mapping[str, tuple[Work, int]], runs: int) -> dict[str, float]:
    """Median microseconds of CPU a thought of each work, the runs interleaved."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, (work, thoughts) in works.items():
            found[name].append(measure(work, thoughts))
    return {name: median(values) for name, values in found.items()}


def absolute(small: int, runs: int) -> dict[str, float]:
    """Best-first search on the scripted engine."""
    cost = medians({"alone": (engine_alone, small), "bare": (bare, small), "full": (full, small)}, runs)
    large = measure(full, 10 * small)
    print(f"best-first, width {K * PARALLEL}, scripted engine; microseconds of CPU a thought, engine included")
    print(f"  engine alone               {cost['alone']:8.1f}")
    print(f"  bare, {small:,} thoughts     {cost['bare']:8.1f}")
    print(f"  full, {small:,} thoughts     {cost['full']:8.1f}")
    print(f"  full, {10 * small:,} thoughts    {large:8.1f}   growth {large / cost['full']:.2f}")
    return {
        "us_per_thought_10k": round(cost["full"], 1),
        "us_per_thought_10k_bare": round(cost["bare"], 1),
        "us_per_thought_100k": round(large, 1),
        "growth_100k_over_10k": round(large / cost["full"], 3),
        "engine_us_per_thought": round(cost["alone"], 1),
    }


def beside_its_hub(thoughts: int, runs: int) -> dict[str, Any]:
    """Our beam beside its_hub's, at falling depths; the fields are of the deepest."""
    print(f"beam, {peers.WIDTH} samples a level, {peers.KEPT} kept; microseconds of CPU a thought")
    rows = []
    for count in (thoughts, thoughts // 4, thoughts // 40):
        works = {"bare": (bare_beam, count), "full": (full_beam, count), "its_hub": (peers.its_hub_beam, count)}
        cost = medians(works, runs)
        row = {"levels": count // peers.WIDTH, **{name: round(value, 2) for name, value in cost.items()}}
        row |= {f"{kind}_over_its_hub": round(cost[kind] / cost["its_hub"], 3) for kind in ("bare", "full")}
        rows.append(row)
        costs = "   ".join(f"{name} {value:6.1f}" for name, value in cost.items())
        ratios = f"bare / it {row['bare_over_its_hub']:.2f}, full / it {row['full_over_its_hub']:.2f}"
        print(f"  {row['levels']:4} levels   {costs}   {ratios}")
    deepest = {name: rows[0][name] for name in ("bare_over_its_hub", "full_over_its_hub")}
    return {**deepest, "its_hub_us_per_thought": rows[0]["its_hub"], "beams": rows}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--thoughts", type=int, default=10_000, help="thoughts of the small case (10000)")
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each measurement (5)")
    options = parser.parse_args(argv)
    measure(full, 1000)  # warm up
    result: dict[str, Any] = absolute(options.thoughts, options.runs)
    if peers.has_its_hub():
        result |= beside_its_hub(options.thoughts, options.runs)
    if peers.has_treequest():
        cost = measure(peers.treequest_mcts, min(options.thoughts, 1000))
        print(f"  treequest StandardMCTS, 1,000 thoughts {cost:8.1f}")
        result["treequest_us_per_thought"] = round(cost, 1)
        for kind in ("bare", "full"):
            ours = result["us_per_thought_10k_bare" if kind == "bare" else "us_per_thought_10k"]
            result[f"{kind}_over_treequest"] = round(ours / cost, 4)
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
