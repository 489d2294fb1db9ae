"""A graph of one planning node in the scripted grammar, for tests of what the node makes durable."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph import END, START, StateGraph

from tests.scripts import judge, latency, make_task, make_verifier, script
from tts_agent import Beam, BestFirst, Budget, ScriptedEngine, Thought
from tts_agent.dialect import Decided, Request
from tts_agent.nodes import PlanState, make_plan_node

BUDGET = Budget(generated_tokens=1500, computed_tokens=12_000, calls=400)
"""Room for every search of `STRATEGIES` and for the grants that two kills lose."""

STRATEGIES = {
    "beam": Beam(k=4, keep=3),
    "best_first": BestFirst(k=3, parallel=2, max_expansions=20),
}


class GrammarDialect:
    """Any message asks for one search in the grammar."""

    def __init__(self, engine: ScriptedEngine, *, solvable: bool = True) -> None:
        self._task = make_task(engine, solvable=solvable)

    def request(self, messages: Sequence[AnyMessage], last: Decided | None) -> Request:
        return Request(self._task)

    def decide(self, thought: Thought) -> AIMessage:
        return AIMessage(thought.text)


def make_engine(
    *, heard: Callable[[str, int], None] | None = None, record: Path | None = None, pace: float = 0.0, **options: Any
) -> ScriptedEngine:
    """`heard(prefix, seed)` is told of each sample as it is asked for."""

    def listening(prefix: str, seed: int) -> str:
        if heard is not None:
            heard(prefix, seed)
        return script(prefix, seed)

    return ScriptedEngine(listening, judge=judge, latency=latency, record=record, pace=pace, **options)


def make_graph(engine: ScriptedEngine, **settings: Any) -> StateGraph[PlanState, None, PlanState, PlanState]:
    solvable = settings.pop("solvable", True)
    chosen: dict[str, Any] = {"strategy": STRATEGIES["beam"], "verifier": make_verifier(engine), "budget": BUDGET}
    node = make_plan_node(engine, dialect=GrammarDialect(engine, solvable=solvable), **(chosen | settings))
    graph = StateGraph(PlanState)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph
