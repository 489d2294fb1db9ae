"""The one thing read of LangGraph that it does not promise: how a node tells a run that goes on from a new one."""

from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from tts_agent.nodes import PlanState
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
    agent.invoke(Command(resume="yes"), THREAD)  # the node again, then the graph inside
    assert seen == [False, True, True]
    agent.invoke(GO, THREAD)  # a new run in the same thread
    assert seen[3:] == [False]


def test_outside_of_a_graph_there_is_no_run() -> None:
    assert Run.current() == Run()
