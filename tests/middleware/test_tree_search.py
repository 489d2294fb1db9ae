"""A tree of thoughts in the place of an agent's model call."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from tests.middleware.world import Teller, Uncapped
from tests.nodes.table import CountdownEngine, make_engine
from tools.calculator import calculator
from tts_agent import BestFirst, Budget
from tts_agent.errors import BudgetError, ConfigError
from tts_agent.middleware import BudgetMiddleware, BudgetRefusal, TreeSearchMiddleware
from tts_agent.nodes import create_planning_agent
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect

PUZZLE: Any = {"messages": [HumanMessage("Make 24 from 8 5 3 1")]}


def unused(messages: Any, call: int) -> str:
    raise AssertionError("the agent's own model is not called")


def search(engine: CountdownEngine, **settings: Any) -> TreeSearchMiddleware:
    chosen: dict[str, Any] = {"verifier": countdown_verifier(engine), "budget": Budget(computed_tokens=4000)}
    return TreeSearchMiddleware(engine, dialect=CountdownDialect(engine), **(chosen | settings))


@pytest.mark.parametrize("sync", [True, False])
def test_it_decides_as_a_planning_agent_does_and_carries_over_what_it_found(sync: bool) -> None:
    engine, other = make_engine(), make_engine()
    agent = create_agent(Teller(unused), [calculator], middleware=[search(engine)], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    result = agent.invoke(PUZZLE, config) if sync else asyncio.run(agent.ainvoke(PUZZLE, config))
    planned = create_planning_agent(
        other,
        dialect=CountdownDialect(other),
        tools=[calculator],
        verifier=countdown_verifier(other),
        budget=Budget(computed_tokens=4000),
    )
    expected = planned.compile().invoke(PUZZLE)
    assert [message.text for message in result["messages"]] == [message.text for message in expected["messages"]]
    assert result["messages"][-1].text.endswith("= 24. Solved.")
    assert [m.text for m in result["messages"] if isinstance(m, ToolMessage)] and engine.served == other.served
    assert result["tts"]["totals"]["usage"].get("calls") == expected["tts"]["totals"]["usage"].get("calls")


def test_the_search_is_charged_to_the_budget_around_it_and_ends_with_it() -> None:
    for limit in (6, 1000):
        engine = make_engine()
        guard = BudgetMiddleware(Budget(calls=limit))
        tree = search(engine, budget=Budget(seconds=600), strategy=BestFirst(k=2))
        agent = create_agent(Teller(unused), [calculator], middleware=[guard, tree])
        result = agent.invoke(PUZZLE)
        entry = result["tts_budgets"]["agent"]
        assert entry["usage"]["calls"] == engine.served.calls <= limit
        assert result["messages"][-1].type == "ai" and not result["messages"][-1].tool_calls


async def test_only_decisions_are_in_the_message_stream() -> None:
    agent = create_agent(Teller(unused), [calculator], middleware=[search(make_engine())])
    said = [message async for message, _ in agent.astream(PUZZLE, stream_mode="messages")]
    assert [message.type for message in said] == ["ai", "tool"] * 3 + ["ai"]


def test_without_a_decision_the_agent_says_so() -> None:
    engine = make_engine(script=lambda prefix, seed: "nonsense\n")
    tree = search(engine, strategy=BestFirst(max_expansions=3), budget=Budget(calls=9, commit_tokens=0))
    result = create_agent(Teller(unused), [calculator], middleware=[tree]).invoke(PUZZLE)
    assert result["messages"][-1].text.startswith("I found no next step")


class Fact(BaseModel):
    value: int


@pytest.mark.parametrize("asked", [ToolStrategy(Fact), ProviderStrategy(Fact)])
@pytest.mark.parametrize("sync", [True, False])
def test_without_a_decision_there_is_no_structured_output(sync: bool, asked: Any) -> None:
    engine = make_engine(script=lambda prefix, seed: "nonsense\n")
    tree = search(engine, strategy=BestFirst(max_expansions=3), budget=Budget(calls=9, commit_tokens=0))
    agent = create_agent(Teller(unused), [calculator], middleware=[tree], response_format=asked)
    result = agent.invoke(PUZZLE) if sync else asyncio.run(agent.ainvoke(PUZZLE))
    assert result["messages"][-1].text.startswith("I found no next step")
    assert result.get("structured_response") is None


class Asks(AgentMiddleware[Any, Any, Any]):
    """A human is asked about each decision."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        response = handler(request)
        interrupt("approve?")
        return response

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        response = await handler(request)
        interrupt("approve?")
        return response


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_a_step_whose_node_runs_again_is_charged_for_what_it_made(sync: bool, other: bool, durability: Any) -> None:
    """Where nothing is stored before the graph ends, a step is searched again, and both searches cost."""
    engine, saver, config = make_engine(), InMemorySaver(), {"configurable": {"thread_id": "1"}}
    agents = []
    for _ in range(2):
        middleware = [BudgetMiddleware(Budget(calls=500)), Asks(), search(engine)]
        agents.append(create_agent(Teller(unused), [calculator], middleware=middleware, checkpointer=saver))

    def run(agent: Any, start: Any) -> Any:
        if sync:
            return agent.invoke(start, config, durability=durability)
        return asyncio.run(agent.ainvoke(start, config, durability=durability))

    result, decisions = run(agents[0], PUZZLE), 0
    while "__interrupt__" in result:
        decisions += 1
        # An agent that goes on elsewhere does not hear of a search that nobody stored.
        result = run(agents[decisions % 2 if other and durability == "sync" else 0], Command(resume=True))
    entry = result["tts_budgets"]["agent"]
    assert decisions == 4 and entry["usage"]["calls"] == engine.served.calls and not entry["lost"]


def test_a_step_that_is_searched_twice_is_charged_twice() -> None:
    """An outer middleware may ask for a decision again, and nothing is stored that would be told again."""

    class Twice(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            handler(request)
            return handler(request)

    engine = make_engine()
    middleware = [BudgetMiddleware(Budget(calls=500)), Twice(), search(engine)]
    result = create_agent(Teller(unused), [calculator], middleware=middleware).invoke(PUZZLE)
    assert result["tts_budgets"]["agent"]["usage"]["calls"] == engine.served.calls


def test_a_budget_of_the_run_belongs_around_it() -> None:
    with pytest.raises(ConfigError, match="BudgetMiddleware"):
        search(make_engine(), run_budget=Budget(calls=5))
    with pytest.raises(ConfigError, match="unknown settings"):
        search(make_engine(), steps=5)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("names", [("wide", "narrow"), ("narrow", "wide")])
def test_the_budget_that_leaves_no_room_for_a_decision_is_named(names: tuple[str, str], sync: bool) -> None:
    budgets = {"wide": Budget(calls=500), "narrow": Budget(computed_tokens=20)}

    def run(at_limit: Any) -> Any:
        guards = [BudgetMiddleware(budgets[name], name=name, at_limit=at_limit) for name in names]
        agent = create_agent(Uncapped(unused), [calculator], middleware=[*guards, search(make_engine())])
        return agent.invoke(PUZZLE) if sync else asyncio.run(agent.ainvoke(PUZZLE))

    with pytest.raises(BudgetRefusal, match=r"the computed_tokens limit of budget 'narrow' leaves no room") as refused:
        run("raise")
    assert (refused.value.name, refused.value.budget) == ("narrow", budgets["narrow"])
    result = run("message")
    assert "the budget of 20 computed tokens leaves no room" in result["messages"][-1].text
    assert result["tts_budgets"]["narrow"]["limit"] == "computed_tokens"
    assert not result["tts_budgets"].get("wide", {}).get("limit")


def test_a_step_whose_own_budget_is_too_small_is_a_wrong_setting() -> None:
    for guards in ([], [BudgetMiddleware(Budget(calls=500))]):
        tree = search(make_engine(), budget=Budget(computed_tokens=5))
        agent = create_agent(Teller(unused), [calculator], middleware=[*guards, tree])
        with pytest.raises(BudgetError, match=r"computed_tokens.*cannot pay for the prompt") as refused:
            agent.invoke(PUZZLE)
        assert not isinstance(refused.value, BudgetRefusal)
