"""What an agent's search had settled before a kill is neither sampled, judged nor charged again."""

import asyncio
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRetryMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from tests.middleware.world import Teller, add, calls
from tests.nodes.table import make_engine, player
from tools.calculator import calculator
from tts_agent import BestFirst, Budget
from tts_agent.engines import Fault
from tts_agent.errors import EngineUnavailable
from tts_agent.middleware import (
    BudgetMiddleware,
    BudgetRefusal,
    Candidate,
    PlanSearchMiddleware,
    TextBound,
    TreeSearchMiddleware,
)
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect
from tts_agent.usage import Usage

GO: Any = {"messages": [HumanMessage("go")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}


class Killed(BaseException):
    """The process ends here."""


class Judge:
    """The largest number wins; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, candidate: Candidate) -> float:
        self.asked.append(candidate.text)
        said = candidate.message
        return (said.tool_calls[0]["args"]["a"] if said.tool_calls else int(said.text)) / 100


class World:
    """A model that counts on over all processes, and is killed at a call of a given number."""

    def __init__(self, killed_at: int | None = None, *, sync: bool = False) -> None:
        self.judge, self.killed_at, self.sync = Judge(), killed_at, sync
        self.model = Teller(self.say, max_tokens=50)

    def say(self, messages: Sequence[BaseMessage], call: int) -> AIMessage | str:
        if call == self.killed_at and self.sync:
            raise Killed
        return str(call) if isinstance(messages[-1], ToolMessage) else calls("add", a=call, b=0)

    def agent(self, saver: Any, *around: Any, n: int = 6, **settings: Any) -> Any:
        """A new agent, as another process would make it."""
        search = PlanSearchMiddleware(n, judge=self.judge, concurrency=1, **settings)
        return create_agent(self.model, [add], middleware=[*around, search], checkpointer=saver)


async def die(agent: Any, model: Teller, killed_at: int, sync: bool, start: Any = GO) -> None:
    """Run until the model's call of this number, and no further."""
    if sync:
        with pytest.raises(Killed):
            await finish(agent, sync, start)
        return
    model.faults = {killed_at: "hangs"}
    run = asyncio.create_task(agent.ainvoke(start, THREAD))
    while model.served.calls <= killed_at:
        await asyncio.sleep(0.01)
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run


async def finish(agent: Any, sync: bool, start: Any = GO) -> Any:
    """Run, in this thread or with `await`; the savers of the tests do both."""
    return await asyncio.to_thread(agent.invoke, start, THREAD) if sync else await agent.ainvoke(start, THREAD)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("killed_at", [0, 1, 3, 5, 8, 11])
async def test_settled_candidates_are_given_back(sync: bool, killed_at: int) -> None:
    world, saver = World(killed_at, sync=sync), InMemorySaver()
    await die(world.agent(saver), world.model, killed_at, sync)
    result = await finish(world.agent(saver), sync, None)
    assert world.model.served.calls == 12 + 1  # the one that was under way is sampled again
    assert len(world.judge.asked) == len(set(world.judge.asked)) == 12  # and none is judged twice
    assert [message.type for message in result["messages"]] == ["human", "ai", "tool", "ai"]
    tried = set(range(13)) - {killed_at}
    first, second = sorted(tried)[:6], sorted(tried)[6:]
    assert result["messages"][1].tool_calls[0]["args"]["a"] == max(first)
    assert result["messages"][-1].text == str(max(second))
    assert result["messages"][-1].response_metadata["tts"]["candidates"] == 6


@pytest.mark.verify  # the processes take their time to begin
@pytest.mark.parametrize(("kind", "killed_at"), [("sync", 2), ("async", 6)])
def test_a_process_that_was_killed_is_taken_up_by_another(kind: str, killed_at: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.middleware.victim", str(tmp_path), kind, str(killed_at)]
    codes = [subprocess.run(command, timeout=60, check=False).returncode for _ in range(2)]
    made = (tmp_path / "calls.txt").read_text().split()
    assert codes == [9, 0]
    # Beside the call that was under way, the answer before it may not have been stored yet.
    assert 8 + 1 <= len(made) <= 8 + 2
    assert json.loads((tmp_path / "result.json").read_text())[-1] == made[-1]


@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize("sync", [True, False])
async def test_what_was_settled_is_counted_once_in_the_budget_around(sync: bool, other: bool) -> None:
    world, saver = World(4, sync=sync), InMemorySaver()
    guard = BudgetMiddleware(Budget(calls=30))
    await die(world.agent(saver, guard), world.model, 4, sync)
    again = BudgetMiddleware(Budget(calls=30)) if other else guard
    result = await finish(world.agent(saver, again), sync, None)
    entry = result["tts_budgets"]["agent"]
    # Nobody can tell another process of the call that was under way when its process was killed.
    assert entry["usage"]["calls"] + entry["lost"].get("calls", 0) == world.model.served.calls - other


class Breaks(AgentMiddleware[Any, Any, Any]):
    """Around a search: after its decision, and before the graph has it, something happens once."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0

    def _break(self) -> None:
        self.calls += 1
        if self.how == "asks":
            interrupt("approve?")
        elif self.calls == 1:
            raise Killed if self.how == "is killed" else RuntimeError("broken")

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        response = handler(request)
        self._break()
        return response

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        response = await handler(request)
        self._break()
        return response


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize("how", ["asks", "is killed", "fails"])
async def test_a_decision_that_the_graph_does_not_have_yet_is_given_back(sync: bool, other: bool, how: str) -> None:
    world, saver, breaks = World(), InMemorySaver(), Breaks(how)
    world.model.faults = {2: "raises late"}  # what failed was charged too
    guard = BudgetMiddleware(Budget(calls=30))
    if how == "asks":
        await finish(world.agent(saver, guard, breaks), sync)
    else:
        with pytest.raises(Killed if how == "is killed" else RuntimeError):
            await finish(world.agent(saver, guard, breaks), sync)
    again = BudgetMiddleware(Budget(calls=30)) if other else guard
    result = await finish(world.agent(saver, again, breaks), sync, Command(resume=True) if how == "asks" else None)
    if how == "asks":  # for its second decision, too
        assert world.model.served.calls == 12 and "__interrupt__" in result
        result = await finish(world.agent(saver, again, breaks), sync, Command(resume=True))
    assert world.model.served.calls == 12 and len(world.judge.asked) == 11
    assert result["messages"][1].tool_calls[0]["args"]["a"] == 5 and result["messages"][-1].text == "11"
    assert result["messages"][-1].response_metadata["tts"]["candidates"] == 6
    entry = result["tts_budgets"]["agent"]
    assert entry["usage"]["calls"] + entry["lost"].get("calls", 0) == 12


class TestUsedUp:
    """What is stored costs nothing, so a budget around that is used up gives it back; what is asked anew is refused."""

    @pytest.mark.parametrize("limits", [{"calls": 6}, {"calls": 6, "total_tokens": 10**6}])
    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("other", [True, False])
    async def test_by_the_call_that_was_under_way(self, other: bool, sync: bool, limits: dict[str, int]) -> None:
        world, saver = World(5), InMemorySaver()
        guards = [BudgetMiddleware(Budget(**limits), prompt_bound=TextBound()) for _ in range(2)]
        await die(world.agent(saver, guards[0]), world.model, 5, False)
        result = await finish(world.agent(saver, guards[other]), sync, None)
        # Nobody can tell another process of the call that was under way when its process was killed.
        assert world.model.served.calls == 6 + other
        assert result["messages"][1].tool_calls[0]["args"]["a"] == (6 if other else 4)
        assert "the budget of 6 calls" in result["messages"][-1].text and len(result["messages"]) == 4

    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("other", [True, False])
    @pytest.mark.parametrize("how", ["asks", "is killed", "fails"])
    async def test_by_a_search_that_had_ended(self, how: str, other: bool, sync: bool) -> None:
        world, saver, breaks = World(), InMemorySaver(), Breaks(how)
        limits = {"outer": Budget(calls=9), "agent": Budget(calls=6)}
        guards = [[BudgetMiddleware(limit, name=name) for name, limit in limits.items()] for _ in range(2)]
        with suppress(Killed, RuntimeError):
            await finish(world.agent(saver, *guards[0], breaks), sync)
        assert world.model.served.calls == 6
        start: Any = Command(resume=True) if how == "asks" else None
        result = await finish(world.agent(saver, *guards[other], breaks), sync, start)
        assert result["messages"][1].tool_calls[0]["args"]["a"] == 5 and world.model.served.calls == 6
        assert "the budget of 6 calls" in result["messages"][-1].text

    @pytest.mark.parametrize("limits", [{"calls": 1}, {"total_tokens": 1500}])
    @pytest.mark.parametrize("at_limit", ["message", "raise"])
    @pytest.mark.parametrize("sync", [True, False])
    async def test_with_nothing_stored_the_agent_ends_as_ever(
        self, sync: bool, at_limit: Any, limits: dict[str, int]
    ) -> None:
        world, saver = World(0), InMemorySaver()
        world.model.max_tokens = 5000  # all that is left is reserved for the call that hangs, and lost
        guard = BudgetMiddleware(Budget(**limits), prompt_bound=TextBound(), at_limit=at_limit)
        await die(world.agent(saver, guard, n=1), world.model, 0, False)
        if at_limit == "raise":
            with pytest.raises(BudgetRefusal):
                await finish(world.agent(saver, guard, n=1), sync, None)
        else:
            result = await finish(world.agent(saver, guard, n=1), sync, None)
            assert "I have to stop here" in result["messages"][-1].text
            assert result["tts_budgets"]["agent"]["limit"] in limits
        assert world.model.served.calls == 1

    async def test_time_that_is_over_refuses_what_is_stored_too(self) -> None:
        class Slow(Breaks):
            def _break(self) -> None:
                time.sleep(0.6)
                super()._break()

        world, guard = World(), BudgetMiddleware(Budget(seconds=0.5))
        agent = world.agent(InMemorySaver(), guard, Slow("asks"), n=1)
        assert "__interrupt__" in await finish(agent, True)
        result = await finish(agent, True, Command(resume=True))
        assert "0.5 seconds" in result["messages"][-1].text and world.model.served.calls == 1


class Rates:
    """A judge that asks a model of its own."""

    def __init__(self) -> None:
        self.model = Teller(lambda messages, call: "fine", max_tokens=20)

    def __call__(self, candidate: Candidate) -> float:
        self.model.invoke("rate")
        return 0.5


@given(
    killed_at=st.integers(0, 12),
    faults=st.dictionaries(st.integers(0, 6).map(lambda place: 2 * place), st.sampled_from(["raises late", "silent"])),
    rates=st.booleans(),
    limit=st.integers(12, 40),
)
@settings(max_examples=30)
def test_all_that_stored_candidates_had_cost_is_charged_in_another_process(
    killed_at: int, faults: dict[int, Any], rates: bool, limit: int
) -> None:
    """Retries inside a candidate, calls of its judge, and calls that nobody told the usage of."""
    model, judge, saver = Teller(lambda messages, call: f"answer {call}", max_tokens=50), Rates(), InMemorySaver()

    def agent() -> Any:
        guard = BudgetMiddleware(Budget(calls=limit, total_tokens=10**6), prompt_bound=TextBound())
        search = PlanSearchMiddleware(8, judge=judge if rates else lambda candidate: 0.5, concurrency=1)
        retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)
        return create_agent(model, [], middleware=[guard, search, retry], checkpointer=saver)

    async def killed() -> None:
        run = asyncio.create_task(agent().ainvoke(GO, THREAD))
        while model.served.calls <= killed_at and not run.done():
            await asyncio.sleep(0.001)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run

    model.faults = {**faults, killed_at: "hangs"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a budget is soft where nobody tells the usage
        asyncio.run(killed())
        model.faults = faults
        before = model.served.calls
        result = agent().invoke(None, THREAD)
    made = model.served.calls + judge.model.served.calls
    # Nobody can tell of the call that was under way, and of one that failed before it in the same candidate.
    unknown = (1 + (faults.get(killed_at - 1) == "raises late")) * (before > killed_at)
    entry = result["tts_budgets"]["agent"]
    calls = entry["usage"]["calls"] + entry["lost"].get("calls", 0)
    assert made - unknown == calls <= limit
    spent = Usage.from_json(entry["usage"]).total + entry["lost"].get("total_tokens", 0)
    assert spent >= model.served.total + judge.model.served.total - unknown * 60


@pytest.mark.parametrize("later", range(16))
async def test_a_candidate_is_charged_once_whenever_its_run_is_cancelled(later: int) -> None:
    """`later` turns of the event loop after a candidate was judged: before it is stored, and before it is given out."""
    saver, guard = InMemorySaver(), BudgetMiddleware(Budget(calls=100))
    model = Teller(lambda messages, call: str(call))

    def judge(candidate: Candidate) -> float:
        if candidate.text == "1":
            wait(later)
        return 0.5

    def wait(turns: int) -> None:
        asyncio.get_running_loop().call_soon(wait, turns - 1) if turns else run.cancel()

    search = PlanSearchMiddleware(3, judge=judge, concurrency=1)
    agent = create_agent(model, [], middleware=[guard, search], checkpointer=saver)
    run = asyncio.create_task(agent.ainvoke(GO, THREAD))
    with suppress(asyncio.CancelledError):
        await run
    result = await agent.ainvoke(None, THREAD)
    entry = result["tts_budgets"]["agent"]
    # A call that is cancelled is charged in full, also if the model had not begun it.
    assert entry["usage"]["calls"] <= model.served.calls <= entry["usage"]["calls"] + entry["lost"].get("calls", 0)


async def test_candidates_side_by_side_outlive_a_cancelled_run() -> None:
    world, saver = World(), InMemorySaver()
    world.model.faults = {3: "hangs"}
    search = PlanSearchMiddleware(6, judge=world.judge, concurrency=3)
    agent = create_agent(world.model, [add], middleware=[search], checkpointer=saver)
    run = asyncio.create_task(agent.ainvoke(GO, THREAD))
    while len(world.judge.asked) < 5:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run
    world.model.faults = {}
    before = world.model.served.calls
    result = await agent.ainvoke(None, THREAD)
    assert world.model.served.calls - before == 1 + 6 and len(set(world.judge.asked)) == 12
    assert result["messages"][1].response_metadata["tts"]["candidates"] == 6


@pytest.mark.parametrize("sync", [True, False])
async def test_one_that_fails_fails_alone_and_time_is_kept(sync: bool) -> None:
    world = World()
    world.model.faults = {0: "raises", 2: "raises late"} | ({} if sync else {4: "hangs"})
    agent = world.agent(InMemorySaver(), budget=Budget(seconds=60 if sync else 1.0))
    result = await finish(agent, sync)
    assert result["messages"][1].tool_calls[0]["args"]["a"] == (5 if sync else 3)


@pytest.mark.parametrize("sync", [True, False])
async def test_agents_inside_tools_keep_their_own_candidates(sync: bool) -> None:
    """Three workers side by side, each asked twice: none takes another's answers."""
    model = Teller(lambda messages, call: f"{messages[0].text}: {call}")
    worker = create_agent(model, [], middleware=[PlanSearchMiddleware(3, judge=lambda c: 0.5, concurrency=1)])

    @tool
    def work(name: str) -> str:
        """Work."""
        return " + ".join(worker.invoke({"messages": [("user", name)]})["messages"][-1].text for _ in range(2))

    @tool("work")
    async def awork(name: str) -> str:
        """Work."""
        done = [await worker.ainvoke({"messages": [("user", name)]}) for _ in range(2)]
        return " + ".join(each["messages"][-1].text for each in done)

    def manage(messages: Sequence[BaseMessage], call: int) -> AIMessage | str:
        if isinstance(messages[-1], ToolMessage):
            return "done"
        made = [{"name": "work", "args": {"name": name}, "id": name} for name in "abc"]
        return AIMessage("", tool_calls=made)

    agent = create_agent(Teller(manage), [work if sync else awork], checkpointer=InMemorySaver())
    result = await finish(agent, sync)
    said = {message.tool_call_id: message.text for message in result["messages"] if isinstance(message, ToolMessage)}
    assert model.served.calls == 3 * 2 * 3 and all(text.count(f"{name}: ") == 2 for name, text in said.items())


@pytest.mark.parametrize("subgraphs", [True, False])
async def test_the_streams_do_not_show_the_journal(subgraphs: bool) -> None:
    agent = World().agent(InMemorySaver())
    updates = [update async for update in agent.astream(GO, THREAD, stream_mode="updates", subgraphs=subgraphs)]
    shown = [list(update[1] if subgraphs else update) for update in updates]
    assert shown == [["model"], ["tools"], ["model"]]
    said = [chunk async for chunk, _ in World().agent(InMemorySaver()).astream(GO, THREAD, stream_mode="messages")]
    assert [message.type for message in said] == ["ai", "tool", "ai"]


class Fact(BaseModel):
    value: int


class TestStructuredOutput:
    @staticmethod
    def tool(messages: Sequence[BaseMessage], call: int) -> AIMessage:
        return calls("Fact", value=call)

    @staticmethod
    def text(messages: Sequence[BaseMessage], call: int) -> str:
        return Fact(value=call).model_dump_json()

    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.parametrize("way", ["tool", "provider"])
    async def test_it_is_whole_after_a_kill(self, way: str, strict: bool, tmp_path: Path) -> None:
        asked: Any = ToolStrategy(Fact) if way == "tool" else ProviderStrategy(Fact)
        model = Teller(self.tool if way == "tool" else self.text)
        seen: list[int] = []

        def judge(candidate: Candidate) -> float:
            seen.append(candidate.response.structured_response.value)
            return 0.9 if seen[-1] == 1 else 0.1

        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "saved.db")) as saver:
            if strict:
                saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
            agent = create_agent(
                model,
                [],
                response_format=asked,
                middleware=[PlanSearchMiddleware(4, judge=judge, concurrency=1)],
                checkpointer=saver,
            )
            await die(agent, model, 3, sync=False)
            result = await agent.ainvoke(None, THREAD)
        assert seen == [0, 1, 2, 4] and model.served.calls == 5
        assert result["structured_response"] == Fact(value=1)

    @pytest.mark.parametrize("strict", [True, False])
    async def test_it_is_whole_in_a_decision_that_was_stored(self, strict: bool, tmp_path: Path) -> None:
        model = Teller(self.text)
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "saved.db")) as saver:
            if strict:
                saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
            search = PlanSearchMiddleware(3, judge=lambda candidate: 0.5, concurrency=1)
            agent = create_agent(
                model,
                [],
                response_format=ProviderStrategy(Fact),
                middleware=[Breaks("asks"), search],
                checkpointer=saver,
            )
            await agent.ainvoke(GO, THREAD)
            result = await agent.ainvoke(Command(resume=True), THREAD)
        assert model.served.calls == 3 and isinstance(result["structured_response"], Fact)


class Kills(AgentMiddleware[Any, Any, Any]):
    """Ends the process after the decision was made, once."""

    done = False

    def after_model(self, state: Any, runtime: Any) -> None:
        if not self.done:
            self.done = True
            raise Killed


class TestTreeSearch:
    PUZZLE: Any = {"messages": [HumanMessage("Make 24 from 8 5 3 1")]}

    @staticmethod
    def unused(messages: Any, call: int) -> str:
        raise AssertionError("the agent's own model is not called")

    def agent(self, engine: Any, saver: Any, *around: Any) -> Any:
        search = TreeSearchMiddleware(
            engine,
            dialect=CountdownDialect(engine),
            strategy=BestFirst(k=3),
            verifier=countdown_verifier(engine),
            budget=Budget(computed_tokens=4000),
            flush_events=4,
        )
        return create_agent(Teller(self.unused), [calculator], middleware=[*around, search], checkpointer=saver)

    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("around", [True, False])
    async def test_settled_thoughts_are_neither_sampled_nor_charged_again(
        self, sync: bool, around: bool, tmp_path: Path
    ) -> None:
        whole = make_engine()
        expected = await finish(self.agent(whole, InMemorySaver()), sync, self.PUZZLE)

        def dying(prefix: str, seed: int) -> str:
            if len(engine.requests) >= 9:
                raise Killed
            return player(prefix, seed)

        engine, other = make_engine(script=dying), make_engine()
        guard = [BudgetMiddleware(Budget(calls=500))] if around else []
        saver = InMemorySaver()
        with pytest.raises(Killed):
            await finish(self.agent(engine, saver, *guard), sync, self.PUZZLE)
        guard = [BudgetMiddleware(Budget(calls=500))] if around else []
        result = await finish(self.agent(other, saver, *guard), sync, None)
        assert [message.text for message in result["messages"]] == [m.text for m in expected["messages"]]
        assert other.served.calls < whole.served.calls
        if around:
            entry = result["tts_budgets"]["agent"]
            charged = entry["usage"]["calls"] + entry["lost"].get("calls", 0)
            assert charged >= engine.served.calls + other.served.calls

    @pytest.mark.parametrize("sync", [True, False])
    async def test_what_an_outage_left_is_charged_once_in_one_process_and_in_another(self, sync: bool) -> None:
        entries = []
        for other in (True, False):
            engine = make_engine(faults={place: Fault("refused") for place in range(4, 11)})
            saver, guard = InMemorySaver(), BudgetMiddleware(Budget(calls=500))
            agent = self.agent(engine, saver, guard)
            with pytest.raises(EngineUnavailable):
                await finish(agent, sync, self.PUZZLE)
            if other:
                agent = self.agent(engine, saver, BudgetMiddleware(Budget(calls=500)))
            result = None
            while result is None:
                with suppress(EngineUnavailable):
                    result = await finish(agent, sync, None)
            entries.append(result["tts_budgets"]["agent"])
        assert [entry["usage"]["calls"] for entry in entries] == [engine.served.calls] * 2
        assert entries[0]["lost"] == entries[1]["lost"] and entries[0]["lost"]["calls"] > 0
