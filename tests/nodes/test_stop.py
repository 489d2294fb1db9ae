"""What stops a search from outside: a timeout, a cancelled run, a graph that drains, a handle, a retry."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import GraphDrained, NodeTimeoutError
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import RunControl
from langgraph.types import RetryPolicy, Send, TimeoutPolicy

from graphs.countdown import build
from tests.nodes.table import make_engine as make_player
from tests.nodes.test_stages import make_stages
from tests.nodes.world import BUDGET, GrammarDialect, make_engine, make_graph
from tests.scripts import make_verifier
from tools.calculator import calculator
from tts_agent import Beam, BestFirst, Budget, Prefix, ScriptedEngine, ThoughtTree, Usage, load_engine
from tts_agent.engines.base import Completion
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.engines.scripted import ScriptedStream
from tts_agent.errors import BudgetError, LogError
from tts_agent.events import Deepened, Lost, Sampled, Stopped
from tts_agent.nodes import (
    PlanState,
    SearchHandle,
    SharedBudget,
    create_planner,
    create_planning_agent,
    running_searches,
)
from tts_agent.pocket.dialect import CountdownDialect
from tts_agent.trace.recorder import Log, read

GO: Any = {"messages": [HumanMessage("go")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}


class Watched:
    """A scripted engine, what it was asked to sample, and what of it is under way."""

    def __init__(self, *, pace: float = 0.0, **options: Any) -> None:
        self.seeds: list[int] = []
        self.engine = make_engine(heard=lambda prefix, seed: self.seeds.append(seed), pace=pace, **options)
        self._streams: list[ScriptedStream] = []
        sample = self.engine.sample

        def listening(*arguments: Any, **named: Any) -> ScriptedStream:
            self._streams.append(sample(*arguments, **named))
            return self._streams[-1]

        self.engine.sample = listening  # type: ignore[method-assign]

    @property
    def in_flight(self) -> int:
        """Requests that neither ended nor were aborted."""
        return sum(not stream._ended for stream in self._streams)


def graph_of(engine: ScriptedEngine, *, node: dict[str, Any] | None = None, **settings: Any) -> StateGraph[Any]:
    """A graph of one planning node; `node` are options of `add_node`."""
    graph: StateGraph[Any] = StateGraph(PlanState)
    graph.add_node("plan", make_graph(engine, **settings).nodes["plan"].runnable, **(node or {}))
    graph.add_edge(START, "plan")
    graph.add_edge("plan", END)
    return graph


def last(trace: Path) -> Log:
    return [log for log in read(trace) if log.complete][-1]


def whole(folder: Path, **settings: Any) -> list[dict[str, object]]:
    """The tree of the same search, never stopped."""
    make_graph(make_engine(), trace=folder / "whole.jsonl", **settings).compile().invoke(GO)
    return ThoughtTree(last(folder / "whole.jsonl").events).to_json()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    "timeout",
    [0.4, TimeoutPolicy(run_timeout=0.4, idle_timeout=20.0), TimeoutPolicy(run_timeout=0.4, refresh_on="heartbeat")],
    ids=["seconds", "policy", "heartbeat"],
)
async def test_a_timeout_aborts_what_runs_and_the_step_goes_on_without_paying_twice(
    timeout: Any, tmp_path: Path
) -> None:
    watched = Watched(pace=0.03)
    settings: dict[str, Any] = {"trace": tmp_path / "trace.jsonl", "flush_events": 5}
    agent = graph_of(watched.engine, node={"timeout": timeout}, **settings).compile(checkpointer=InMemorySaver())
    with pytest.raises(NodeTimeoutError):
        await agent.ainvoke(GO, THREAD)
    await until(lambda: not watched.in_flight and not running_searches())  # the graph does not wait for what it cancels
    served = watched.engine.served
    await asyncio.sleep(0.1)
    assert watched.engine.served == served
    result = None
    for _ in range(60):
        try:
            result = await agent.ainvoke(None, THREAD)
            break
        except NodeTimeoutError:
            continue
    assert result is not None
    log = last(tmp_path / "trace.jsonl")
    assert ThoughtTree(log.events).to_json() == whole(tmp_path)
    sampled = [event.thought.id for event in log.events if isinstance(event, Sampled)]
    assert len(sampled) == len(set(sampled))
    totals = result["tts"]["totals"]
    charged = totals["usage"]["generated"] + totals["lost"].get("generated_tokens", 0)
    assert watched.engine.served.generated == charged <= BUDGET.generated_tokens


async def test_a_cancelled_run_aborts_what_runs_and_goes_on_in_another_process(tmp_path: Path) -> None:
    watched, trace = Watched(pace=0.01), tmp_path / "trace.jsonl"
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
        agent = graph_of(watched.engine, flush_events=5, trace=trace).compile(checkpointer=saver)
        run = asyncio.create_task(agent.ainvoke(GO, THREAD))
        await until(lambda: len(watched.seeds) > 15)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await until(lambda: not watched.in_flight and not running_searches())
        other = Watched()  # and another graph: nothing is left but the checkpoint
        stopped = len(watched.seeds)
        result = (
            await graph_of(other.engine, flush_events=5, trace=trace).compile(checkpointer=saver).ainvoke(None, THREAD)
        )
    assert ThoughtTree(last(trace).events).to_json() == whole(tmp_path)
    assert stopped and len(other.seeds) < stopped + len(whole(tmp_path))
    assert result["tts"]["outcome"]["stop"] == "solved"


@pytest.mark.parametrize("barrier", [False, True])
async def test_a_live_search_is_not_idle(barrier: bool) -> None:
    """What arrives counts, not what is stored: chunks are far apart."""
    watched = Watched(pace=0.09)
    policy = TimeoutPolicy(idle_timeout=1.8, refresh_on="heartbeat")
    settings: dict[str, Any] = {"flush_seconds": 60.0, "flush_events": 10_000, "barrier": barrier, "solvable": False}
    agent = graph_of(watched.engine, node={"timeout": policy}, **settings).compile()
    begun = time.monotonic()
    result = await agent.ainvoke(GO)
    assert time.monotonic() - begun > 1.8
    assert result["tts"]["outcome"]["stop"] == "converged"


class Hanging:
    """A stream that says nothing until it is aborted."""

    def __init__(self, stream: ScriptedStream) -> None:
        self._stream, self._released = stream, asyncio.Event()

    def __aiter__(self) -> "Hanging":
        return self

    async def __anext__(self) -> Completion:
        await self._released.wait()
        return await anext(self._stream)

    async def abort(self) -> Usage | None:
        self._released.set()
        return await self._stream.abort()


@pytest.mark.parametrize("refresh_on", ["auto", "heartbeat"])
async def test_an_engine_that_hangs_is_idle_and_what_it_was_asked_is_aborted(refresh_on: Any, tmp_path: Path) -> None:
    watched, trace = Watched(), tmp_path / "trace.jsonl"
    sample = watched.engine.sample

    def hanging(*arguments: Any, **named: Any) -> Any:
        stream = sample(*arguments, **named)
        return stream if len(watched.engine.requests) < 8 else Hanging(stream)

    watched.engine.sample = hanging  # type: ignore[method-assign]
    policy = TimeoutPolicy(idle_timeout=0.5, refresh_on=refresh_on)
    saver = InMemorySaver()
    agent = graph_of(watched.engine, node={"timeout": policy}, trace=trace, flush_events=5).compile(checkpointer=saver)
    with pytest.raises(NodeTimeoutError) as timeout:
        await agent.ainvoke(GO, THREAD)
    assert timeout.value.kind == "idle" and watched.seeds
    await until(lambda: not watched.in_flight and not running_searches())
    result = (
        await graph_of(make_engine(), trace=trace, flush_events=5).compile(checkpointer=saver).ainvoke(None, THREAD)
    )
    assert ThoughtTree(last(trace).events).to_json() == whole(tmp_path)
    assert result["messages"][-1].text


async def test_a_retry_after_a_timeout_waits_for_the_first_attempt_and_samples_nothing_again(tmp_path: Path) -> None:
    watched = Watched(pace=0.03)
    retry = RetryPolicy(max_attempts=60, initial_interval=0.001, backoff_factor=1.0, jitter=False)
    agent = graph_of(
        watched.engine, node={"timeout": 0.4, "retry_policy": retry}, trace=tmp_path / "trace.jsonl", flush_events=5
    ).compile(checkpointer=InMemorySaver())
    result = await agent.ainvoke(GO, THREAD)
    log = last(tmp_path / "trace.jsonl")
    assert ThoughtTree(log.events).to_json() == whole(tmp_path)
    assert any(isinstance(event, Lost) for event in log.events)
    totals = result["tts"]["totals"]
    charged = totals["usage"]["generated"] + totals["lost"].get("generated_tokens", 0)
    assert watched.engine.served.generated == charged


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_graph_that_drains_gets_the_best_so_far(asynchronous: bool) -> None:
    watched, control = Watched(pace=0.02), RunControl()
    agent = graph_of(watched.engine, solvable=False).compile(checkpointer=InMemorySaver())
    threading.Timer(0.4, control.request_drain, ["sigterm"]).start()
    if asynchronous:
        result = asyncio.run(agent.ainvoke(GO, THREAD, control=control))
    else:
        result = agent.invoke(GO, THREAD, control=control)
    outcome = result["tts"]["outcome"]
    assert (outcome["stop"], outcome["cut"]) == ("cancelled", "the graph is draining: sigterm")
    assert outcome["decision"] and result["messages"][-1].text == outcome["decision"]
    assert not watched.in_flight


class Outside:
    """Waits on a thread of its own for a search, and does something to it."""

    def __init__(self, act: Callable[[SearchHandle], None], **named: str) -> None:
        self.found: SearchHandle | None = None
        self._act, self._named = act, named
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        give_up = time.monotonic() + 30
        while self.found is None and time.monotonic() < give_up:
            for handle in running_searches(**self._named):
                if handle.usage.calls > 2:
                    self.found = handle
                    self._act(handle)
            time.sleep(0.002)

    def done(self) -> SearchHandle:
        self._thread.join()
        assert self.found is not None
        return self.found


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_handle_stops_a_search(asynchronous: bool) -> None:
    watched = Watched(pace=0.01)
    agent = graph_of(watched.engine, solvable=False).compile(checkpointer=InMemorySaver())
    outside = Outside(lambda handle: handle.stop("seen enough"), thread="1", node="plan")
    result = asyncio.run(agent.ainvoke(GO, THREAD)) if asynchronous else agent.invoke(GO, THREAD)
    handle = outside.done()
    outcome = result["tts"]["outcome"]
    assert (outcome["stop"], outcome["cut"]) == ("cancelled", "seen enough")
    assert (handle.search, handle.node, handle.thread, handle.done) == ("plan/1", "plan", "1", True)
    assert handle.usage.to_json() == outcome["usage"]
    assert not watched.in_flight and not running_searches()
    handle.stop()  # after the end nothing happens


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_handle_deepens_a_search(asynchronous: bool, tmp_path: Path) -> None:
    watched, trace = Watched(pace=0.01), tmp_path / "trace.jsonl"
    small = Budget(calls=12)
    agent = graph_of(watched.engine, solvable=False, budget=small, trace=trace).compile(checkpointer=InMemorySaver())
    errors: list[BudgetError] = []

    def deepen(handle: SearchHandle) -> None:
        assert 0 < handle.room["calls"] < 12
        try:
            handle.deepen(generated_tokens=5)
        except BudgetError as error:
            errors.append(error)
        handle.deepen(calls=30)

    outside = Outside(deepen, thread="1")
    result = asyncio.run(agent.ainvoke(GO, THREAD)) if asynchronous else agent.invoke(GO, THREAD)
    outside.done()
    assert "the search's own limits: calls" in str(errors[0])
    assert 12 < result["tts"]["outcome"]["usage"]["calls"] <= 42
    assert [event.more for event in last(trace).events if isinstance(event, Deepened)] == [{"calls": 30}]


async def test_searches_side_by_side_are_told_apart() -> None:
    watched = Watched(pace=0.02)
    node = make_graph(watched.engine, solvable=False).nodes["plan"].runnable
    graph: StateGraph[Any] = StateGraph(PlanState)

    async def plan(state: Any, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": (await node.ainvoke(state, config))["messages"]}

    graph.add_node("plan", plan)
    graph.add_conditional_edges(START, lambda state: [Send("plan", GO), Send("plan", GO)], ["plan"])
    agent = graph.compile(checkpointer=InMemorySaver())
    runs = [
        asyncio.create_task(agent.ainvoke(GO, {"configurable": {"thread_id": thread}, "run_id": run}))
        for thread, run in (("a", "00000000-0000-0000-0000-00000000000a"), ("b", None))
    ]
    await until(lambda: len(running_searches()) == 4)
    assert [len(running_searches(thread=thread)) for thread in ("a", "b", "c")] == [2, 2, 0]
    assert len(running_searches(node="other")) == 0
    assert len(running_searches(run="00000000-0000-0000-0000-00000000000a")) == 2
    for handle in running_searches(thread="a"):
        handle.stop()
    await runs[0]
    assert {handle.thread for handle in running_searches()} == {"b"}
    runs[1].cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    await until(lambda: not running_searches() and not watched.in_flight)


async def test_the_embedded_engine_has_nothing_in_use_after_a_cancelled_run() -> None:
    engine = load_engine("embedded://pocket")
    assert isinstance(engine, EmbeddedEngine)
    agent = build(engine, run_budget=Budget(computed_tokens=4000)).compile(checkpointer=InMemorySaver())
    run = asyncio.create_task(agent.ainvoke({"messages": [HumanMessage("Make 197 from 8 5 3 1 2")]}, THREAD))
    await until(lambda: engine.counters.computed > 100)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await until(lambda: not running_searches() and not engine.counters.in_use)
    result = await agent.ainvoke(None, THREAD)
    totals = result["tts"]["totals"]
    charged = totals["lost"].get("computed_tokens", 0) + sum(
        totals["usage"].get(name, 0) for name in ("prompt_computed", "decoded")
    )
    assert engine.counters.computed <= charged <= 4000
    await engine.aclose()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_time_of_a_step_ends_every_one_of_many_side_by_side_with_the_best_so_far(asynchronous: bool) -> None:
    """On a real clock, with one engine for all of them."""
    engine = load_engine("embedded://pocket")
    assert isinstance(engine, EmbeddedEngine)
    plan = build(engine, strategy=BestFirst(k=4), budget=Budget(seconds=2.0), run_budget=None).nodes["plan"].runnable
    puzzles = [f"Make {target} from 8 5 3 1 2 7" for target in range(190, 196)]

    async def together() -> list[Any]:
        return await asyncio.gather(*(plan.ainvoke({"messages": [HumanMessage(puzzle)]}) for puzzle in puzzles))

    if asynchronous:
        updates = asyncio.run(together())
    else:
        with ThreadPoolExecutor(len(puzzles)) as threads:
            updates = list(threads.map(lambda puzzle: plan.invoke({"messages": [HumanMessage(puzzle)]}), puzzles))
    for update in updates:
        outcome = update["tts"]["outcome"]
        if not outcome["solved"]:
            assert (outcome["stop"], outcome["limit"], outcome["cut"]) == (
                "budget",
                "seconds",
                "stopped by the seconds limit",
            )
            assert outcome["usage"]["seconds"] >= 2.0
        assert len(update["messages"]) == (outcome["decision"] is not None)
    assert any(update["messages"] for update in updates)
    assert not engine.counters.in_use
    asyncio.run(engine.aclose())


async def test_an_agent_that_drained_goes_on_with_what_it_had_decided() -> None:
    engine, control = make_player(pace=0.01), RunControl()
    dialect = CountdownDialect(engine)
    graph = create_planning_agent(
        engine, dialect=dialect, tools=[calculator], strategy=BestFirst(k=4, max_expansions=9)
    )
    agent: Any = graph.compile(checkpointer=InMemorySaver())
    run = asyncio.create_task(
        agent.ainvoke({"messages": [HumanMessage("Make 24 from 8 5 3 1")]}, THREAD, control=control)
    )
    await until(lambda: any(handle.usage.calls > 1 for handle in running_searches()))
    control.request_drain("a new release")
    with pytest.raises(GraphDrained):
        await run
    state = await agent.aget_state(THREAD)
    outcome = state.values["tts"]["outcome"]
    assert state.next == ("act",) and outcome["cut"] == "the graph is draining: a new release"
    decided = state.values["messages"][1]
    result = await agent.ainvoke(None, THREAD)
    assert result["messages"][1] == decided and result["tts"]["step"] > 1


class Slow:
    """A verifier that takes its time: so many seconds for each round of questions, the last ones none."""

    def __init__(self, engine: ScriptedEngine, *pauses: float) -> None:
        self._verifier, self._pauses = make_verifier(engine), iter(pauses)
        self.name, self.scope, self.bound = self._verifier.name, self._verifier.scope, self._verifier.bound
        self.asked = asyncio.Event()

    async def __call__(self, branches: Any) -> Any:
        self.asked.set()
        await asyncio.sleep(next(self._pauses, 0.0))
        return await self._verifier(branches)


class TestStages:
    """What stops a search that is spread over nodes."""

    @pytest.mark.parametrize("asynchronous", [True, False])
    def test_a_handle_stops_a_search(self, asynchronous: bool, tmp_path: Path) -> None:
        watched, trace = Watched(pace=0.02), tmp_path / "trace.jsonl"
        agent = make_stages(watched.engine, solvable=False, trace=trace).compile(checkpointer=InMemorySaver())
        outside = Outside(lambda handle: handle.stop("seen enough"), thread="1", node="plan")
        result = asyncio.run(agent.ainvoke(GO, THREAD)) if asynchronous else agent.invoke(GO, THREAD)
        handle = outside.done()
        outcome = result["tts"]["outcome"]
        assert (outcome["stop"], outcome["cut"]) == ("cancelled", "seen enough")
        assert result["messages"][-1].text == outcome["decision"] and not result["search"]
        assert (handle.search, handle.done) == ("plan/1", True)
        assert handle.usage.to_json() == outcome["usage"]
        assert not watched.in_flight and not running_searches()
        assert [event.reason for event in last(trace).events if isinstance(event, Stopped)] == ["seen enough"]

    async def test_the_questions_of_a_stopped_search_are_not_waited_for(self) -> None:
        engine = make_engine()
        verifier = Slow(engine, 0.4)
        agent = make_stages(engine, solvable=False, verifier=verifier).compile()
        run = asyncio.create_task(agent.ainvoke(GO))
        await verifier.asked.wait()
        (handle,) = running_searches(node="plan")
        handle.stop()
        begun = time.monotonic()
        outcome = (await run)["tts"]["outcome"]
        assert time.monotonic() - begun < 0.3
        assert outcome["stop"] == "cancelled" and outcome["lost"]

    async def test_a_stop_holds_for_whoever_goes_on_with_the_search(self) -> None:
        watched, saver = Watched(pace=0.2), InMemorySaver()
        agent = make_stages(watched.engine, solvable=False).compile(checkpointer=saver, interrupt_before=["verify"])
        run = asyncio.create_task(agent.ainvoke(GO, THREAD))
        await until(lambda: watched.in_flight)
        running_searches(thread="1")[0].stop("seen enough")
        assert not (await run)["tts"] and not watched.in_flight
        other = Watched()
        result = await make_stages(other.engine, solvable=False).compile(checkpointer=saver).ainvoke(None, THREAD)
        outcome = result["tts"]["outcome"]
        assert (outcome["stop"], outcome["cut"], other.seeds) == ("cancelled", "seen enough", [])

    @pytest.mark.parametrize("asynchronous", [True, False])
    def test_a_handle_deepens_a_search(self, asynchronous: bool, tmp_path: Path) -> None:
        watched, trace = Watched(pace=0.02), tmp_path / "trace.jsonl"
        settings: dict[str, Any] = {"budget": Budget(calls=6), "verifier": None, "trace": trace}
        agent = make_stages(watched.engine, solvable=False, **settings).compile()
        outside = Outside(lambda handle: handle.deepen(calls=30), node="plan")
        result = asyncio.run(agent.ainvoke(GO)) if asynchronous else agent.invoke(GO)
        outside.done()
        assert 6 < result["tts"]["outcome"]["usage"]["calls"] <= 36
        assert [event.more for event in last(trace).events if isinstance(event, Deepened)] == [{"calls": 30}]

    @pytest.mark.parametrize("drained", ["expand", "verify", "select"])
    async def test_an_agent_that_drained_goes_on_with_what_it_had_decided(self, drained: str, tmp_path: Path) -> None:
        engine, control, trace = make_player(pace=0.01), RunControl(), tmp_path / "trace.jsonl"
        graph = create_planning_agent(
            engine,
            dialect=CountdownDialect(engine),
            tools=[calculator],
            strategy=BestFirst(k=4, max_expansions=9),
            staged=True,
            trace=trace,
        )
        node: Any = graph.nodes[drained].runnable
        work, rounds = node._work, 0

        async def working(search: Any) -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 2:
                control.request_drain("a new release")
            await work(search)

        node._work = working
        agent: Any = graph.compile(checkpointer=InMemorySaver())
        question = {"messages": [HumanMessage("Make 24 from 8 5 3 1")]}
        with pytest.raises(GraphDrained):
            await agent.ainvoke(question, THREAD, control=control)
        state = await agent.aget_state(THREAD)
        outcome = state.values["tts"]["outcome"]
        assert outcome["cut"] == "the graph is draining: a new release"
        assert state.next == {"expand": ("verify",), "verify": ("select",), "select": ("act",)}[drained]
        decided, calls = state.values["messages"][1:], engine.served.calls
        assert [message.text for message in decided] == [outcome["decision"].strip()]
        (name,) = await anext(agent.astream(None, THREAD, stream_mode="updates"))
        assert name == state.next[0] and engine.served.calls == calls
        result = await agent.ainvoke(None, THREAD)
        assert result["messages"][1] == decided[0] and result["tts"]["step"] > 1
        assert [log.events[-1].stop.value for log in read(trace)][0] == "cancelled"

    async def test_a_thread_that_drained_can_be_asked_anew(self) -> None:
        watched, control, saver = Watched(pace=0.02), RunControl(), InMemorySaver()
        agent = make_stages(watched.engine, solvable=False).compile(checkpointer=saver)
        run = asyncio.create_task(agent.ainvoke(GO, THREAD, control=control))
        await until(lambda: any(handle.usage.calls > 2 for handle in running_searches()))
        control.request_drain("sigterm")
        with pytest.raises(GraphDrained):
            await run
        result = await make_stages(make_engine(), solvable=False).compile(checkpointer=saver).ainvoke(GO, THREAD)
        assert result["tts"]["outcome"]["stop"] == "converged" and result["tts"]["step"] == 2

    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("stage", ["expand", "verify"])
    async def test_a_retry_goes_on_where_the_stage_was(self, stage: str, shared: bool, tmp_path: Path) -> None:
        watched, trace = Watched(), tmp_path / "trace.jsonl"
        sample, asked = watched.engine.sample, itertools.count()

        def hanging(*arguments: Any, **named: Any) -> Any:
            stream = sample(*arguments, **named)
            return Hanging(stream) if next(asked) in (2, 5) else stream

        watched.engine.sample = hanging  # type: ignore[method-assign]
        pauses = () if stage == "expand" else (0.0, 30.0, 30.0)
        settings: dict[str, Any] = {"trace": trace, "verifier": Slow(watched.engine, *pauses)}
        if shared:
            settings["run_budget"] = SharedBudget(BUDGET)
        graph = make_stages(watched.engine, **settings)
        for name in ("expand", "verify"):
            graph.nodes[name].retry_policy = [RetryPolicy(max_attempts=9, initial_interval=0.001, jitter=False)]
            graph.nodes[name].timeout = TimeoutPolicy(run_timeout=0.4)
        result = await graph.compile(checkpointer=InMemorySaver()).ainvoke(GO, THREAD)
        undisturbed = make_stages(make_engine(), trace=tmp_path / "whole.jsonl").compile()
        await undisturbed.ainvoke(GO)
        log = last(trace)
        assert ThoughtTree(log.events).to_json() == ThoughtTree(last(tmp_path / "whole.jsonl").events).to_json()
        assert len([event for event in log.events if isinstance(event, Lost)]) == (2 if stage == "expand" else 4)
        totals = result["tts"]["totals"]
        charged = totals["usage"]["generated"] + totals["lost"].get("generated_tokens", 0)
        assert watched.engine.served.generated <= charged <= BUDGET.generated_tokens
        if shared:
            entry = result["tts_budgets"]["run"]
            assert charged == entry["usage"]["generated"] + entry["lost"].get("generated_tokens", 0)

    @pytest.mark.parametrize("interrupted", [True, False])
    async def test_what_is_asked_between_two_stages_is_done_by_the_next(self, interrupted: bool) -> None:
        watched = Watched()
        graph = make_stages(watched.engine, solvable=False)
        node: Any = graph.nodes["expand"].runnable
        work, handles = node._work, list[SearchHandle]()

        async def working(search: Any) -> None:
            handles.extend(running_searches(thread="1"))
            await work(search)

        node._work = working
        before = ["verify"] if interrupted else None
        agent: Any = graph.compile(checkpointer=InMemorySaver(), interrupt_before=before)
        samples: list[int] = []
        async for update in agent.astream(GO, THREAD, stream_mode="updates"):
            if "expand" in update:
                samples.append(len(watched.seeds))
                handles[0].stop("between")
        result = await agent.ainvoke(None, THREAD)
        outcome = result["tts"]["outcome"]
        assert (outcome["stop"], outcome["cut"]) == ("cancelled", "between")
        assert samples == [len(watched.seeds)]

    async def test_a_trace_that_could_not_be_written_costs_nothing_again(self, tmp_path: Path) -> None:
        engine, shared, trace = make_engine(), SharedBudget(BUDGET), tmp_path / "trace.jsonl"
        trace.mkdir()
        agent = make_stages(engine, trace=trace, run_budget=shared).compile(checkpointer=InMemorySaver())
        with pytest.raises(LogError, match="cannot be written"):
            await agent.ainvoke(GO, THREAD)
        served = engine.served
        trace.rmdir()
        result = await agent.ainvoke(None, THREAD)
        entry, totals = result["tts_budgets"]["run"]["usage"], result["tts"]["totals"]["usage"]
        assert engine.served == served and entry["calls"] == totals["calls"] == served.calls
        assert [log.complete for log in read(trace)] == [True]

    @pytest.mark.parametrize("calls", [2, 3])
    @pytest.mark.parametrize("staged", [True, False])
    async def test_a_retry_pays_for_the_commit_that_was_broken_off(self, staged: bool, calls: int) -> None:
        engine = ScriptedEngine(lambda prefix, seed: "dd\n", judge=lambda prefix: 0.5)  # nothing but dead ends
        sample, asked = engine.sample, itertools.count()

        def hanging(*arguments: Any, **named: Any) -> Any:
            stream = sample(*arguments, **named)
            return Hanging(stream) if next(asked) == 1 else stream

        engine.sample = hanging  # type: ignore[method-assign]
        retry = RetryPolicy(max_attempts=9, initial_interval=0.001, jitter=False)
        settings: dict[str, Any] = {"strategy": Beam(k=2, keep=1), "verifier": None, "budget": Budget(calls=calls)}
        node: dict[str, Any] = {"retry_policy": retry, "timeout": 0.3}
        graph = make_stages(engine, **settings) if staged else graph_of(engine, node=node, **settings)
        if staged:
            graph.nodes["select"].retry_policy = [retry]
            graph.nodes["select"].timeout = TimeoutPolicy(run_timeout=0.3)
        outcome = (await graph.compile().ainvoke(GO))["tts"]["outcome"]
        assert engine.served.calls <= outcome["usage"]["calls"] + outcome["lost"]["calls"] == calls

    @pytest.mark.parametrize("staged", [True, False])
    async def test_searches_of_one_name_side_by_side_share_a_budget(self, staged: bool) -> None:
        watched, shared = Watched(pace=0.01), SharedBudget(Budget(generated_tokens=150))
        graph: StateGraph[Any] = StateGraph(PlanState)
        for place in range(2):
            planner = create_planner(
                watched.engine,
                dialect=GrammarDialect(watched.engine, solvable=False),
                staged=staged,
                strategy=Beam(k=4, keep=3),
                verifier=make_verifier(watched.engine),
                run_budget=shared,
            ).compile()

            async def plan(state: PlanState, planner: Any = planner, place: int = place) -> Any:
                await asyncio.sleep(0.12 * place)
                return await planner.ainvoke(state)

            graph.add_node(f"plan {place}", plan)
            graph.add_edge(START, f"plan {place}")
        entry = (await graph.compile().ainvoke(GO))["tts_budgets"]["run"]
        assert watched.engine.served.generated == entry["usage"]["generated"] <= 150

    async def test_a_search_that_was_left_stays_in_the_account_of_its_thread(self) -> None:
        watched, shared = Watched(), SharedBudget(Budget(generated_tokens=110), per="thread")

        class Asked(GrammarDialect):
            """Searches from what was asked last."""

            def request(self, messages: Any, last: Any) -> Any:
                said = [message.text for message in messages if message.type == "human"][-1]
                root = Prefix(watched.engine.encode(f"{said}\n"))
                return replace(super().request(messages, last), task=replace(self._task, root=root))

        rounds = itertools.count()

        def verify(state: Any) -> dict[str, Any]:
            if next(rounds) == 2:
                raise ValueError("a node of one's own")
            return {}

        settings: dict[str, Any] = {"run_budget": shared, "verifier": None, "strategy": Beam(k=4, keep=3)}
        dialect = Asked(watched.engine, solvable=False)
        graph = make_stages(watched.engine, verify=verify, dialect=dialect, **settings)
        agent = graph.compile(checkpointer=InMemorySaver())
        with pytest.raises(ValueError, match="one's own"):
            await agent.ainvoke({"messages": [HumanMessage("one")]}, THREAD)
        await agent.ainvoke({"messages": [HumanMessage("two")]}, THREAD)
        assert watched.engine.served.generated <= 110
