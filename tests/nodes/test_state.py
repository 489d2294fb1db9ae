"""What a planning step leaves to the next: whose it is, how long it counts, and what is no memory at all."""

import json
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages

from tests.nodes import table
from tests.nodes.world import GrammarDialect, make_engine
from tests.scripts import judge, latency, make_verifier, script
from tools.calculator import calculator
from tts_agent import BestFirst, Budget, ScriptedEngine
from tts_agent.errors import ConfigError, LogError
from tts_agent.nodes import (
    PlanState,
    create_planning_agent,
    make_expand_node,
    make_plan_node,
    make_select_node,
    make_verify_node,
)
from tts_agent.nodes.state import VERSION, Memory
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.countdown import Puzzle, prompt_text
from tts_agent.pocket.dialect import CountdownDialect

THREAD: Any = {"configurable": {"thread_id": "1"}}
PUZZLE = {"messages": [HumanMessage("Make 24 from 8 5 3 1")]}
RUN = Budget(calls=25)
DEAD = "bbb\n"
"""A thought from which nothing can be grown."""


def make_node(engine: Any, **settings: Any) -> Any:
    chosen: dict[str, Any] = {
        "strategy": BestFirst(k=3, parallel=2),
        "verifier": make_verifier(engine),
        "budget": Budget(calls=10),
        "run_budget": RUN,
    }
    return make_plan_node(engine, dialect=GrammarDialect(engine, solvable=False), **(chosen | settings))


class OtherWords(table.CountdownEngine):
    """A model whose vocabulary is as large as the other's, and in which every id means another text."""

    size = len(table.make_engine().encode("")) + len(table._TEXTS)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.size - 1 - token for token in super().encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode([self.size - 1 - token for token in ids])


class TestWhose:
    """Ids mean something to the engine that decided, and to no other one."""

    @staticmethod
    def agent(engine: Any, saver: Any, *, staged: bool, after: str = "act") -> Any:
        agent = create_planning_agent(
            engine,
            dialect=CountdownDialect(engine),
            tools=[calculator],
            strategy=BestFirst(k=3, max_expansions=4),
            verifier=countdown_verifier(engine),
            budget=Budget(calls=40),
            staged=staged,
        )
        return agent.compile(checkpointer=saver, interrupt_after=[after])

    @pytest.mark.parametrize("staged", [False, True])
    def test_another_model_reads_the_history_and_not_the_ids(self, staged: bool) -> None:
        saver, seen = InMemorySaver(), list[str]()

        def listening(prefix: str, seed: int) -> str:
            seen.append(prefix)
            return table.player(prefix, seed)

        first = self.agent(table.make_engine(name="a"), saver, staged=staged).invoke(PUZZLE, THREAD)
        other = OtherWords(listening, judge=table.insight, latency=1.0, name="b")
        second = self.agent(other, saver, staged=staged).invoke(None, THREAD)
        left = table.on_table("nums: 8 5 3 1 target: 24\n" + first["messages"][1].text + "\n")
        assert all(prefix.startswith(prompt_text(Puzzle(left, 24))) for prefix in seen) and seen
        assert second["tts"]["carried"] is False and second["messages"][3].tool_calls
        assert second["tts"]["step"] == 2
        calls = first["tts"]["totals"]["usage"]["calls"]
        assert second["tts"]["totals"]["usage"]["calls"] == calls + other.served.calls

    def test_what_another_model_decided_is_not_remembered_across_a_humans_message(self) -> None:
        engine = table.make_engine(name="a")
        state = self.agent(engine, None, staged=False, after="plan").invoke(PUZZLE)
        state = {**state, "messages": [*state["messages"], HumanMessage("Make 10 from 7 3", id="next")]}
        assert Memory.read(state, engine).decided is not None
        assert Memory.read(state, OtherWords(table.player, name="b")) == Memory(turn="next")


def remove_decision(messages: list[AnyMessage]) -> list[Any]:
    found = [message for message in messages if isinstance(message, AIMessage)]
    return [RemoveMessage(str(found[-1].id))] if found else []


def summarise(messages: list[AnyMessage]) -> list[Any]:
    return [RemoveMessage(REMOVE_ALL_MESSAGES), AIMessage("what was said before")]


def trim(messages: list[AnyMessage]) -> list[Any]:
    return [RemoveMessage(str(message.id)) for message in messages[:-1]]


CHANGES: dict[str, Any] = {
    "nothing": lambda messages: [],
    "remove the decision": remove_decision,
    "summarise": summarise,
    "trim": trim,
    "say": lambda messages: [AIMessage("hm")],
}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(sorted(CHANGES)), st.booleans()), min_size=1, max_size=8))
@example([(False, "nothing", False)] * 8)
@example([(True, "remove the decision", False)] * 8)
@example([(True, "summarise", False)] * 8)
def test_a_run_lasts_until_a_human_writes_whatever_becomes_of_its_messages(
    history: list[tuple[bool, str, bool]],
) -> None:
    decides = True
    engine = ScriptedEngine(lambda *asked: script(*asked) if decides else DEAD, judge=judge, latency=latency)
    node = make_node(engine, budget=Budget(calls=10, commit_tokens=0))
    state: dict[str, Any] = {"messages": add_messages([], [HumanMessage("go")]), "tts": {}}  # type: ignore[arg-type]
    steps = before = 0
    for decides, change, human in history:
        update = node.invoke(state)
        assert decides or not update["messages"]
        state = {"messages": add_messages(state["messages"], update["messages"]), "tts": update["tts"]}
        steps += 1
        assert state["tts"]["step"] == steps
        served = engine.served.calls - before
        assert state["tts"]["totals"]["usage"].get("calls", 0) == served <= 25
        state["messages"] = add_messages(state["messages"], CHANGES[change](state["messages"]))
        if human:
            state["messages"] = add_messages(state["messages"], [HumanMessage("go on")])  # type: ignore[list-item]
            steps, before = 0, engine.served.calls


def test_steps_without_a_decision_spend_one_run_budget_and_draw_anew() -> None:
    drawn: list[tuple[str, int]] = []

    def dead(prefix: str, seed: int) -> str:
        drawn.append((prefix, seed))
        return DEAD

    engine = ScriptedEngine(dead, judge=judge, latency=latency)
    settings: dict[str, Any] = {"strategy": BestFirst(k=2, max_expansions=2), "verifier": None}
    node = make_node(engine, budget=Budget(commit_tokens=0), run_budget=Budget(calls=5), **settings)
    graph: StateGraph[Any] = StateGraph(PlanState)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda state: "plan" if state["tts"]["step"] < 6 else END, ["plan", END])
    result = graph.compile().invoke({"messages": [HumanMessage("go")]})
    assert engine.served.calls == 5 and len(drawn) == len(set(drawn))
    assert result["tts"]["step"] == 6 and result["tts"]["outcome"]["limit"] == "calls"
    assert len(result["messages"]) == 1


def test_messages_without_ids_are_told_apart_by_their_text() -> None:
    engine = ScriptedEngine(lambda *asked: DEAD, judge=judge, latency=latency)
    node = make_node(engine, budget=Budget(calls=4, commit_tokens=0))
    first = node.invoke({"messages": [HumanMessage("go")]})["tts"]
    again = node.invoke({"messages": [HumanMessage("go")], "tts": first})["tts"]
    asked = node.invoke({"messages": [HumanMessage("go"), HumanMessage("more")], "tts": again})["tts"]
    assert [note["step"] for note in (first, again, asked)] == [1, 2, 1]


@cache
def written() -> dict[str, Any]:
    """The state after a planning step that left a subtree."""
    engine = table.make_engine()
    node = make_plan_node(
        engine,
        dialect=CountdownDialect(engine),
        strategy=BestFirst(k=3),
        verifier=countdown_verifier(engine),
        budget=Budget(calls=30),
    )
    update = node.invoke(PUZZLE)
    assert len(update["tts"]["subtree"]) > 2
    return {"messages": [*PUZZLE["messages"], *update["messages"]], "tts": update["tts"]}


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values in `data`."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(place for key, value in inside for place in places(value, (*at, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.data(), JSON)
def test_a_damaged_memory_is_refused_with_a_remedy_or_read(data: Any, value: Any) -> None:
    state: Any = deepcopy(written())
    place = ("tts", *data.draw(st.sampled_from([at for at in places(state["tts"]) if at[:1] != ("outcome",)])))
    around = state
    for key in place[:-1]:
        around = around[key]
    if isinstance(around, dict) and data.draw(st.booleans()):
        del around[place[-1]]
    else:
        around[place[-1]] = value
    try:
        Memory.read(state, table.make_engine())
    except LogError as error:
        assert "set state['tts'] to {} to begin a new run" in str(error)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": "a"}, "step 'a' is no number"),
        ({"step": -1}, "step -1 is no number"),
        ({"message": None}, "message None is no text"),
        ({"totals": 5}, "damaged"),
        ({"totals": {"usage": {"foo": 1}, "lost": {}}}, "unknown usage fields"),
        ({"totals": {"usage": {"calls": "x"}, "lost": {"calls": 1}}}, "totals calls='x' is no amount"),
        ({"totals": {"usage": {}, "lost": {"calls": -1}}}, "totals calls=-1 is no amount"),
        ({"decided": 5}, "damaged"),
        ({"decided": {"kind": "x"}}, "unknown event kind 'x'"),
        ({"decided": {"kind": "pruned", "thought": 1, "reason": ""}}, "'pruned', no thought"),
        ({"prefix": "!!"}, "packed token ids"),
        ({"subtree": 3}, "damaged"),
    ],
)
def test_what_is_damaged_is_said(change: dict[str, Any], reason: str) -> None:
    state = written()
    with pytest.raises(LogError, match=rf"state\['tts'\] is damaged.*{reason}|{reason}.*state\['tts'\] to"):
        Memory.read({**state, "tts": {**state["tts"], **change}}, table.make_engine())


@pytest.mark.parametrize("tts", ["junk", ["a"], 5, {"version": VERSION - 1}])
def test_a_graph_with_another_tts_is_refused_and_goes_on_after_the_remedy(tts: Any) -> None:
    engine = make_engine()
    graph: StateGraph[Any] = StateGraph(PlanState)
    graph.add_node("plan", make_node(engine))
    graph.add_edge(START, "plan")
    agent = graph.compile(checkpointer=InMemorySaver())
    with pytest.raises(LogError, match=r"set state\['tts'\] to \{\}"):
        agent.invoke({"messages": [HumanMessage("go")], "tts": tts}, THREAD)
    assert not engine.requests
    assert agent.invoke({"tts": {}}, THREAD)["tts"]["step"] == 1


def test_the_memory_is_plain_json_and_read_back() -> None:
    state = written()
    assert json.loads(json.dumps(state["tts"])) == state["tts"]
    memory = Memory.read(state, table.make_engine())
    assert memory.step == 1 and memory.decided is not None and memory.subtree and memory.totals.usage.calls
    assert memory.write(table.make_engine()).items() <= state["tts"].items()


class TestKeys:
    """A state of one's own that lacks a key of planning."""

    @staticmethod
    def looping(engine: Any, **settings: Any) -> Any:
        graph: StateGraph[Any] = StateGraph(MessagesState)
        graph.add_node("plan", make_node(engine, **settings))
        graph.add_edge(START, "plan")
        more = {"plan": "plan", END: END}
        graph.add_conditional_edges("plan", lambda state: "plan" if len(state["messages"]) % 4 else END, more)
        return graph.compile(checkpointer=InMemorySaver())

    def test_a_run_budget_is_refused_at_the_second_step_of_a_run_that_cannot_be_remembered(self) -> None:
        engine = make_engine()
        with pytest.raises(ConfigError, match=r"run_budget of node 'plan' cannot hold: the state has no 'tts'"):
            self.looping(engine).invoke({"messages": [HumanMessage("go")]}, THREAD)
        assert engine.served.calls <= 10

    def test_a_run_budget_that_comes_with_the_run_is_refused_too(self) -> None:
        engine = make_engine()
        config = {"configurable": {"thread_id": "1", "tts": {"run": {"calls": 9}}}}
        with pytest.raises(ConfigError, match="cannot hold"):
            self.looping(engine, run_budget=None).invoke({"messages": [HumanMessage("go")]}, config)

    def test_without_a_run_budget_there_is_nothing_that_could_not_hold(self) -> None:
        result = self.looping(make_engine(), run_budget=None).invoke({"messages": [HumanMessage("go")]}, THREAD)
        assert len(result["messages"]) == 4

    def test_every_turn_of_a_human_may_have_one_step(self) -> None:
        graph: StateGraph[Any] = StateGraph(MessagesState)
        graph.add_node("plan", make_node(make_engine()))
        graph.add_edge(START, "plan")
        agent = graph.compile(checkpointer=InMemorySaver())
        for turn in (1, 2):
            assert len(agent.invoke({"messages": [HumanMessage("go")]}, THREAD)["messages"]) == 2 * turn

    def test_what_another_planner_decided_does_not_count(self) -> None:
        graph: StateGraph[Any] = StateGraph(MessagesState)
        for before, name in ((START, "first"), ("first", "second")):
            graph.add_node(name, make_node(make_engine(), name=name))
            graph.add_edge(before, name)
        assert len(graph.compile().invoke({"messages": [HumanMessage("go")]})["messages"]) == 3

    @pytest.mark.parametrize("make", [make_expand_node, make_verify_node, make_select_node])
    def test_a_stage_names_the_key_that_its_state_lacks_before_anything_is_paid(self, make: Any) -> None:
        engine = make_engine()
        graph: StateGraph[Any] = StateGraph(PlanState)
        graph.add_node("stage", make(engine, dialect=GrammarDialect(engine), strategy="greedy"))
        graph.add_edge(START, "stage")
        with pytest.raises(ConfigError, match=r"the state has no 'search'.*StagedState"):
            graph.compile().invoke({"messages": [HumanMessage("go")]})
        assert not engine.requests
