"""The planning node in a LangGraph graph: sync and async, streaming, failure and resume, what is stored."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy

from tests.nodes.world import BUDGET, STRATEGIES, GrammarDialect, make_engine, make_graph
from tests.scripts import make_verifier
from tts_agent import Beam, BestFirst, Budget, ScriptedEngine, ThoughtTree
from tts_agent.engines import Fault
from tts_agent.errors import EngineUnavailable
from tts_agent.events import Granted, Lost, Sampled
from tts_agent.nodes import PlanState, make_plan_node
from tts_agent.trace.recorder import read

GO: Any = {"messages": [HumanMessage("go")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}
OUTAGE = {place: Fault("refused") for place in range(6, 14)}
"""From the seventh request on, eight are refused: two at once and the same two again raise the outage, twice."""


def tree(trace: Path) -> list[dict[str, object]]:
    return ThoughtTree([log for log in read(trace) if log.complete][-1].events).to_json()


def test_sync_and_async_and_inside_a_running_loop_give_the_same(tmp_path: Path) -> None:
    def run(name: str, how: Callable[[Any], Any]) -> Any:
        agent = make_graph(make_engine(), trace=tmp_path / name).compile()
        return how(agent)["tts"]["outcome"], tree(tmp_path / name)

    async def blocking(agent: Any) -> Any:
        return agent.invoke(GO)

    sync = run("sync", lambda agent: agent.invoke(GO))
    assert run("async", lambda agent: asyncio.run(agent.ainvoke(GO))) == sync
    assert run("loop", lambda agent: asyncio.run(blocking(agent))) == sync


async def test_it_runs_without_a_graph_around_it() -> None:
    engine = make_engine()
    node = make_plan_node(engine, dialect=GrammarDialect(engine), verifier=make_verifier(engine), budget=BUDGET)
    update = await node.ainvoke(GO)
    assert isinstance(update["messages"][0], AIMessage)
    assert node.invoke(GO)["tts"]["outcome"] == update["tts"]["outcome"]


@pytest.mark.parametrize("saver", [None, InMemorySaver()])
async def test_the_updates_stream_shows_one_update_for_a_planning_step(saver: Any) -> None:
    agent = make_graph(make_engine(), flush_events=3).compile(checkpointer=saver)
    updates = [update async for update in agent.astream(GO, THREAD, stream_mode="updates")]
    assert [list(update) for update in updates] == [["plan"]]


def test_nothing_is_granted_without_a_checkpointer_or_when_it_writes_at_the_exit(tmp_path: Path) -> None:
    for name, saver, durability, granted in (
        ("none", None, None, False),
        ("exit", InMemorySaver(), "exit", False),
        ("async", InMemorySaver(), "async", True),
        ("sync", InMemorySaver(), "sync", True),
    ):
        agent = make_graph(make_engine(), trace=tmp_path / name).compile(checkpointer=saver)
        agent.invoke(GO, THREAD, durability=durability)
        grants = [event for event in read(tmp_path / name)[0].events if isinstance(event, Granted)]
        assert any(limit is not None for grant in grants for limit in grant.ceiling) is granted, name


class Outage:
    """A planning node whose engine gives up once, and what is known about the run afterwards."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.engine = make_engine(faults=OUTAGE)
        self.trace = folder / "trace.jsonl"
        self.graph = make_graph(
            self.engine,
            strategy=STRATEGIES["best_first"],
            verifier=None,
            trace=self.trace,
            flush_events=8,
            **settings,
        )

    def check(self, result: Any) -> None:
        """The account is exact over both runs, nothing was charged as lost but what the engine lost."""
        totals = result["tts"]["totals"]
        assert totals["usage"].get("prompt_computed", 0) == self.engine.served.prompt_computed
        assert totals["usage"].get("generated", 0) == self.engine.served.generated
        log = [log for log in read(self.trace) if log.complete][-1]
        assert not any(event.amounts.generated_tokens for event in log.events if _killed(event))
        sampled = [event.thought.id for event in log.events if isinstance(event, Sampled)]
        assert len(sampled) == len(set(sampled))


def _killed(event: object) -> bool:
    return isinstance(event, Lost) and event.reason == "killed"


def test_after_an_outage_the_step_goes_on_where_it_was(tmp_path: Path) -> None:
    outage = Outage(tmp_path)
    agent = outage.graph.compile(checkpointer=InMemorySaver())
    with pytest.raises(EngineUnavailable, match="3 requests in a row"):
        agent.invoke(GO, THREAD)
    asked = len(outage.engine.requests)
    with pytest.raises(EngineUnavailable):
        agent.invoke(None, THREAD)
    assert asked < len(outage.engine.requests)
    outage.check(agent.invoke(None, THREAD))


async def test_after_an_outage_an_async_run_goes_on_in_sqlite(tmp_path: Path) -> None:
    outage = Outage(tmp_path)
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
        agent = outage.graph.compile(checkpointer=saver)
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await agent.ainvoke(GO if not outage.engine.requests else None, THREAD)
        outage.check(await agent.ainvoke(None, THREAD))


@pytest.mark.parametrize("saver", [None, InMemorySaver()])
def test_a_retry_policy_of_the_graph_neither_samples_nor_pays_again(saver: Any, tmp_path: Path) -> None:
    outage = Outage(tmp_path)
    graph = StateGraph(PlanState)
    policy = RetryPolicy(initial_interval=0.01, max_attempts=4)
    graph.add_node("plan", outage.graph.nodes["plan"].runnable, retry_policy=policy)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    outage.check(graph.compile(checkpointer=saver).invoke(GO, THREAD))


class LosesWrites(InMemorySaver):
    """A saver whose process died before some of the tasks' results were stored, and later ones were."""

    lost: frozenset[int] = frozenset()
    seen = 0

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        if any(isinstance(value, dict) and "after" in value for _, value in writes):
            self.seen += 1
            if self.seen in self.lost:
                return
        super().put_writes(config, writes, task_id, task_path)


class Died(Exception):
    """Stands for the end of a process."""


class Dying:
    """An engine whose process dies with its tenth request."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine, self._asked = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def sample(self, *arguments: Any, **options: Any) -> Any:
        self._asked += 1
        if self._asked > 9:
            raise Died
        return self._engine.sample(*arguments, **options)


@pytest.mark.parametrize("lost", [{2}, {3}, {3, 5}])
def test_a_chunk_whose_predecessor_was_lost_is_passed_over(lost: set[int], tmp_path: Path) -> None:
    saver = LosesWrites()
    # Roomy grants: the search seldom waits for the saver, so that chunks are lost between stored ones.
    settings: dict[str, Any] = {"strategy": STRATEGIES["best_first"], "grant": 0.4, "flush_events": 6}
    dying = Dying(make_engine())
    broken = make_graph(dying, **settings)
    saver.lost = frozenset(lost)
    with pytest.raises(Died):
        broken.compile(checkpointer=saver).invoke(GO, THREAD)
    saver.lost = frozenset()
    engine = make_engine()
    agent = make_graph(engine, trace=tmp_path / "trace.jsonl", **settings).compile(checkpointer=saver)
    result = agent.invoke(None, THREAD)
    make_graph(make_engine(), trace=tmp_path / "whole.jsonl", **settings).compile().invoke(GO)
    assert tree(tmp_path / "trace.jsonl") == tree(tmp_path / "whole.jsonl")
    assert result["tts"]["totals"]["lost"]["computed_tokens"] > 0


def test_strict_serialization_has_nothing_to_refuse(caplog: pytest.LogCaptureFixture) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    saver = InMemorySaver(serde=strict)
    engine = make_engine(faults=OUTAGE)
    graph = make_graph(engine, strategy=STRATEGIES["best_first"], verifier=None, flush_events=8)
    agent = graph.compile(checkpointer=saver)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                agent.invoke(None if saver.storage else GO, THREAD)
        agent.invoke(None, THREAD)
        stored = [write for saved in saver.list(None) for write in saved.pending_writes or ()]
    assert any("after" in value for _, _, value in stored if isinstance(value, dict))
    assert not [record for record in caplog.records if "serial" in record.getMessage().lower()]
    assert agent.get_state(THREAD).values["tts"]["outcome"]["stop"] == "converged"


def test_a_checkpoint_holds_the_log_once_and_stays_small(tmp_path: Path) -> None:
    engine = make_engine()
    graph = make_graph(engine, strategy=Beam(k=12, keep=10), solvable=False, budget=Budget(computed_tokens=200_000))
    with SqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
        result = graph.compile(checkpointer=saver).invoke(GO, THREAD)
    thoughts = result["tts"]["outcome"]["thoughts"]
    assert thoughts > 300
    assert (tmp_path / "db").stat().st_size < 1000 * thoughts + 200_000
    assert len(json.dumps(result["tts"])) < 400 * thoughts


async def test_many_steps_run_side_by_side_in_one_process() -> None:
    agents = [make_graph(make_engine(), seed=seed).compile(checkpointer=InMemorySaver()) for seed in range(8)]
    alone = [agent.invoke(GO, {"configurable": {"thread_id": "alone"}})["tts"]["outcome"] for agent in agents]
    together = await asyncio.gather(*(agent.ainvoke(GO, THREAD) for agent in agents))
    assert [result["tts"]["outcome"] for result in together] == alone


def test_a_step_without_any_decision_adds_no_message() -> None:
    engine = make_engine()
    settings: dict[str, Any] = {"strategy": BestFirst(), "budget": Budget(calls=1, commit_tokens=0)}
    result = make_graph(engine, **settings).compile().invoke(GO)
    assert result["tts"]["outcome"]["decision"] is None
    assert len(result["messages"]) == 1
