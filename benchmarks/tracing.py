"""What it costs to be watched: CPU a thought, with and without an audience.

    python -m benchmarks.tracing [--json] [--thoughts 2000] [--runs 5]

Best-first search, 32 samples in flight, with a verdict for every thought, as the one node of a LangGraph graph without
a checkpointer, on the scripted engine, which answers at once. The arms: `nobody` listens; `custom`, the stream is read;
`candidates`, with what the thoughts say; `messages`, that stream is read; `handler`, one that does nothing; `tracer`,
LangChain's collector of runs. What is measured is the CPU time of the process, all threads; the arms take turns,
figures are medians. `runs_per_thought` is how many runs a trace has. `look_us` is what finding out that nobody listens
costs, once a planning step.
"""

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.tracers.schemas import Run
from langgraph.graph import END, START, StateGraph

from benchmarks.fixed import Fixed
from benchmarks.overhead import PARALLEL, K, judge, make_task, script
from tts_agent import BestFirst, LabelVerifier, ScriptedEngine
from tts_agent.nodes import PlanState, make_plan_node
from tts_agent.nodes.audience import Audience

GO: Any = {"messages": [HumanMessage("go")]}
LOOKS = 2000


class Idle(BaseCallbackHandler):
    """A handler that does nothing."""

    run_inline = True


def make_agent(thoughts: int, *, candidates: bool = False) -> Any:
    engine = ScriptedEngine(script, judge=judge)
    node = make_plan_node(
        engine,
        dialect=Fixed(make_task(engine)),
        strategy=BestFirst(k=K, parallel=PARALLEL, max_expansions=thoughts // K),
        verifier=LabelVerifier(engine, question="?", good="y", bad="n"),
        stream_candidates=candidates,
    )
    graph = StateGraph(PlanState)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph.compile()


async def invoked(thoughts: int, *handlers: BaseCallbackHandler) -> int:
    result = await make_agent(thoughts).ainvoke(GO, {"callbacks": list(handlers)})
    return int(result["tts"]["outcome"]["thoughts"])


async def streamed(thoughts: int, mode: str, *, candidates: bool = False) -> int:
    async for _ in make_agent(thoughts, candidates=candidates).astream(GO, stream_mode=mode):
        pass
    return thoughts


Arm = Callable[[int], Awaitable[int]]

ARMS: dict[str, Arm] = {
    "nobody": lambda thoughts: invoked(thoughts),
    "custom": lambda thoughts: streamed(thoughts, "custom"),
    "candidates": lambda thoughts: streamed(thoughts, "custom", candidates=True),
    "messages": lambda thoughts: streamed(thoughts, "messages"),
    "handler": lambda thoughts: invoked(thoughts, Idle()),
    "tracer": lambda thoughts: invoked(thoughts, RunCollectorCallbackHandler()),
}


def measure(arm: Arm, thoughts: int) -> float:
    """Microseconds of CPU a thought."""

    async def run() -> int:
        return await arm(thoughts)

    gc.collect()
    begun = time.process_time()
    done = asyncio.run(run())
    return (time.process_time() - begun) / done * 1e6


def look() -> float:
    """Microseconds that one look for an audience costs, where there is none."""
    found: list[float] = []

    def node(state: PlanState) -> dict[str, Any]:
        begun = time.process_time()
        for _ in range(LOOKS):
            assert Audience.here(name="plan") is None
        found.append((time.process_time() - begun) / LOOKS * 1e6)
        return {}

    graph = StateGraph(PlanState)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.compile().invoke(GO)
    return found[0]


def count_runs(thoughts: int) -> float:
    """Runs of a trace, a thought."""
    book = RunCollectorCallbackHandler()
    done = asyncio.run(invoked(thoughts, book))

    def below(run: Run) -> int:
        return 1 + sum(map(below, run.child_runs))

    return sum(map(below, book.traced_runs)) / done


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--thoughts", type=int, default=2000, help="thoughts of a search (2000)")
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each arm (5)")
    options = parser.parse_args(argv)
    measure(ARMS["tracer"], 200)  # warm up
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(options.runs):
        for name, arm in ARMS.items():
            found[name].append(measure(arm, options.thoughts))
    cost = {name: median(values) for name, values in found.items()}
    print(f"best-first, {options.thoughts:,} thoughts in one node; microseconds of CPU a thought, engine included")
    for name, value in cost.items():
        print(f"  {name:<12}{value:8.1f}   {value - cost['nobody']:+8.1f}")
    result = {f"{name}_us_per_thought": round(value, 1) for name, value in cost.items()}
    result |= {"runs_per_thought": round(count_runs(200), 3), "look_us": round(look(), 2)}
    print(f"  a look for an audience {result['look_us']:.2f} µs; {result['runs_per_thought']:.2f} runs a thought")
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
