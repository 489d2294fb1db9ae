"""Budgets that a caller changes at run time: what is set later counts, what does not exist is refused."""

import asyncio
import re
from collections import UserDict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from tests.nodes.world import GrammarDialect, make_engine, make_graph
from tests.scripts import make_verifier
from tts_agent import BestFirst, Budget
from tts_agent.errors import ConfigError, LogError
from tts_agent.middleware import PlanSearchMiddleware
from tts_agent.nodes import (
    PlanState,
    SharedBudget,
    TTSContext,
    create_planning_agent,
    make_expand_node,
    make_plan_node,
)
from tts_agent.nodes.overrides import overridden

GO: Any = {"messages": [HumanMessage("go")]}
SETTINGS: dict[str, Any] = {"strategy": BestFirst(k=2), "solvable": False, "budget": Budget(calls=20, seconds=900)}


def used(result: Any, limit: int) -> bool:
    """Whether the search ended because of a limit of so many calls: what it used is as near as one more round."""
    outcome = result["tts"]["outcome"]
    return outcome["limit"] == "calls" and limit - 2 <= outcome["usage"]["calls"] <= limit


def run(how: str, *, context: Any = None, configurable: Any = None) -> Any:
    agent = make_graph(make_engine(), **SETTINGS).compile()
    config: Any = {"configurable": configurable or {}}
    return (
        agent.invoke(GO, config, context=context)
        if how == "sync"
        else asyncio.run(agent.ainvoke(GO, config, context=context))
    )


@pytest.mark.parametrize("how", ["sync", "async"])
def test_what_is_set_later_counts_and_the_rest_stays(how: str) -> None:
    assert used(run(how), 20)
    every = {"*": {"calls": 12}}
    assert used(run(how, context={"tts": every}), 12)
    assert used(run(how, context={"tts": {**every, "plan": {"calls": 10}}}), 10)
    assert used(run(how, context={"tts": {"plan": {"calls": 10}}}, configurable={"tts": every}), 12)
    both = {"tts": {**every, "plan": {"calls": 8}}}
    result = run(how, context={"tts": {"plan": {"calls": 10}}}, configurable=both)
    assert used(result, 8)
    # Only what is named changes.
    result = run(how, context={"tts": {"plan": {"calls": None, "generated_tokens": 60}}})
    assert result["tts"]["outcome"]["limit"] == "generated_tokens"


@dataclass
class Mine:
    """A context of the user's own."""

    customer: str = "c"
    tts: dict[str, Any] = field(default_factory=dict)


def test_a_context_of_ones_own_will_do() -> None:
    engine = make_engine()
    graph = StateGraph(PlanState, Mine)
    node = make_plan_node(
        engine, dialect=GrammarDialect(engine), **{k: v for k, v in SETTINGS.items() if k != "solvable"}
    )
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    assert used(graph.compile().invoke(GO, context=Mine(tts={"plan": {"calls": 6}})), 6)


@pytest.mark.parametrize("staged", [False, True])
def test_the_agent_shows_its_budgets_in_its_schema_and_obeys_them_in_every_stage(staged: bool) -> None:
    engine = make_engine()

    agent = create_planning_agent(
        engine,
        dialect=GrammarDialect(engine, solvable=False),
        tools=[print_it],
        staged=staged,
        strategy=BestFirst(k=2),
        verifier=make_verifier(engine),
        budget=Budget(calls=20),
    ).compile()
    schema = agent.get_context_jsonschema()
    assert schema is not None and "generated_tokens" in str(schema)
    result = agent.invoke(GO, {"recursion_limit": 200}, context=TTSContext(tts={"plan": {"calls": 9}}))
    assert used(result, 9)
    result = agent.invoke(GO, {"recursion_limit": 200}, context={"tts": {"run": {"calls": 7}}})
    assert used(result, 7)


def print_it(text: str) -> str:
    """Print it."""
    return text


@pytest.mark.parametrize(
    ("tts", "message"),
    [
        ({"plam": {"calls": 5}}, "names \\['plam'\\], which have no budget here; known: .*plan"),
        ({"plan": {"cals": 5}}, "context.tts\\['plan'\\]: unknown budget fields \\['cals'\\]; known: calls"),
        ({"*": {"calls": -5}}, "context.tts\\['\\*'\\]: budget calls=-5"),
        ({1: {"calls": 5}, "x": {}, None: {}}, "names \\[1, None, 'x'\\], which have no budget here; known: .*plan"),
        ({"plan": {"cals": 5, 1: 5}}, "context.tts\\['plan'\\]: unknown budget fields \\[1, 'cals'\\]; known: calls"),
        ({"plan": 5}, "must map names"),
        ([5], "must map names"),
        (5, "must map names"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(tts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("sync", context={"tts": tts})
    with pytest.raises(ConfigError, match=message.replace("context.tts", ".*")):
        run("async", configurable={"tts": tts})


KEYS = st.one_of(st.sampled_from(["*", "run", "calls", "seconds"]), st.text(max_size=3), st.integers(), st.none())


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, st.one_of(st.integers(1, 9), st.none()), max_size=3), max_size=3))
def test_whatever_a_caller_writes_is_a_budget_or_an_error_of_ours(tts: dict[Any, Any]) -> None:
    try:
        assert isinstance(overridden(Budget(calls=9), "run", {"configurable": {"tts": tts}}), Budget)
    except ConfigError as error:
        assert "config['configurable']['tts']" in str(error)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"plan": {"calls": 5}}, r"did you mean context=\{'tts': \{'plan': \{'calls': 5\}\}\}"),
        ({"*": {"calls": 5, "seconds": 2}, "customer": "c"}, r"under 'tts'; did you mean context=\{'tts': \{'\*': "),
        ({"run": {"dollars": 1.5}, "tts": None}, r"did you mean context=\{'tts': \{'run': "),
        *(
            (context, "is no context: one with budgets is a mapping with 'tts' or an object with an attribute `tts`")
            for context in ("x", b"x", 5, 1.5, True, ["tts"], ("tts",), {"tts"})
        ),
    ],
)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_context_that_means_budgets_and_has_none_is_refused(how: str, context: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(how, context=context)


class Tenant(NamedTuple):
    """A context that is a tuple of the user's own."""

    name: str
    tts: Any = None


class Region(StrEnum):
    """A context that is a text of the user's own."""

    NORTH = "north"


@pytest.mark.parametrize(
    "context",
    [
        None,
        {},
        {"customer": "c", "limits": {"calls": 3}, 5: {"calls": 3}, "plan": {"colour": "blue"}, "run": {}, "*": "all"},
        {"plan": {"calls": 3, "tier": "gold"}, "tts": {}},
        UserDict(customer="c"),
        Mine(),
        Tenant("c"),
        Region.NORTH,
        object(),
    ],
)
def test_a_context_of_any_other_shape_changes_nothing(context: Any) -> None:
    assert used(run("sync", context=context), 20)


def test_a_context_that_another_graph_would_read_as_budgets_changes_nothing() -> None:
    other = make_graph(make_engine(), name="billing", **SETTINGS)
    assert used(run("sync", context={"billing": {"calls": 3}}), 20)
    with pytest.raises(ConfigError, match="did you mean"):
        other.compile().invoke(GO, context={"billing": {"calls": 3}})


def test_a_tuple_of_ones_own_may_have_budgets() -> None:
    assert used(run("sync", context=Tenant("c", tts={"plan": {"calls": 8}})), 8)


@pytest.mark.parametrize("name", ["", "*", "run"])
def test_no_step_is_named_like_what_means_something_else(name: str) -> None:
    class Named(PlanSearchMiddleware):
        @property
        def name(self) -> str:
            return name

    engine = make_engine()
    settings: dict[str, Any] = {"dialect": GrammarDialect(engine), "budget": Budget(calls=9), "name": name}
    for make in (
        lambda: make_plan_node(engine, **settings),
        lambda: make_expand_node(engine, **settings),
        lambda: Named(2),
    ):
        with pytest.raises(ConfigError, match=f"name='{re.escape(name)}' is no name of its own.*choose another name"):
            make()
    if name == "run":
        assert SharedBudget(Budget(calls=9), name=name).name == SharedBudget(Budget(calls=9)).name
    else:
        with pytest.raises(ConfigError, match="is no name of its own"):
            SharedBudget(Budget(calls=9), name=name)


@pytest.mark.parametrize("name", [None, 5, b"plan"])
def test_a_name_is_a_text(name: Any) -> None:
    with pytest.raises(ConfigError, match="must be a text"):
        make_graph(make_engine(), name=name)
    with pytest.raises(ConfigError, match="must be a text"):
        SharedBudget(Budget(calls=9), name=name)


def test_names_are_known_as_long_as_their_nodes_live() -> None:
    graph = make_graph(make_engine(), name="short_lived", **SETTINGS)
    config: Any = {"configurable": {"tts": {"short_lived": {"calls": 3}}}}
    assert overridden(None, "short_lived", config) == Budget(calls=3)
    assert overridden(Budget(calls=9), "plan", config) == Budget(calls=9)
    del graph
    import gc

    gc.collect()
    with pytest.raises(ConfigError, match="short_lived"):
        overridden(None, "plan", config)


def test_a_strategy_without_end_is_not_left_without_a_limit() -> None:
    with pytest.raises(ConfigError, match="goes on until a budget stops it"):
        agent = make_graph(make_engine(), strategy=BestFirst(max_expansions=None), budget=Budget(calls=9)).compile()
        agent.invoke(GO, context={"tts": {"plan": {"calls": None}}})


@dataclass
class MyState:
    messages: Annotated[list[Any], add_messages]
    tts: dict[str, Any] | None = None
    topic: str = ""


def test_a_state_of_any_shape_is_read_and_one_without_messages_is_refused() -> None:
    engine = make_engine()
    node = make_plan_node(engine, dialect=GrammarDialect(engine), budget=Budget(calls=9))
    graph = StateGraph(MyState)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    assert graph.compile().invoke(GO)["tts"]["outcome"]["decision"]
    for state in ({"topic": "x"}, {"messages": None}, object()):
        with pytest.raises(ConfigError, match="no list of 'messages'"):
            node.invoke(state)  # type: ignore[arg-type]


def test_an_unknown_version_in_the_state_is_refused() -> None:
    agent = make_graph(make_engine(), **SETTINGS).compile()
    with pytest.raises(LogError, match="version 99"):
        agent.invoke({**GO, "tts": {"version": 99}})
