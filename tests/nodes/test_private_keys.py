"""The one thing read of LangGraph that it does not promise: how a node tells a run that goes on from a new one."""

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from tests.nodes.world import GrammarDialect, make_engine
from tts_agent import BestFirst, Budget
from tts_agent.nodes import PlanState, SharedBudget, make_plan_node
from tts_agent.nodes.shared import Run

THREAD: Any = {"configurable": {"thread_id": "1"}}
GO: Any = {"messages": [("user", "go")]}


def test_a_node_knows_whether_its_run_was_resumed() -> None:
    seen: list[bool] = []

    def look(state: PlanState) -> dict[str, Any]:
        seen.append(Run.current().resumed)
        return {}

    def ask(state: PlanState) -> dict[str, Any]:
        seen.append(Run.current().resumed)
        interrupt("go on?")
        return {}

    inner = StateGraph(PlanState).add_node("look", look).add_edge(START, "look").compile()
    graph = StateGraph(PlanState).add_node("ask", ask).add_node("inner", inner)
    graph.add_edge(START, "ask").add_edge("ask", "inner").add_edge("inner", END)
    agent = graph.compile(checkpointer=InMemorySaver())
    agent.invoke(GO, THREAD)
    assert seen == [False]
    agent.invoke(Command(resume="yes"), THREAD)  # the first node that goes on is told, what follows is not
    assert seen == [False, True, False]
    agent.invoke(GO, THREAD)  # a new run in the same thread
    assert seen[3:] == [False]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_budget_outlives_a_pause_that_spends_nothing(fresh: bool) -> None:
    engine, saver = make_engine(), InMemorySaver()

    def build() -> Any:
        shared = SharedBudget(Budget(calls=9), name="team")
        graph = StateGraph(PlanState)
        for name in ("before", "after"):
            dialect, strategy = GrammarDialect(engine, solvable=False), BestFirst(k=2, max_expansions=6)
            graph.add_node(
                name, make_plan_node(engine, dialect=dialect, strategy=strategy, run_budget=shared, name=name)
            )
        graph.add_node("ask", lambda state: {} if interrupt("go on?") else {})
        graph.add_edge(START, "before").add_edge("before", "ask").add_edge("ask", "after").add_edge("after", END)
        return graph.compile(saver)

    agent = build()
    agent.invoke(GO, THREAD)
    spent = engine.served.calls
    result = (build() if fresh else agent).invoke(Command(resume="yes"), THREAD)
    assert spent < engine.served.calls <= 9 and result["tts_budgets"]["team"]["usage"]["calls"] == engine.served.calls
    agent.invoke(GO, THREAD)  # somebody wrote again
    assert engine.served.calls > 9


def test_outside_of_a_graph_there_is_no_run() -> None:
    assert Run.current() == Run()
