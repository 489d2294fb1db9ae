"""The next action found by search: the best candidate whole, the others unseen, failures their own."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    dynamic_prompt,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.runtime import RunControl
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from tests.middleware.world import Broken, Teller, add, calls
from tts_agent import BestOfN, Budget, Verdict
from tts_agent.errors import ConfigError, SearchError
from tts_agent.middleware import BudgetMiddleware, Candidate, PlanSearchMiddleware
from tts_agent.middleware.candidates import CandidateStream
from tts_agent.nodes import SearchHandle, running_searches
from tts_agent.trace.recorder import read

GO: Any = {"messages": [HumanMessage("go")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}


def number(messages: Sequence[BaseMessage], call: int) -> AIMessage | str:
    """Adds with its number as an argument, then answers with it."""
    return str(call) if isinstance(messages[-1], ToolMessage) else calls("add", a=call, b=0)


def largest(candidate: Candidate) -> float:
    said = candidate.message
    return (said.tool_calls[0]["args"]["a"] if said.tool_calls else int(said.text)) / 100


def invoke(agent: Any, sync: bool, start: Any = GO, config: Any = None) -> Any:
    return agent.invoke(start, config) if sync else asyncio.run(agent.ainvoke(start, config))


@pytest.mark.parametrize("sync", [True, False])
def test_the_best_candidate_acts_and_the_others_leave_no_trace(sync: bool) -> None:
    model = Teller(number)
    agent = create_agent(model, [add], middleware=[PlanSearchMiddleware(4, judge=largest)])
    result = invoke(agent, sync)
    assert [message.type for message in result["messages"]] == ["human", "ai", "tool", "ai"]
    assert result["messages"][1].tool_calls[0]["args"]["a"] == 3 and result["messages"][3].text == "7"
    note = result["messages"][1].response_metadata["tts"]
    assert note["candidates"] == 4 and sorted(note["scores"]) == [0, 0.01, 0.02, 0.03] and note["score"] == 0.03
    assert note["usage"]["calls"] == 4 and note["stop"] == "converged"
    assert model.served.calls == 8
    # What the message says of its own usage stays its own: others read it.
    assert result["messages"][3].usage_metadata["output_tokens"] == 1


def test_without_a_judge_the_candidates_vote() -> None:
    model = Teller(lambda messages, call: "blue" if call in (1, 3, 4) else f"red {call}")
    result = create_agent(model, [], middleware=[PlanSearchMiddleware(5)]).invoke(GO)
    assert result["messages"][-1].text == "blue" and result["messages"][-1].response_metadata["tts"]["score"] == 0.6


async def test_equal_candidates_are_judged_once_also_while_the_judge_is_at_it() -> None:
    asked: list[str] = []

    async def judge(candidate: Candidate) -> float:
        asked.append(candidate.text)
        await asyncio.sleep(0.01)
        return len(asked) / 10

    model = Teller(lambda messages, call: ("red", "blue")[call % 2])
    agent = create_agent(model, [], middleware=[PlanSearchMiddleware(6, judge=judge)])
    result = await agent.ainvoke(GO)
    assert sorted(asked) == ["blue", "red"] and result["messages"][-1].response_metadata["tts"]["candidates"] == 6


async def test_a_judge_that_never_answers_leaves_the_first_response() -> None:
    async def judge(candidate: Candidate) -> float:
        await asyncio.sleep(3600)
        return 1.0

    before = asyncio.all_tasks()
    search = PlanSearchMiddleware(3, judge=judge, budget=Budget(seconds=0.2))
    result = await create_agent(Teller(number), [add], middleware=[search]).ainvoke(GO)
    assert [message.type for message in result["messages"]] == ["human", "ai", "tool", "ai"]
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before  # and nothing of it goes on


async def test_a_judge_may_wait_fail_or_have_nothing_to_say() -> None:
    async def judge(candidate: Candidate) -> Any:
        await asyncio.sleep(0)
        place = int(candidate.text)
        if place == 0:
            raise RuntimeError("no opinion")
        return None if place == 1 else Verdict(0.9 if place == 2 else 0.3, "because")

    agent = create_agent(
        Teller(lambda messages, call: str(call)), [], middleware=[PlanSearchMiddleware(4, judge=judge)]
    )
    result = await agent.ainvoke(GO)
    assert result["messages"][-1].text == "2"
    assert sorted(result["messages"][-1].response_metadata["tts"]["scores"], key=str) == [0.3, 0.9, None, None]


@pytest.mark.parametrize("sync", [True, False])
def test_one_that_fails_does_not_fail_the_others(sync: bool) -> None:
    model = Teller(number, faults={0: "raises", 3: "raises late"})
    agent = create_agent(model, [add], middleware=[PlanSearchMiddleware(4, judge=largest)])
    result = invoke(agent, sync)
    assert result["messages"][1].tool_calls[0]["args"]["a"] == 2
    assert result["messages"][1].response_metadata["tts"]["candidates"] == 4
    assert model.served.calls == 8  # what failed is not sampled again


@pytest.mark.parametrize("sync", [True, False])
def test_if_all_fail_the_error_is_the_models_own(sync: bool) -> None:
    model = Teller(number, faults=dict.fromkeys(range(9), "raises"))
    agent = create_agent(model, [add], middleware=[PlanSearchMiddleware(3, judge=largest)])
    with pytest.raises(Broken):
        invoke(agent, sync)
    assert model.served.calls == 3


def retry() -> ModelRetryMiddleware:
    return ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)


class TestRetriesThatGiveUp:
    @pytest.mark.parametrize("sync", [True, False])
    def test_their_message_does_not_win_the_vote(self, sync: bool) -> None:
        model = Teller(lambda messages, call: f"answer {call}", faults=dict.fromkeys((0, 1, 4, 5), "raises"))
        result = invoke(create_agent(model, [], middleware=[PlanSearchMiddleware(4), retry()]), sync)
        assert result["messages"][-1].text in ("answer 2", "answer 3")

    @pytest.mark.parametrize("sync", [True, False])
    def test_a_refusal_in_their_words_does_not_win_either(self, sync: bool) -> None:
        model = Teller(lambda messages, call: f"answer {call}", pause=0.01)
        middleware = [BudgetMiddleware(Budget(calls=2)), PlanSearchMiddleware(4), retry()]
        result = invoke(create_agent(model, [], middleware=middleware), sync)
        assert result["messages"][-1].text in ("answer 0", "answer 1")

    def test_no_judge_is_asked_for_it(self) -> None:
        asked: list[str] = []
        model = Teller(lambda messages, call: f"answer {call}", faults=dict.fromkeys((0, 1), "raises"))
        search = PlanSearchMiddleware(2, judge=lambda one: bool(asked.append(one.text)), concurrency=1)
        result = create_agent(model, [], middleware=[search, retry()]).invoke(GO)
        assert result["messages"][-1].text == "answer 2" and asked == ["answer 2"]

    def test_if_all_give_up_the_agent_gets_what_they_say(self) -> None:
        model = Teller(number, faults=dict.fromkeys(range(9), "raises"))
        result = create_agent(model, [], middleware=[PlanSearchMiddleware(2), retry()]).invoke(GO)
        assert "Broken" in result["messages"][-1].text

    def test_answers_out_of_a_cache_are_those_of_a_model(self) -> None:
        model = Teller(lambda messages, call: f"answer {call}", faults={0: "silent"}, cache=InMemoryCache())
        agent = create_agent(model, [], middleware=[PlanSearchMiddleware(2, concurrency=1)])
        for _ in range(2):
            note = agent.invoke(GO)["messages"][-1].response_metadata["tts"]
            assert model.served.calls == 1 and note["score"] == 1.0


class TestOverrides:
    """The budget of a step, changed by the run."""

    @staticmethod
    def agent(model: Teller, **options: Any) -> Any:
        return create_agent(model, [], middleware=[PlanSearchMiddleware(**options)])

    @pytest.mark.parametrize("sync", [True, False])
    @pytest.mark.parametrize("saver", [True, False])
    @pytest.mark.parametrize("key", ["*", "PlanSearchMiddleware"])
    def test_it_obeys_its_name_and_that_of_all(self, key: str, sync: bool, saver: bool) -> None:
        model = Teller(lambda messages, call: f"answer {call}")
        search = PlanSearchMiddleware(4, budget=Budget(calls=3))
        agent = create_agent(model, [], middleware=[search], checkpointer=InMemorySaver() if saver else None)
        for limit, served in (({"calls": 2}, 2), ({"calls": None}, 4), ({}, 3), ({"calls": 1, "commit_tokens": 9}, 1)):
            before = model.served.calls
            config = {"configurable": {"tts": {key: limit}, "thread_id": "1"}}
            result = invoke(agent, sync, GO, config)
            assert model.served.calls - before == served
            assert result["messages"][-1].text.startswith("answer")

    def test_tokens_that_only_the_run_limits_are_counted_with_the_prompt(self) -> None:
        model = Teller(lambda messages, call: "answer")
        start: Any = {"messages": [HumanMessage("word " * 3000)]}
        agent = self.agent(model, n=4, output_tokens=10)
        agent.invoke(start, {"configurable": {"tts": {"*": {"total_tokens": 12_000}}}})
        assert 1 <= model.served.calls < 4

    @pytest.mark.parametrize("wrong", [{"nonsense": {"calls": 1}}, {"*": {"cals": 1}}, ["x"]])
    def test_wrong_ones_raise(self, wrong: Any) -> None:
        model = Teller(lambda messages, call: "answer")
        with pytest.raises(ConfigError, match="tts"):
            self.agent(model, n=2).invoke(GO, {"configurable": {"tts": wrong}})
        assert model.served.calls == 0

    def test_a_search_without_an_end_keeps_a_limit(self) -> None:
        agent = self.agent(Teller(lambda m, c: "answer"), strategy=BestOfN(n=None), budget=Budget(calls=3))
        with pytest.raises(ConfigError, match="goes on until a budget"):
            agent.invoke(GO, {"configurable": {"tts": {"*": {"calls": None}}}})


class Streaming(Teller):
    """Says its answer word by word."""

    async def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        message = self._generate(messages, **kwargs).generations[0].message
        for word in message.text.split():
            chunk = ChatGenerationChunk(message=AIMessageChunk(word))
            if run_manager:
                await run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk


@pytest.mark.parametrize("shown", [False, True])
async def test_only_the_winner_is_in_the_message_stream(shown: bool) -> None:
    model = Streaming(lambda messages, call: f"word number {call}")
    search = PlanSearchMiddleware(3, judge=lambda c: "number1" in c.text, stream_candidates=shown)
    agent = create_agent(model, [], middleware=[search])
    said = [chunk.text async for chunk, _ in agent.astream(GO, stream_mode="messages")]
    if shown:
        assert len(said) > 3
    else:
        assert said == ["wordnumber1"]


class Fact(BaseModel):
    value: int


class TestStructuredOutput:
    @staticmethod
    def say(messages: Sequence[BaseMessage], call: int) -> AIMessage:
        return calls("Fact", value=call if call % 2 else "none")

    @staticmethod
    def judge(candidate: Candidate) -> float:
        fact = candidate.response.structured_response
        return 0 if fact is None else fact.value / 100

    @pytest.mark.parametrize("handled", [True, False])
    def test_the_best_response_is_given_whole(self, handled: bool) -> None:
        agent = create_agent(
            Teller(self.say),
            [add],
            response_format=ToolStrategy(Fact, handle_errors=handled),
            middleware=[PlanSearchMiddleware(4, judge=self.judge)],
        )
        result = agent.invoke(GO)
        assert result["structured_response"] == Fact(value=3)
        assert [message.type for message in result["messages"]] == ["human", "ai", "tool"]
        assert result["messages"][2].tool_call_id == result["messages"][1].tool_calls[0]["id"]

    def test_if_none_fits_the_agent_tries_again_as_it_does_without_a_search(self) -> None:
        def say(messages: Sequence[BaseMessage], call: int) -> AIMessage:
            return calls("Fact", value=call if call > 3 else "none")

        search = PlanSearchMiddleware(3, judge=self.judge)
        result = create_agent(Teller(say), [], response_format=ToolStrategy(Fact), middleware=[search]).invoke(GO)
        assert result["structured_response"] == Fact(value=5)


class TestProviderStrategy:
    """Structured output that the provider sees to: the message itself is the object."""

    @staticmethod
    def judge(candidate: Candidate) -> float:
        return float(candidate.response.structured_response.value) / 100

    @pytest.mark.parametrize("sync", [True, False])
    def test_the_best_object_is_given_with_its_message(self, sync: bool) -> None:
        model = Teller(lambda messages, call: Fact(value=call).model_dump_json())
        search = PlanSearchMiddleware(4, judge=self.judge)
        result = invoke(create_agent(model, [], response_format=ProviderStrategy(Fact), middleware=[search]), sync)
        assert result["structured_response"] == Fact(value=3)
        assert result["messages"][-1].text == Fact(value=3).model_dump_json()
        assert [message.type for message in result["messages"]] == ["human", "ai"]

    def test_one_that_is_no_object_fails_alone(self) -> None:
        model = Teller(lambda messages, call: "no json" if call == 3 else Fact(value=call).model_dump_json())
        search = PlanSearchMiddleware(4, judge=self.judge)
        result = create_agent(model, [], response_format=ProviderStrategy(Fact), middleware=[search]).invoke(GO)
        assert result["structured_response"] == Fact(value=2)


async def test_it_works_synchronously_inside_a_running_loop() -> None:
    agent = create_agent(Teller(number), [add], middleware=[PlanSearchMiddleware(4, judge=largest)])
    assert agent.invoke(GO)["messages"][-1].text == "7"


class TestOtherMiddleware:
    def test_retries_inside_are_each_candidates_own(self) -> None:
        model = Teller(number, faults={0: "raises"})
        retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)
        agent = create_agent(model, [add], middleware=[PlanSearchMiddleware(2, judge=largest), retry])
        assert None not in agent.invoke(GO)["messages"][1].response_metadata["tts"]["scores"]
        assert model.served.calls == 5

    def test_a_fallback_around_takes_over_the_whole_step(self) -> None:
        broken, spare = Teller(number, faults=dict.fromkeys(range(9), "raises")), Teller(lambda m, c: f"{c}")
        around = ModelFallbackMiddleware(spare)
        agent = create_agent(broken, [], middleware=[around, PlanSearchMiddleware(3, judge=largest)])
        assert agent.invoke(GO)["messages"][-1].text == "2"
        assert (broken.served.calls, spare.served.calls) == (3, 3)

    def test_prompts_made_by_others_reach_the_candidates_and_limits_count_steps(self) -> None:
        seen: list[str] = []

        def say(messages: Sequence[BaseMessage], call: int) -> AIMessage | str:
            seen.append(messages[0].text)
            return number(messages, call)

        @dynamic_prompt
        def prompt(request: Any) -> str:
            return "be brief"

        limit = ModelCallLimitMiddleware(run_limit=2)
        agent = create_agent(Teller(say), [add], middleware=[limit, PlanSearchMiddleware(2, judge=largest), prompt])
        agent.invoke(GO)
        assert seen == ["be brief"] * 4

    def test_an_interrupt_inside_is_no_failure(self) -> None:
        class Asks(AgentMiddleware[Any, Any, Any]):
            def wrap_model_call(self, request: Any, handler: Any) -> Any:
                interrupt("may I?")
                return handler(request)

        middleware = [PlanSearchMiddleware(2, judge=largest), Asks()]
        agent = create_agent(Teller(number), [add], middleware=middleware, checkpointer=InMemorySaver())
        assert agent.invoke(GO, THREAD)["__interrupt__"][0].value == "may I?"
        go_on: Any = Command(resume="yes")
        while "__interrupt__" in (result := agent.invoke(go_on, THREAD)):
            continue
        assert result["messages"][-1].type == "ai"


class TestBudget:
    @pytest.mark.parametrize("sync", [True, False])
    def test_candidates_that_the_budget_of_the_run_refuses_are_not_sampled(self, sync: bool) -> None:
        model = Teller(number)
        guard = BudgetMiddleware(Budget(calls=6))
        agent = create_agent(model, [add], middleware=[guard, PlanSearchMiddleware(4, judge=largest)])
        result = invoke(agent, sync)
        assert model.served.calls == 6 and result["messages"][-1].text == "5"
        assert result["tts_budgets"]["agent"]["usage"]["calls"] == 6

    @pytest.mark.parametrize("sync", [True, False])
    def test_when_it_refuses_all_of_them_the_agent_ends_with_its_message(self, sync: bool) -> None:
        for order in (1, -1):
            guard = BudgetMiddleware(Budget(calls=4))
            model = Teller(lambda messages, call: calls("add", a=call, b=0))
            middleware: list[Any] = [guard, PlanSearchMiddleware(4, judge=largest)][::order]
            result = invoke(create_agent(model, [add], middleware=middleware), sync)
            assert model.served.calls == 4 and "4 calls" in result["messages"][-1].text
            assert result["messages"][-1].response_metadata["tts"]["stop"] == "budget"

    def test_a_budget_for_each_step(self) -> None:
        model = Teller(number)
        search = PlanSearchMiddleware(strategy=BestOfN(n=None, width=2), judge=largest, budget=Budget(calls=5))
        result = create_agent(model, [add], middleware=[search]).invoke(GO)
        assert model.served.calls == 10 and result["messages"][-1].text == "9"
        assert result["messages"][-1].response_metadata["tts"]["limit"] == "calls"

    async def test_time_is_up_with_the_best_so_far(self) -> None:
        model = Teller(number, faults={1: "hangs", 5: "hangs"})
        search = PlanSearchMiddleware(4, judge=largest, budget=Budget(seconds=1.0))
        result = await create_agent(model, [add], middleware=[search]).ainvoke(GO)
        assert result["messages"][-1].text == "7"
        assert result["messages"][-1].response_metadata["tts"]["limit"] == "seconds"

    async def test_when_the_time_of_the_run_is_up_the_best_so_far_is_used(self) -> None:
        model = Teller(lambda messages, call: str(call), faults={3: "hangs"})
        guard = BudgetMiddleware(Budget(seconds=2.0))
        agent = create_agent(model, [], middleware=[guard, PlanSearchMiddleware(4, judge=largest)])
        result = await agent.ainvoke(GO)
        assert result["messages"][-1].text == "2"
        assert result["tts_budgets"]["agent"]["lost"]["calls"] == 1


async def test_cancelling_the_agent_cancels_the_candidates() -> None:
    model = Teller(number, faults=dict.fromkeys(range(4), "hangs"))
    agent = create_agent(model, [add], middleware=[PlanSearchMiddleware(4, judge=largest)])
    before = asyncio.all_tasks()
    run = asyncio.create_task(agent.ainvoke(GO))
    while model.served.calls < 4:
        await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before


def test_the_trace_shows_the_candidates(tmp_path: Path) -> None:
    search = PlanSearchMiddleware(3, judge=largest, trace=tmp_path / "t.jsonl")
    create_agent(Teller(number), [add], middleware=[search]).invoke(GO)
    first, second = read(tmp_path / "t.jsonl")
    assert first.complete and second.complete


def test_only_so_many_at_once_and_at_another_temperature() -> None:
    seen: list[Any] = []

    class Watch(AgentMiddleware[Any, Any, Any]):
        running = 0

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            self.running += 1
            seen.append((self.running, request.model_settings))
            await asyncio.sleep(0)
            self.running -= 1
            return await handler(request)

    search = PlanSearchMiddleware(6, judge=largest, concurrency=2, temperature=0.7)
    asyncio.run(create_agent(Teller(number), [add], middleware=[search, Watch()]).ainvoke(GO))
    assert max(running for running, _ in seen) <= 2 and all(made == {"temperature": 0.7} for _, made in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 2, "strategy": "best_of_n"}, "no effect"),
        ({"n": 0}, "n=0 must be at least 1"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"strategy": BestOfN(n=None)}, "goes on until a budget"),
        ({"budget": Budget(calls=2, commit_tokens=5)}, "commit_tokens=5"),
        ({"trace": 5}, "trace=5"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlanSearchMiddleware(**options)


async def test_calls_that_end_as_the_rest_is_aborted_are_read_and_nothing_is_waited_for() -> None:
    class Calls:
        """An engine whose second call ends when it is told to."""

        ends = asyncio.Event()

        async def complete(self, index: int) -> int:
            if index:
                await self.ends.wait()
            return index

    calls, read = Calls(), list[Any]()
    stream = CandidateStream(cast(Any, calls), 2)

    async def reading() -> None:
        async for completion in stream:
            read.append(completion)

    reader = asyncio.create_task(reading())
    while not read:
        await asyncio.sleep(0)
    calls.ends.set()
    await asyncio.sleep(0)  # the second call ends now, and its reader has not run yet
    await stream.abort()
    async with asyncio.timeout(5):
        await reader
    assert read == [0, 1]


async def handle_of(calls: int) -> SearchHandle:
    """The search that runs, once `calls` candidates are there."""
    async with asyncio.timeout(30):
        while not (found := [each for each in running_searches(thread="1") if each.usage.calls >= calls]):
            await asyncio.sleep(0.002)
    (handle,) = found
    return handle


async def test_a_handle_stops_it_with_the_best_candidate_so_far() -> None:
    model = Teller(lambda messages, call: str(call), faults={2: "hangs", 3: "hangs"})
    middleware = PlanSearchMiddleware(4, judge=largest)
    run = asyncio.create_task(create_agent(model, [], middleware=[middleware]).ainvoke(GO, THREAD))
    handle = await handle_of(2)
    assert (handle.node, handle.search, handle.done) == (middleware.name, middleware.name, False)
    handle.stop("seen enough")
    message = (await run)["messages"][-1]
    note = message.response_metadata["tts"]
    assert message.text == "1" and note["stop"] == "cancelled" and note["candidates"] == 2
    assert handle.done and not running_searches()


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("early", [True, False])
async def test_a_graph_that_drains_gets_the_best_candidate_so_far(early: bool, sync: bool) -> None:
    """Before there is one it waits, as it would for the model without a search."""
    model = Teller(lambda messages, call: str(call), pause=0.1)
    middleware = PlanSearchMiddleware(strategy=BestOfN(n=30, width=1), judge=largest)
    agent, control = create_agent(model, [], middleware=[middleware]), RunControl()
    work = (
        asyncio.to_thread(agent.invoke, GO, THREAD, control=control)
        if sync
        else agent.ainvoke(GO, THREAD, control=control)
    )
    run = asyncio.create_task(work)
    await handle_of(0 if early else 2)
    control.request_drain("sigterm")
    message = (await run)["messages"][-1]
    note = message.response_metadata["tts"]
    assert note["stop"] == "cancelled" and int(message.text) == note["candidates"] - 1
    assert (1 if early else 2) <= note["candidates"] < 15
    assert not running_searches()


async def test_what_is_stopped_before_any_candidate_came_says_so() -> None:
    model = Teller(lambda messages, call: str(call), faults=dict.fromkeys(range(2), "hangs"))
    run = asyncio.create_task(create_agent(model, [], middleware=[PlanSearchMiddleware(2)]).ainvoke(GO, THREAD))
    (await handle_of(0)).stop("the user left")
    with pytest.raises(SearchError, match="before a candidate came: the user left"):
        await run
    assert not running_searches()


@pytest.mark.parametrize("sync", [True, False])
async def test_a_handle_raises_the_limits_of_the_step(sync: bool) -> None:
    model = Teller(lambda messages, call: str(call), pause=0.02)
    middleware = PlanSearchMiddleware(strategy=BestOfN(n=9, width=1), judge=largest, budget=Budget(calls=2))
    agent = create_agent(model, [], middleware=[middleware])
    work = asyncio.to_thread(agent.invoke, GO, THREAD) if sync else agent.ainvoke(GO, THREAD)
    run = asyncio.create_task(work)
    (await handle_of(1)).deepen(calls=3)
    note = (await run)["messages"][-1].response_metadata["tts"]
    assert note["candidates"] == 5 and note["limit"] == "calls"
