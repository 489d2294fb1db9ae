"""One budget for planning nodes and agents of one graph."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from tests.middleware.world import Teller, add, calls
from tests.nodes.world import GrammarDialect
from tests.nodes.world import make_engine as make_grammar
from tts_agent import BestFirst, Budget
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
