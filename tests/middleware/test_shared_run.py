"""One budget for planning nodes and agents of one graph."""

import asyncio
import time
from typing import Any

import pytest
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from tests.middleware.test_tree_search import PUZZLE, search, unused
from tests.middleware.world import Teller, add, calls
from tests.nodes.table import make_engine as make_table
from tests.nodes.world import GrammarDialect
from tests.nodes.world import make_engine as make_grammar
from tools.calculator import calculator
from tts_agent import BestFirst, Budget
from tts_agent.errors import ConfigError
from tts_agent.middleware import BudgetMiddleware
from tts_agent.nodes import PlanState, SharedBudget, make_plan_node

GO: Any = {"messages": [("user", "go")]}  # another message each time
THREAD: Any = {"configurable": {"thread_id": "1"}}


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("limit", [12, 40])
def test_a_node_and_two_agents_spend_together(sync: bool, limit: int) -> None:
    engine, model = make_grammar(), Teller(lambda messages, call: calls("add", a=1, b=call))
    shared = SharedBudget(Budget(calls=limit), name="team")
    graph = StateGraph(PlanState)
    plan = make_plan_node(
        engine,
        dialect=GrammarDialect(engine, solvable=False),
        strategy=BestFirst(k=2, max_expansions=4),
        run_budget=shared,
    )
    graph.add_node("plan", plan)
    for name in ("left", "right"):  # side by side
        graph.add_node(name, create_agent(model, [add], middleware=[BudgetMiddleware(shared)]))
        graph.add_edge("plan", name)
        graph.add_edge(name, END)
    graph.add_edge(START, "plan")
    agent = graph.compile(checkpointer=InMemorySaver())
    for runs in (1, 2):
        result = agent.invoke(GO, THREAD) if sync else asyncio.run(agent.ainvoke(GO, THREAD))
        entry = result["tts_budgets"]["team"]
        assert engine.served.calls + model.served.calls == runs * limit
        assert entry["usage"]["calls"] == limit and entry["limit"] == "calls"


def team(**guards: Any) -> tuple[Teller, Any]:
    """Agents as nodes of one graph, one after the other, each with what guards it."""
    model, graph, before = Teller(lambda messages, call: calls("add", a=1, b=call)), StateGraph(PlanState), START
    for name, guard in guards.items():
        graph.add_node(name, create_agent(model, [add], middleware=[guard]))
        graph.add_edge(before, name)
        before = name
    graph.add_edge(before, END)
    return model, graph.compile()


def test_two_budgets_of_one_name_in_one_graph_are_refused() -> None:
    _, agent = team(a=BudgetMiddleware(Budget(calls=5)), b=BudgetMiddleware(Budget(calls=5)))
    with pytest.raises(ConfigError, match="two budgets named 'agent'.*name="):
        agent.invoke(GO)
    model, agent = team(a=BudgetMiddleware(Budget(calls=5), name="a"), b=BudgetMiddleware(Budget(calls=5), name="b"))
    result = agent.invoke(GO)
    assert model.served.calls == 10 and [result["tts_budgets"][name]["usage"]["calls"] for name in "ab"] == [5, 5]


def test_one_budget_in_two_middleware_is_one() -> None:
    shared = SharedBudget(Budget(calls=5))
    model, agent = team(a=BudgetMiddleware(shared), b=BudgetMiddleware(shared))
    for runs in (1, 2):
        assert agent.invoke(GO)["tts_budgets"]["run"]["usage"]["calls"] == 5 == model.served.calls / runs


@pytest.mark.parametrize("sync", [True, False])
def test_the_time_of_a_search_inside_an_agent_counts_once(sync: bool) -> None:
    guard = BudgetMiddleware(Budget(seconds=60))
    agent = create_agent(Teller(unused), [calculator], middleware=[guard, search(make_table())])
    begun = time.monotonic()
    result = agent.invoke(PUZZLE) if sync else asyncio.run(agent.ainvoke(PUZZLE))
    assert 0 < result["tts_budgets"]["agent"]["usage"]["seconds"] <= time.monotonic() - begun
