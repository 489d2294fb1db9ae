"""A step goes on from any checkpointer, in its own branch of history, and from what it can read alone."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy

from tests.nodes.savers import async_saver_at, saver_at
from tests.nodes.table import make_engine as make_player
from tests.nodes.victim import stored
from tests.nodes.world import STRATEGIES, make_engine, make_graph
from tools.calculator import calculator
from tts_agent import BestFirst, Budget, ScriptedEngine, Usage
from tts_agent.engines import Fault
from tts_agent.errors import ConfigError, EngineUnavailable, LogError
from tts_agent.events import VERSION, Sampled
from tts_agent.nodes import PlanState, create_planning_agent
from tts_agent.nodes.journal import is_chunk
from tts_agent.nodes.state import VERSION as STATE_VERSION
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect
from tts_agent.trace.recorder import read

GO: Any = {"messages": [HumanMessage("go")]}
PUZZLE: Any = {"messages": [HumanMessage("Make 24 from 8 5 3 1")]}
OUTAGE = {place: Fault("refused") for place in range(6, 14)}
"""From the seventh request on, eight are refused: two at once and the same two again raise the outage, twice."""
ROOT = Path(__file__).parents[2]


def thread() -> Any:
    return {"configurable": {"thread_id": uuid4().hex}}


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where checkpoints go."""
    if request.param == "postgres":
        yield request.getfixturevalue("postgres")
    else:
        yield "memory" if request.param == "memory" else str(tmp_path / "checkpoints.db")


def broken(**settings: Any) -> tuple[ScriptedEngine, StateGraph[Any]]:
    """A graph whose engine gives up twice."""
    engine = make_engine(faults=OUTAGE)
    chosen: dict[str, Any] = {"strategy": STRATEGIES["best_first"], "verifier": None, "flush_events": 8}
    return engine, make_graph(engine, **(chosen | settings))


def goes_on(invoke: Callable[[Any], Any], engine: ScriptedEngine, trace: Path) -> None:
    """The graph fails twice, and ends with an exact account."""
    for value in (GO, None):
        with pytest.raises(EngineUnavailable):
            invoke(value)
    totals = invoke(None)["tts"]["totals"]
    assert totals["usage"]["prompt_computed"] == engine.served.prompt_computed
    assert totals["usage"]["generated"] == engine.served.generated
    log = [log for log in read(trace) if log.complete][-1]
    sampled = [event.thought.id for event in log.events if isinstance(event, Sampled)]
    assert len(sampled) == len(set(sampled))


def test_a_step_goes_on_from_any_checkpointer(address: str, tmp_path: Path) -> None:
    engine, graph = broken(trace=tmp_path / "trace.jsonl")
    with saver_at(address) as saver:
        agent, config = graph.compile(checkpointer=saver), thread()
        goes_on(lambda value: agent.invoke(value, config), engine, tmp_path / "trace.jsonl")


def test_an_asynchronous_step_goes_on_from_any_checkpointer(address: str, tmp_path: Path) -> None:
    engine, graph = broken(trace=tmp_path / "trace.jsonl")

    async def main() -> None:
        async with async_saver_at(address) as saver:
            agent, config = graph.compile(checkpointer=saver), thread()
            for value in (GO, None):
                with pytest.raises(EngineUnavailable):
                    await agent.ainvoke(value, config)
            totals = (await agent.ainvoke(None, config))["tts"]["totals"]
            assert totals["usage"]["prompt_computed"] == engine.served.prompt_computed

    asyncio.run(main())


def test_what_a_retried_attempt_spent_is_known_to_the_next_process(address: str, tmp_path: Path) -> None:
    """LangGraph stores what a retry does apart from the first attempt, and gives it back to nobody."""
    trace, config = tmp_path / "trace.jsonl", thread()

    def retried(engine: ScriptedEngine, saver: Any) -> Any:
        settings: dict[str, Any] = {"strategy": STRATEGIES["best_first"], "verifier": None, "flush_events": 8}
        node = make_graph(engine, trace=trace, **settings).nodes["plan"].runnable
        graph: StateGraph[Any] = StateGraph(PlanState)
        graph.add_node("plan", node, retry_policy=RetryPolicy(initial_interval=0.01, max_attempts=2))
        graph.add_edge(START, "plan")
        graph.add_edge("plan", END)
        return graph.compile(checkpointer=saver)

    first, second = make_engine(faults=OUTAGE), make_engine()
    with saver_at(address) as saver, pytest.raises(EngineUnavailable):
        retried(first, saver).invoke(GO, config)
    assert len(first.requests) > 11  # both attempts failed
    with saver_at(address) if address != "memory" else nullcontext(saver) as saver:
        totals = retried(second, saver).invoke(None, config)["tts"]["totals"]
    for unit in ("prompt_computed", "generated"):
        assert totals["usage"][unit] == getattr(first.served, unit) + getattr(second.served, unit)
    log = [log for log in read(trace) if log.complete][-1]
    sampled = [event.thought.id for event in log.events if isinstance(event, Sampled)]
    assert len(sampled) == len(set(sampled))


def test_a_review_is_answered_from_any_checkpointer(address: str) -> None:
    engine = make_engine()
    graph = make_graph(engine, solvable=False, strategy=BestFirst(k=3), budget=Budget(calls=30), review=2)
    with saver_at(address) as saver:
        agent, config = graph.compile(checkpointer=saver), thread()
        agent.invoke(GO, config)
        asked = agent.invoke(Command(resume={"more": {"calls": 30}}), config)["__interrupt__"][0].value
        requests = len(engine.requests)
        second = asked["candidates"][1]
        result = agent.invoke(Command(resume={"choose": second["choice"]}), config)
    assert result["messages"][-1].text == second["content"] and len(engine.requests) == requests


class Forgets(InMemorySaver):
    """A saver of a process that died after a search had ended and before the graph had its result."""

    died = False

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        if not self.died and any(channel == "tts" for channel, _ in writes):
            self.died = True
            raise SystemExit("the machine goes down")
        super().put_writes(config, writes, task_id, task_path)


@pytest.mark.parametrize("edit", [None, "mine"])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_search_that_ended_before_the_graph_had_its_result_is_told_again(asynchronous: bool, edit: Any) -> None:
    def run(saver: InMemorySaver) -> tuple[ScriptedEngine, Any]:
        engine = make_engine()
        agent, config = make_graph(engine, review=1 if edit else None).compile(checkpointer=saver), thread()

        def invoke(value: Any) -> Any:
            return asyncio.run(agent.ainvoke(value, config)) if asynchronous else agent.invoke(value, config)

        values = [GO, *([Command(resume={"edit": {"content": edit}})] if edit else [])]
        for value in values:
            try:
                result = invoke(value)
            except SystemExit:
                asked = len(engine.requests)
                result = invoke(None)
                assert len(engine.requests) == asked
        return engine, result

    saver = Forgets()
    (engine, told), (_, whole) = run(saver), run(InMemorySaver())
    assert saver.died and engine.requests
    assert told["messages"][-1].text == whole["messages"][-1].text
    del told["tts"]["message"], whole["tts"]["message"]  # ids of messages are drawn anew
    assert told["tts"] == whole["tts"]


# --- branches of history


def player() -> tuple[ScriptedEngine, StateGraph[Any, Any, Any, Any]]:
    """An agent that plays a puzzle in three decisions."""
    engine = make_player()
    dialect = CountdownDialect(engine)
    settings: dict[str, Any] = {"strategy": BestFirst(k=4, max_expansions=6), "verifier": countdown_verifier(engine)}
    return engine, create_planning_agent(engine, dialect=dialect, tools=[calculator], **settings)


def before_step(agent: Any, config: Any, number: int) -> Any:
    """The checkpoint that planning step `number` began from."""
    history = [saved for saved in agent.get_state_history(config) if saved.next == ("plan",)]
    return history[-number]


def computed(totals: Any) -> int:
    return Usage.from_json(totals["usage"]).computed


def test_a_fork_with_another_history_has_a_search_of_its_own(address: str) -> None:
    engine, graph = player()
    with saver_at(address) as saver:
        agent, config = graph.compile(checkpointer=saver), thread()
        first = agent.invoke(PUZZLE, config)
        end = agent.get_state(config).config
        second = before_step(agent, config, 2)
        (answer,) = [message for message in second.values["messages"] if isinstance(message, ToolMessage)]
        other = ToolMessage("7", tool_call_id=answer.tool_call_id, id=answer.id)
        forked = agent.update_state(second.config, {"messages": [other]}, as_node="act")
        before = engine.served.computed
        branch = agent.invoke(None, forked)
        own = engine.served.computed - before
        assert [m.text for m in branch["messages"] if m.id == answer.id] == ["7"]
        assert "7" in branch["messages"][3].text
        assert agent.get_state(end).values["messages"] == first["messages"]
        assert agent.get_state(end).values["tts"] == first["tts"]
        # What the branch spent is its own: that of the first step, which both share, and its own steps.
        shared, total = second.values["tts"]["totals"], branch["tts"]["totals"]
        assert own and computed(total) == computed(shared) + own


def test_a_run_from_an_older_checkpoint_decides_the_same_again(address: str) -> None:
    engine, graph = player()
    with saver_at(address) as saver:
        agent, config = graph.compile(checkpointer=saver), thread()
        first = agent.invoke(PUZZLE, config)
        second = before_step(agent, config, 2)
        again = agent.invoke(None, second.config)
        assert [message.text for message in again["messages"]] == [message.text for message in first["messages"]]
        assert again["tts"]["totals"]["usage"] == first["tts"]["totals"]["usage"]


def test_a_review_is_answered_in_two_ways_in_two_branches(address: str) -> None:
    engine = make_engine()
    graph = make_graph(engine, solvable=False, strategy=BestFirst(k=3), budget=Budget(calls=30), review=2)
    with saver_at(address) as saver:
        agent, config = graph.compile(checkpointer=saver), thread()
        question = agent.invoke(GO, config)["__interrupt__"][0].value
        asked = agent.get_state(config).config
        one, other = question["candidates"]
        first = agent.invoke(Command(resume={"choose": one["choice"]}), config)
        ended = agent.get_state(config).config
        assert agent.invoke(None, asked)["__interrupt__"][0].value == question  # the branch searches for itself
        second = agent.invoke(Command(resume={"choose": other["choice"]}), config)
        assert [first["messages"][-1].text, second["messages"][-1].text] == [one["content"], other["content"]]
        assert agent.get_state(ended).values["messages"] == first["messages"]
        assert second["tts"]["totals"] == first["tts"]["totals"]


# --- what can be read


def test_strict_msgpack_everywhere(tmp_path: Path) -> None:
    """The environment's switch is read when LangGraph is imported, so a process of its own runs with it."""
    tests = ["test_resume.py::test_a_step_goes_on_from_any_checkpointer[sqlite]"]
    tests += ["test_review.py::test_each_process_of_a_long_review_begins_anew"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/nodes/{test}" for test in tests)],
        cwd=ROOT,
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_review_passes_a_strict_serializer() -> None:
    saver = InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
    graph = make_graph(make_engine(), solvable=False, strategy=BestFirst(k=3), budget=Budget(calls=30), review=2)
    agent, config = graph.compile(checkpointer=saver), thread()
    agent.invoke(GO, config)
    agent.invoke(Command(resume={"more": {"calls": 20}}), config)
    result = agent.invoke(
        Command(resume={"edit": {"content": "mine", "tool_calls": [{"name": "f", "args": {"a": [1]}}]}}), config
    )
    assert result["messages"][-1].tool_calls[0]["args"] == {"a": [1]}


class Altered(InMemorySaver):
    """A saver in which, once it is `old`, the journal of another release lies, which had no turns yet."""

    old = False

    def get_tuple(self, config: Any) -> Any:
        saved = super().get_tuple(config)
        for _, _, value in (saved.pending_writes or ()) if saved is not None and self.old else ():
            if is_chunk(value):
                del value["turn"]
                value["events"][0]["version"] = 99
        return saved


def test_a_journal_of_another_version_is_refused_and_nothing_is_sampled() -> None:
    saver, config = Altered(), thread()
    _, graph = broken()
    with pytest.raises(EngineUnavailable):
        graph.compile(checkpointer=saver).invoke(GO, config)
    assert [value for value in stored(saver, config) if is_chunk(value)]
    saver.old = True
    engine = make_engine()
    again = make_graph(engine, strategy=STRATEGIES["best_first"], verifier=None)
    with pytest.raises(LogError, match=f"this log has version 99; this release reads version {VERSION}"):
        again.compile(checkpointer=saver).invoke(None, config)
    assert not engine.requests


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"name": "another"}, "another engine: 'scripted', not 'another'"),
        ({"strategy": BestFirst(k=9)}, "another settings"),
        ({"verified": True}, "another verifier"),
    ],
)
def test_a_search_is_resumed_by_what_it_was_begun_with(settings: dict[str, Any], what: str) -> None:
    saver, config = InMemorySaver(), thread()
    _, graph = broken()
    with pytest.raises(EngineUnavailable):
        graph.compile(checkpointer=saver).invoke(GO, config)
    engine = make_engine(name=settings.pop("name", "scripted"))
    chosen: dict[str, Any] = {"strategy": STRATEGIES["best_first"]}
    if not settings.pop("verified", False):
        chosen["verifier"] = None
    again = make_graph(engine, **(chosen | settings))
    with pytest.raises(LogError, match=what):
        again.compile(checkpointer=saver).invoke(None, config)
    assert not engine.requests


def test_a_memory_of_another_version_is_refused() -> None:
    engine, graph = player()
    agent = graph.compile(checkpointer=InMemorySaver())
    config = thread()
    agent.invoke(PUZZLE, config)
    second = before_step(agent, config, 2)
    old = {**second.values["tts"], "version": 99}
    forked = agent.update_state(second.config, {"tts": old}, as_node="act")
    asked = len(engine.requests)
    with pytest.raises(LogError, match=f"tts version 99; this release reads version {STATE_VERSION}"):
        agent.invoke(None, forked)
    assert len(engine.requests) == asked


def test_a_state_without_messages_is_refused() -> None:
    engine = make_engine()
    node = make_graph(engine).nodes["plan"].runnable
    graph: StateGraph[Any] = StateGraph(dict)
    graph.add_node("plan", node)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    with pytest.raises(ConfigError, match=r"no list of 'messages', but \['question'\]; plan in a graph over PlanState"):
        graph.compile().invoke({"question": "go"})
    assert not engine.requests


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_what_a_step_leaves_is_stored_once_and_read_back_however_it_is_stored(durability: Any, tmp_path: Path) -> None:
    path, (_, graph) = tmp_path / "checkpoints.db", player()
    with saver_at(str(path)) as saver:
        agent, config = graph.compile(checkpointer=saver), thread()
        assert agent.get_state(config).values == {}
        for _ in range(4):  # a snapshot is due in between
            result = agent.invoke(PUZZLE, config, durability=durability)
            assert agent.get_state(config).values["tts"] == result["tts"]
        told = [saved.values.get("tts", {}).get("step") for saved in agent.get_state_history(config)]
        assert told[0] == result["tts"]["step"]
    with sqlite3.connect(path) as database:
        held = database.execute("select count(*) from checkpoints where instr(checkpoint, 'outcome') > 0").fetchone()[0]
    assert held <= (4 if durability == "exit" else len(told) // 4)
