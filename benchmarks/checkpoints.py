"""What LangGraph's checkpoints cost: CPU a thought, and bytes a planning step.

    python -m benchmarks.checkpoints [--json] [--steps 20] [--thoughts 1000] [--runs 5]

`fused`: best-first search on the scripted engine with a verdict for every thought and limits on every kind of token,
as `search()` alone, without any journal (`plain`), and as the plan node of a graph with a SQLite checkpointer on a
file, with `invoke` (`sync`) and with `ainvoke` (`async`). What is measured is the CPU time of the process, all threads;
the arms take turns, figures are medians. `added` is the graph less the search alone, a thought.

`growth`: an agent of as many planning steps, each of that many thoughts of 300 tokens, whose ids are drawn from 0 to
151,935, with SQLite on a file, as a beam, as best-first search, and as best-first search whose verdicts favour one
decision, so that nearly the whole tree lies under it. What is measured is how much the file grows, and the CPU time of
a step, the search included. Every step's decision is followed by a message that the planner did not
foresee, so nothing is used again, and the prompt grows. `carried` is how many thoughts the state holds for the next
step, in case it could use them.
"""

import argparse
import asyncio
import gc
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, ClassVar, NamedTuple

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph

from benchmarks.fixed import Fixed
from benchmarks.overhead import PARALLEL, K, judge, make_task, script
from tts_agent import Beam, BestFirst, Budget, LabelVerifier, Prefix, Sampling, ScriptedEngine, Task, Thought, search
from tts_agent.dialect import Decided, Request
from tts_agent.nodes import PlanState, make_plan_node
from tts_agent.thought import Unverified, Verdict
from tts_agent.tree import Branch
from tts_agent.usage import ZERO, Usage
from tts_agent.verifiers.base import Scope

PLENTY = 10**12
BUDGET = Budget(calls=PLENTY, generated_tokens=PLENTY, total_tokens=PLENTY, computed_tokens=PLENTY)
LENGTH = 300  # tokens of a thought
VOCABULARY = 151_936
DEPTH = 11


# --- CPU a thought


def settings(engine: ScriptedEngine, thoughts: int) -> dict[str, Any]:
    return {
        "strategy": BestFirst(k=K, parallel=PARALLEL, max_expansions=thoughts // K),
        "verifier": LabelVerifier(engine, question="?", good="y", bad="n"),
        "budget": BUDGET,
    }


async def plain(thoughts: int, folder: Path) -> int:
    """The search alone; returns the thoughts sampled."""
    engine = ScriptedEngine(script, judge=judge)
    return len((await search(engine, make_task(engine), **settings(engine, thoughts))).tree)


def graph_of(thoughts: int) -> StateGraph[Any, Any, Any, Any]:
    engine = ScriptedEngine(script, judge=judge)
    node = make_plan_node(engine, dialect=Fixed(make_task(engine)), **settings(engine, thoughts))
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(PlanState)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph


CONFIG: Any = {"configurable": {"thread_id": "1"}, "recursion_limit": 10**6}
GO: Any = {"messages": [HumanMessage("go")]}


async def fused_async(thoughts: int, folder: Path) -> int:
    async with AsyncSqliteSaver.from_conn_string(str(folder / "async.db")) as saver:
        result = await graph_of(thoughts).compile(checkpointer=saver).ainvoke(GO, CONFIG)
    return int(result["tts"]["outcome"]["thoughts"])


async def fused_sync(thoughts: int, folder: Path) -> int:
    with SqliteSaver.from_conn_string(str(folder / "sync.db")) as saver:
        result = graph_of(thoughts).compile(checkpointer=saver).invoke(GO, CONFIG)
    return int(result["tts"]["outcome"]["thoughts"])


ARMS: dict[str, Callable[[int, Path], Coroutine[Any, Any, int]]] = {
    "plain": plain,
    "sync": fused_sync,
    "async": fused_async,
}


def timed(work: Callable[[int, Path], Coroutine[Any, Any, int]], thoughts: int) -> float:
    """CPU microseconds a thought."""
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        begun = time.process_time()
        sampled = asyncio.run(work(thoughts, Path(folder)))
        return (time.process_time() - begun) / sampled * 1e6


def measure_fused(thoughts: int, runs: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(runs + 1):
        for name, work in ARMS.items():
            spent = timed(work, thoughts)
            if turn:  # the first one warms up
                taken[name].append(spent)
    cost = {name: median(values) for name, values in taken.items()}
    figures = {f"{name}_us_per_thought": round(value, 1) for name, value in cost.items()}
    added = {f"{name}_added_ms_per_thought": round((cost[name] - cost["plain"]) / 1e3, 4) for name in ("sync", "async")}
    return figures | added


# --- bytes a step


class WideEngine(ScriptedEngine):
    """Says ids of a large vocabulary, which the seed draws; every id reads as a word of its own."""

    def __init__(self) -> None:
        super().__init__(lambda prefix, seed: str(seed), cache=False)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(Random(text).choices(range(VOCABULARY), k=LENGTH))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(" {:x}".format, ids))


class ByLast:
    """The score is in the branch's last id."""

    name = "by last"
    scope: ClassVar[Scope] = "thought"

    def bound(self, prompt: int) -> Usage:
        return ZERO

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        return [Verdict(branch.prefix.ids[-1] / VOCABULARY, verifier=self.name) for branch in branches]


class ByDecision(ByLast):
    """The score is that of the decision: the first thought, and all below it, are good."""

    name = "by decision"

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        return [Verdict(0.99 if branch.path[0].id == 1 else 0.01, verifier=self.name) for branch in branches]


class Talk:
    """Every message asks for a search that extends what was decided so far."""

    def __init__(self, engine: WideEngine, depth: int) -> None:
        self._engine, self._depth = engine, depth

    def request(self, messages: Sequence[AnyMessage], last: Decided | None) -> Request:
        said = self._engine.encode(messages[-1].text)
        root = Prefix(said) if last is None else last.prefix.extend(said[: LENGTH // 3])
        return Request(Task(root=root, thought=Sampling(max_tokens=LENGTH), max_depth=self._depth))

    def decide(self, thought: Thought) -> AIMessage:
        return AIMessage(thought.text)


class Shape(NamedTuple):
    strategy: Beam | BestFirst
    verifier: ByLast


def shapes(thoughts: int) -> dict[str, Shape]:
    """A beam of ten levels, and searches that go where it looks best."""
    best_first = BestFirst(k=K, parallel=PARALLEL, max_expansions=thoughts // K)
    return {
        "beam": Shape(Beam(k=max(thoughts // 50, 1), keep=5, depth=DEPTH), ByLast()),
        "best_first": Shape(best_first, ByLast()),
        "one_decision": Shape(best_first, ByDecision()),
    }


def agent_of(shape: Shape, steps: int) -> StateGraph[Any, Any, Any, Any]:
    """Plans, acts and plans again."""
    engine = WideEngine()
    node = make_plan_node(engine, dialect=Talk(engine, DEPTH), budget=BUDGET, **shape._asdict())

    def act(state: PlanState) -> dict[str, Any]:
        return {"messages": [HumanMessage(f"result {len(state['messages'])}")]}

    def more(state: PlanState) -> str:
        return "plan" if len(state["messages"]) < 2 * steps else END

    graph: StateGraph[Any, Any, Any, Any] = StateGraph(PlanState)
    graph.add_node("plan", node)
    graph.add_node("act", act)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "act")
    graph.add_conditional_edges("act", more, ["plan", END])
    return graph


def tables(path: Path) -> dict[str, float]:
    """Megabytes that the checkpoints and the tasks' results take."""
    sizes = {"checkpoints": "checkpoint", "writes": "value"}
    with sqlite3.connect(path) as database:
        return {
            table: round(database.execute(f"select sum(length({blob})) from {table}").fetchone()[0] / 1e6, 2)
            for table, blob in sizes.items()
        }


def measure_growth(shape: Shape, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoints.db"
        begun, seen, carried = time.process_time(), 0, 0
        with SqliteSaver.from_conn_string(str(path)) as saver:
            agent = agent_of(shape, steps).compile(checkpointer=saver)
            for state in agent.stream(GO, CONFIG, stream_mode="updates"):
                if "plan" in state:
                    seen += state["plan"]["tts"]["outcome"]["thoughts"]
                    carried += len(state["plan"]["tts"]["subtree"])
        spent, held = time.process_time() - begun, tables(path)
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
    return {
        "thoughts_per_step": seen / steps,
        "carried_per_step": carried / steps,
        "mb_per_step": round(size / steps, 3),
        "mb_by_table": held,
        "cpu_ms_per_step": round(spent / steps * 1e3, 1),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--steps", type=int, default=20, help="planning steps of the agent (20)")
    parser.add_argument("--thoughts", type=int, default=1000, help="thoughts of a search (1000)")
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each arm (5)")
    options = parser.parse_args(argv)
    fused = measure_fused(options.thoughts, options.runs)
    print("  ".join(f"{name} {value}" for name, value in fused.items()))
    growth = {}
    for name, shape in shapes(options.thoughts).items():
        growth[name] = measure_growth(shape, options.steps)
        print(f"{name}: " + "  ".join(f"{figure} {value}" for figure, value in growth[name].items()))
    if options.json:
        print(json.dumps({**vars(options), "fused": fused, "growth": growth}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
