"""What the staged form costs: CPU a round, beside three empty super-steps.

    python -m benchmarks.nodes [--json] [--rounds 32] [--runs 5]

A beam of 32 thoughts a round runs to its depth on an engine that answers at once, with a verdict for every thought and
limits on every kind of token. `search` is the search without LangGraph, `staged` the same search as the nodes expand,
verify and select, `empty` a graph of three nodes that do nothing, as many rounds; both graphs have a SQLite
checkpointer on a file. What is measured is the CPU time of the process, all threads; the arms take turns, figures are
medians. `added` is staged less search, a round; `ratio` is that over `empty`.
"""

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph

from benchmarks.fixed import Fixed
from benchmarks.instant import LENGTH, InstantEngine
from tts_agent import Beam, Budget, LabelVerifier, Sampling, Task, search
from tts_agent.nodes import create_planner
from tts_agent.prefix import Prefix

K, KEEP = 8, 4
PROMPT = 64  # tokens
PLENTY = 10**12
BUDGET = Budget(calls=PLENTY, generated_tokens=PLENTY, total_tokens=PLENTY, computed_tokens=PLENTY)
CONFIG: Any = {"configurable": {"thread_id": "1"}, "recursion_limit": 10**6}


class Count(TypedDict):
    """State of the graph that does nothing."""

    rounds: int


def make_task(engine: InstantEngine, rounds: int) -> Task:
    return Task(
        root=Prefix(engine.encode("a" * PROMPT)),
        thought=Sampling(max_tokens=LENGTH, stop_ids=engine.encode("\n")),
        max_depth=rounds + 1,
    )


def settings(engine: InstantEngine, rounds: int) -> dict[str, Any]:
    return {
        "strategy": Beam(k=K, keep=KEEP, depth=rounds),
        "verifier": LabelVerifier(engine, question="?", good="y", bad="n"),
        "budget": BUDGET,
        "barrier": True,
    }


async def plain(rounds: int, folder: Path) -> int:
    """The search alone; returns the thoughts sampled."""
    engine = InstantEngine()
    return len((await search(engine, make_task(engine, rounds), **settings(engine, rounds))).tree)


async def staged(rounds: int, folder: Path) -> int:
    """The search in stages; returns the thoughts sampled."""
    engine = InstantEngine()
    dialect = Fixed(make_task(engine, rounds))
    graph = create_planner(engine, dialect=dialect, staged=True, **settings(engine, rounds))
    async with AsyncSqliteSaver.from_conn_string(str(folder / "staged.db")) as saver:
        result = await graph.compile(checkpointer=saver).ainvoke({"messages": [HumanMessage("go")]}, CONFIG)
    thoughts: int = result["tts"]["outcome"]["thoughts"]
    return thoughts


async def empty(rounds: int, folder: Path) -> int:
    """Three nodes that do nothing, as many times."""

    async def rest(state: Count) -> dict[str, Any]:
        return {}

    async def count(state: Count) -> dict[str, Any]:
        return {"rounds": state["rounds"] + 1}

    graph = StateGraph(Count)
    graph.add_node("expand", rest)
    graph.add_node("verify", rest)
    graph.add_node("select", count)
    graph.add_edge(START, "expand")
    graph.add_edge("expand", "verify")
    graph.add_edge("verify", "select")
    graph.add_conditional_edges(
        "select", lambda state: "expand" if state["rounds"] < rounds else END, {"expand": "expand", END: END}
    )
    async with AsyncSqliteSaver.from_conn_string(str(folder / "empty.db")) as saver:
        await graph.compile(checkpointer=saver).ainvoke({"rounds": 0}, CONFIG)
    return 0


Arm = Callable[[int, Path], Awaitable[int]]
ARMS: dict[str, Arm] = {"search": plain, "staged": staged, "empty": empty}


def measure(arm: Arm, rounds: int) -> tuple[float, int]:
    """Milliseconds of CPU a round, and the thoughts sampled."""

    async def run() -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as folder:
            gc.collect()
            begun = time.process_time()
            thoughts = await arm(rounds, Path(folder))
            return (time.process_time() - begun) / rounds * 1000, thoughts

    return asyncio.run(run())


def compare(rounds: int, runs: int) -> dict[str, float]:
    """Medians of all arms, the runs interleaved."""
    costs: dict[str, list[float]] = {name: [] for name in ARMS}
    sampled: dict[str, int] = {}
    for turn in range(runs + 1):
        for name, arm in ARMS.items():
            cost, sampled[name] = measure(arm, rounds)
            if turn:  # the first one warms up
                costs[name].append(cost)
    assert sampled["search"] == sampled["staged"]
    ms = {name: median(values) for name, values in costs.items()}
    added = ms["staged"] - ms["search"]
    figures = {f"{name}_ms": value for name, value in ms.items()} | {"added_ms": added, "ratio": added / ms["empty"]}
    return {"rounds": rounds, "thoughts": sampled["staged"]} | {
        key: round(figure, 3) for key, figure in figures.items()
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, nargs="*", default=[8, 32], help="of a search (8 32)")
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each arm (5)")
    options = parser.parse_args(argv)
    print(f"beam, {K * KEEP} thoughts a round; milliseconds of CPU a round, with SQLite")
    rows = []
    for rounds in options.rounds:
        rows.append(row := compare(rounds, options.runs))
        print("  " + "   ".join(f"{name} {value}" for name, value in row.items()))
    if options.json:
        print(json.dumps({"runs": options.runs, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
