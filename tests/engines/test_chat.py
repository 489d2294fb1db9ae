"""Any chat model as an engine."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from tests.dialects.world import add
from tts_agent import BestOfN, Budget, CheckVerifier, Prefix, Sampling, Task, search
from tts_agent.dialect import Request
from tts_agent.dialects import ChatDialect
from tts_agent.engines.base import Completion, sample_bound
from tts_agent.engines.chat import ChatEngine
from tts_agent.engines.records import END, decode_messages, encode_message, encode_text
from tts_agent.errors import ConfigError, EngineUnavailable
from tts_agent.nodes import create_planning_agent
from tts_agent.usage import Usage

CALL = {"name": "add", "args": {"a": 1, "b": 2}, "id": "toolu_01", "type": "tool_call"}
SAMPLING = Sampling(max_tokens=50)


class FakeModel(BaseChatModel):
    """Answers with `reply(messages, call)`, where `call` counts from 0; remembers what it was asked with."""

    reply: Callable[[Sequence[BaseMessage], int], AIMessage]
    pause: float = 0.0
    calls: list[dict[str, Any]] = []
    running: int = 0
    most: int = 0

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        number = len(self.calls)
        self.calls.append({"messages": messages, **kwargs})
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.pause)
            return ChatResult(generations=[ChatGeneration(message=self.reply(messages, number))])
        finally:
            self.running -= 1


def usage(prompt: int = 1, generated: int = 5, cached: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "output_tokens": generated,
        "total_tokens": prompt + generated,
        "input_token_details": {"cache_read": cached},
    }


def says(*texts: str, **metadata: Any) -> Callable[[Sequence[BaseMessage], int], AIMessage]:
    """Says `texts` in turn, the last one for ever."""

    def reply(messages: Sequence[BaseMessage], number: int) -> AIMessage:
        reported = metadata.get("usage", usage())
        finish = {"finish_reason": metadata.get("finish", "stop")}
        message = AIMessage(texts[min(number, len(texts) - 1)], response_metadata=finish)
        message.usage_metadata = reported  # as integrations do it: nothing validates this
        return message

    return reply


def make(reply: Callable[..., AIMessage] | None = None, *, pause: float = 0.0, **options: Any) -> ChatEngine:
    return ChatEngine(FakeModel(reply=reply or says("Hello."), pause=pause, calls=[]), **options)


def model_of(engine: ChatEngine) -> FakeModel:
    model = engine._model
    assert isinstance(model, FakeModel)
    return model


async def completions(
    engine: ChatEngine, prefix: Prefix, n: int = 1, sampling: Sampling = SAMPLING
) -> list[Completion]:
    stream = engine.sample(prefix, sampling, seeds=list(range(n)))
    return [completion async for completion in stream]


# --- messages as ids

TEXT = st.text(st.characters(codec=None, exclude_categories=())) | st.sampled_from(["\x1e", "<tool_call>", "\ud800"])
MESSAGES = st.lists(
    st.one_of(
        st.builds(HumanMessage, content=TEXT),
        st.builds(SystemMessage, content=TEXT),
        st.builds(ToolMessage, content=TEXT, tool_call_id=TEXT, status=st.sampled_from(["success", "error"])),
        st.builds(lambda text, name: AIMessage(text, tool_calls=[{**CALL, "name": name}]), text=TEXT, name=TEXT),
        st.just(HumanMessage([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:,"}}])),
    ),
    max_size=5,
)


@given(MESSAGES)
def test_messages_come_back_from_their_ids(messages: list[AnyMessage]) -> None:
    prefix = make().prompt(messages)
    assert decode_messages(prefix.ids) == messages
    assert all(0 <= token <= END for token in prefix.ids)
    assert prefix.starts_with(make().prompt(messages[:-1]))


@given(TEXT, TEXT)
def test_text_is_what_a_human_says_and_imitates_no_message(before: str, after: str) -> None:
    record = encode_message(AIMessage("said"))
    ids = (*encode_text(before), *record, END, *encode_text(after))
    expected = [HumanMessage(before)] * bool(before) + [AIMessage("said")] + [HumanMessage(after)] * bool(after)
    if not any("\ud800" <= letter <= "\udfff" for letter in before + after):
        assert decode_messages(ids) == expected
    make().decode(ids)


@pytest.mark.parametrize("message", [ChatMessage("x", role="developer"), FunctionMessage("x", name="f")])
def test_messages_of_older_kinds_come_back_too(message: AnyMessage) -> None:
    assert decode_messages(encode_message(message)) == [message]


def test_what_only_changes_the_state_is_no_message() -> None:
    with pytest.raises(ConfigError, match="'remove' says nothing to a model"):
        make().prompt([HumanMessage("x"), RemoveMessage(id="1")])


@pytest.mark.parametrize(("ids", "reason"), [((5, 1 << 24), "cut or broken"), ((9 << 24,), "stands for no text")])
def test_ids_of_others_are_refused(ids: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        decode_messages(ids)


def test_what_a_model_need_not_be_told_again_is_left_out() -> None:
    once = AIMessage("x", id="1", usage_metadata=usage(), response_metadata={"tts": {}, "model_provider": "openai"})
    again = AIMessage("x", id="2", response_metadata={"model_provider": "openai"})
    assert encode_message(once) == encode_message(again)
    assert decode_messages(encode_message(once)) == [AIMessage("x", response_metadata={"model_provider": "openai"})]


# --- sampling


async def test_a_sample_is_a_whole_message_with_its_usage() -> None:
    reply = AIMessage("Hm.", tool_calls=[CALL], usage_metadata=usage(30, 7, cached=20))
    engine = make(lambda messages, number: reply)
    messages = [SystemMessage("Be brief."), HumanMessage("Go.")]
    (completion,) = await completions(engine, engine.prompt(messages))
    assert model_of(engine).calls[0]["messages"] == messages
    assert completion.ids[-1] == END and completion.finish == "stop"
    assert completion.usage == Usage(10, 20, 7, 6, calls=1)
    message = engine.message(completion.ids)
    assert (message.content, message.tool_calls) == ("Hm.", [CALL])
    assert engine.decode(completion.ids) == (
        'Hm.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    )


async def test_text_is_a_prompt_too() -> None:
    engine = make()
    await completions(engine, Prefix(engine.encode("What is 1 + 2?")))
    assert model_of(engine).calls[0]["messages"] == [HumanMessage("What is 1 + 2?")]


async def test_a_message_is_not_continued_but_can_be_answered() -> None:
    engine = make()
    said = engine.prompt([HumanMessage("Go."), AIMessage("Hm.")])
    with pytest.raises(ConfigError, match="cannot continue one; let every thought be a whole message"):
        engine.sample(said, SAMPLING, seeds=[1])
    await completions(engine, said.extend(engine.encode("Are you sure?")))
    assert [message.type for message in model_of(engine).calls[0]["messages"]] == ["human", "ai", "human"]


async def test_calls_at_once_are_bounded() -> None:
    engine = make(pause=0.005, concurrency=3)
    prefix = engine.prompt([HumanMessage("Go.")])
    both = await asyncio.gather(completions(engine, prefix, 6), completions(engine, prefix, 6))
    assert [sorted(completion.index for completion in part) for part in both] == [list(range(6))] * 2
    assert model_of(engine).most == 3


def test_an_engine_serves_several_event_loops() -> None:
    engine = make(pause=0.001, concurrency=1)
    for _ in range(2):
        assert len(asyncio.run(completions(engine, engine.prompt([HumanMessage("Go.")]), 3))) == 3


@pytest.mark.parametrize(
    ("arguments", "sampling", "expected"),
    [
        (None, Sampling(20, temperature=0.5), {"max_tokens": 20, "temperature": 0.5}),
        ({}, Sampling(20, temperature=0.5), {}),
        ({"max_tokens": "num_predict", "top_p": "top_p"}, Sampling(20, top_p=0.9), {"num_predict": 20, "top_p": 0.9}),
        ({"seed": "seed"}, Sampling(20), {"seed": 0}),
    ],
)
async def test_arguments_have_the_names_that_the_model_knows(
    arguments: dict[str, str] | None, sampling: Sampling, expected: dict[str, Any]
) -> None:
    engine = make() if arguments is None else make(arguments=arguments)
    await completions(engine, engine.prompt([HumanMessage("Go.")]), sampling=sampling)
    (call,) = model_of(engine).calls
    assert {name: value for name, value in call.items() if name != "messages"} == expected
    assert engine.capabilities.seeds == ("seed" in (arguments or {}))


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [(Sampling(5, top_p=0.5), "how its model takes top_p=0.5"), (Sampling(5, stop_ids=(3,)), "knows no stop tokens")],
)
async def test_sampling_that_the_model_cannot_do_is_refused(sampling: Sampling, reason: str) -> None:
    engine = make()
    with pytest.raises(ConfigError, match=reason):
        engine.sample(engine.prompt([HumanMessage("Go.")]), sampling, seeds=[1])


@pytest.mark.parametrize(
    ("options", "reason"), [({"concurrency": 0}, "concurrency=0"), ({"arguments": {"topp": "x"}}, "unknown arguments")]
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(**options)


async def test_an_answer_that_was_cut_says_so() -> None:
    for reason in ("length", "max_tokens"):
        engine = make(says("Hello", finish=reason))
        (completion,) = await completions(engine, engine.prompt([HumanMessage("Go.")]))
        assert completion.finish == "length"


# --- what goes wrong


class ProviderError(Exception):
    """An error of a provider's own kind."""


async def test_an_outage_is_told_after_what_arrived() -> None:
    def reply(messages: Sequence[BaseMessage], number: int) -> AIMessage:
        if number == 1:
            raise ProviderError("overloaded")
        return says("Hello.")(messages, number)

    engine = make(reply)
    stream = engine.sample(engine.prompt([HumanMessage("Go.")]), SAMPLING, seeds=[1, 2, 3])
    seen = []
    with pytest.raises(EngineUnavailable, match="ProviderError: overloaded"):
        async for completion in stream:
            seen.append(completion.index)
    assert seen == [0, 2]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_arguments_that_the_model_does_not_take_are_a_wrong_setting() -> None:
    def reply(messages: Sequence[BaseMessage], number: int) -> AIMessage:
        raise TypeError("got an unexpected keyword argument 'max_tokens'")

    engine = make(reply)
    with pytest.raises(ConfigError, match="does not take .'max_tokens': 50, 'temperature': 1.0.*name what it takes"):
        await completions(engine, engine.prompt([HumanMessage("Go.")]), 3)


async def test_an_abort_is_confirmed_only_where_nothing_was_asked_yet() -> None:
    engine = make(pause=0.01, concurrency=1)
    prefix = engine.prompt([HumanMessage("Go.")])
    stream = engine.sample(prefix, SAMPLING, seeds=[1, 2])
    await anext(stream)
    await asyncio.sleep(0.002)
    assert await stream.abort() is None  # the second call was under way
    assert await stream.abort() == Usage()
    waiting = engine.sample(prefix, SAMPLING, seeds=[1])
    assert await waiting.abort() == Usage()
    with pytest.raises(StopAsyncIteration):
        await anext(waiting)
    assert model_of(engine).running == 0


async def test_an_abort_accounts_for_what_was_not_read() -> None:
    engine = make(says("Hello.", usage=usage(10, 5)))
    stream = engine.sample(engine.prompt([HumanMessage("Go.")]), SAMPLING, seeds=[1, 2])
    await asyncio.sleep(0.05)
    assert await stream.abort() == Usage(20, 0, 10, 8, calls=2)


async def test_closing_the_engine_stops_its_calls() -> None:
    engine = make(pause=5.0)
    stream = engine.sample(engine.prompt([HumanMessage("Go.")]), SAMPLING, seeds=[1])
    await asyncio.sleep(0.005)
    await engine.aclose()
    assert model_of(engine).running == 0
    assert [completion async for completion in stream] == []


@pytest.mark.parametrize(
    ("reported", "said"),
    [
        (None, "reports no usage"),
        ({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, "reports no usage"),
        ({"input_tokens": None, "output_tokens": None, "total_tokens": None}, "reports no usage"),
        (usage(10_000, 5), "counted 10000 prompt tokens where"),
        (usage(10, 500), "said 500 tokens where max_tokens was 50"),
    ],
)
async def test_that_a_budget_is_soft_is_said_once(reported: dict[str, Any] | None, said: str) -> None:
    engine = make(says("Hello.", usage=reported))
    prefix = engine.prompt([HumanMessage("Go.")])
    with pytest.warns(UserWarning, match=f"budgets are soft: .*{said}"):
        (first,) = await completions(engine, prefix)
    (second,) = await completions(engine, prefix)  # another warning would be an error
    assert first.usage == second.usage
    if reported is None or not reported["output_tokens"]:
        assert first.usage.prompt_computed == len(prefix) and first.usage.generated == len(first.ids)
    assert engine.capabilities.info["budget"] == "soft"


async def test_tools_that_are_bound_to_the_model_are_a_part_of_every_prompt(recwarn: pytest.WarningsRecorder) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "Adds. " * 100, "parameters": {}}}
    model = FakeModel(reply=says("Hello.", usage=usage(220, 5)), pause=0.0, calls=[])
    bare, bound, retried = (
        ChatEngine(each) for each in (model, model.bind(tools=[tool]), model.bind(tools=[tool]).with_retry())
    )
    assert bare.capabilities.overhead == 0
    assert 200 < bound.capabilities.overhead == retried.capabilities.overhead < 250
    prefix = bound.prompt([HumanMessage("Go.")])
    reserved = [sample_bound(engine.capabilities, len(prefix), 2, 5).prompt for engine in (bare, bound)]
    assert reserved == [2 * len(prefix), 2 * (len(prefix) + bound.capabilities.overhead)]
    (completion,) = await completions(bound, prefix)
    assert completion.usage.prompt == 220 and not recwarn.list
    silent = ChatEngine(FakeModel(reply=says("Hello.", usage=None), pause=0.0, calls=[]).bind(tools=[tool]))
    with pytest.warns(UserWarning, match="reports no usage"):
        (completion,) = await completions(silent, prefix)
    assert completion.usage.prompt == len(prefix) + bound.capabilities.overhead


async def test_details_that_a_provider_leaves_empty_count_nothing() -> None:
    for details in (None, {}, {"cache_read": None}, {"cache_read": -3}):
        engine = make(says("Hello.", usage={**usage(9, 5), "input_token_details": details}))
        (completion,) = await completions(engine, engine.prompt([HumanMessage("Go.")]))
        assert completion.usage == Usage(9, 0, 5, 4, calls=1)


async def test_a_model_that_returns_no_message_is_a_wrong_setting() -> None:
    engine = ChatEngine(RunnableLambda(lambda messages: "Hello."), arguments={})
    with pytest.raises(ConfigError, match="returns 'str', not an AIMessage"):
        await completions(engine, engine.prompt([HumanMessage("Go.")]))


def test_an_engine_constrains_if_its_model_does() -> None:
    assert not make().capabilities.constrains
    assert make(arguments={"json_schema": "schema"}).capabilities.constrains


# --- searches


async def test_best_of_n_searches_whole_messages() -> None:
    engine = make(says("bad", "good", "ugly"))
    task = Task(
        Prefix(engine.encode("Say something good.")),
        thought=SAMPLING,
        answer=SAMPLING,
        end_ids=frozenset(engine.capabilities.end_ids),
    )
    verifier = CheckVerifier(lambda branch: 1.0 if branch.text == "good" else 0.1)
    outcome = await search(engine, task, strategy=BestOfN(n=3, width=3), verifier=verifier, budget=Budget(calls=9))
    assert outcome.answer == "good"
    assert outcome.usage.calls == len(model_of(engine).calls) == 3


async def test_a_limit_on_calls_counts_every_sample() -> None:
    engine = make()
    task = Task(Prefix(engine.encode("Go.")), thought=SAMPLING, answer=SAMPLING, end_ids=frozenset((END,)))
    outcome = await search(engine, task, strategy=BestOfN(n=20, width=4), budget=Budget(calls=7, commit_tokens=0))
    assert outcome.limit == "calls" or outcome.stop == "converged"
    assert len(model_of(engine).calls) <= 7


async def test_a_search_below_a_message_is_refused_clearly() -> None:
    engine = make()
    task = Task(Prefix(engine.encode("Go.")), thought=SAMPLING)
    with pytest.raises(ConfigError, match="samples whole messages and cannot continue one"):
        await search(engine, task, strategy="beam", budget=Budget(calls=40))


async def test_a_search_below_a_message_is_refused_before_it_costs() -> None:
    engine = make()
    task = Task(Prefix(engine.encode("Go.")), SAMPLING)
    for strategy in ("beam", "best_first", "greedy"):
        with pytest.raises(ConfigError, match="samples whole messages and cannot continue one"):
            await search(engine, task, strategy=strategy, budget=Budget(calls=9))
    assert not model_of(engine).calls


@pytest.mark.parametrize(
    ("message", "calls"),
    [
        (AIMessage("To call a tool, write <tool_call> and JSON."), []),
        (AIMessage("<tool_call>\n{}\n</tool_call>"), []),
        (AIMessage("", tool_calls=[{**CALL, "args": {"a": "</tool_call>", "b": "<tool_call>"}}]), ["add"]),
        (AIMessage("I write <tool_call>.", tool_calls=[CALL, {**CALL, "id": "2"}]), ["add", "add"]),
    ],
)
async def test_what_a_message_says_of_tags_is_no_call(message: AIMessage, calls: list[str]) -> None:
    engine = make(lambda messages, number: message.model_copy(update={"usage_metadata": usage()}))
    dialect = ChatDialect(engine, tools=[add], sampling=SAMPLING)
    request = dialect.request([HumanMessage("Go.")], None)
    assert isinstance(request, Request)
    outcome = await search(engine, request.task, strategy=BestOfN(n=1, width=1), budget=Budget(calls=3))
    assert outcome.path[0].status == "complete"
    assert [call["name"] for call in outcome.path[0].action.get("calls", [])] == calls
    decision = dialect.decide(outcome.path[0])
    assert decision.content == message.content and decision.tool_calls == message.tool_calls


def test_stop_tokens_are_not_for_chat_models() -> None:
    with pytest.raises(ConfigError, match=r"no stop tokens \(7,\)"):
        ChatDialect(make(), sampling=Sampling(5, stop_ids=(7,)))


def calling(messages: Sequence[BaseMessage], number: int) -> AIMessage:
    if isinstance(messages[-1], ToolMessage):
        return AIMessage(f"It is {messages[-1].text}.", usage_metadata=usage())
    broken = {"name": "add", "args": "{1", "id": "x", "error": "not JSON", "type": "invalid_tool_call"}
    if number == 0:
        return AIMessage("", invalid_tool_calls=[broken], usage_metadata=usage())
    if number == 1:
        return AIMessage("", tool_calls=[{**CALL, "name": "subtract"}], usage_metadata=usage())
    signed = [{"type": "thinking", "thinking": "Easy.", "signature": "s"}, {"type": "text", "text": "I add."}]
    return AIMessage(signed, tool_calls=[CALL], usage_metadata=usage())


async def test_an_agent_plans_with_a_chat_model() -> None:
    engine = make(calling)
    agent = create_planning_agent(
        engine,
        dialect=ChatDialect(engine, tools=[add], sampling=SAMPLING),
        tools=[add],
        strategy=BestOfN(n=4, width=4),
        budget=Budget(calls=10),
    ).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    state = await agent.ainvoke({"messages": [HumanMessage("What is 1 + 2?")]}, config)
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"]
    assert state["messages"][-1].text == "It is 3."
    # The model is told its own message to the letter, and later requests extend earlier ones.
    asked = [call["messages"] for call in model_of(engine).calls]
    assert all(later[0] == asked[0][0] for later in asked)
    told = asked[-1][1]
    assert told.content[0]["signature"] == "s" and told.tool_calls == [CALL]
    roots = [engine.prompt(messages) for messages in asked]
    assert roots[-1].starts_with(roots[0])
    json.dumps(state["tts"])


async def test_branches_are_kept_from_who_reads_the_graphs_messages() -> None:
    engine = make(says("Hm.", "Well.", "So."))
    task = Task(engine.prompt([HumanMessage("?")]), SAMPLING, SAMPLING, end_ids=frozenset((END,)))

    async def plan(state: MessagesState) -> dict[str, Any]:
        outcome = await search(engine, task, strategy=BestOfN(n=3, width=3))
        return {"messages": [AIMessage(outcome.answer)]}

    graph = StateGraph(MessagesState).add_node(plan).add_edge(START, "plan").compile()
    heard = [said async for said, _ in graph.astream({"messages": [HumanMessage("?")]}, stream_mode="messages")]
    assert len(model_of(engine).calls) == 3
    assert [said.text for said in heard if isinstance(said, AIMessage)] == ["Hm."]


@pytest.mark.parametrize(
    ("messages", "reason"), [([], "no messages"), ([HumanMessage("x"), AIMessage("y")], "nothing to answer")]
)
def test_what_cannot_be_answered_is_refused(messages: list[AnyMessage], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ChatDialect(make()).request(messages, None)


async def test_an_error_of_any_kind_is_heard() -> None:
    engine = make(says("Hello.", usage=usage(10_000, 5)))
    with pytest.raises(UserWarning, match="soft"):  # warnings are errors here, as some applications have it
        await completions(engine, engine.prompt([HumanMessage("Go.")]))


class StreamingModel(FakeModel):
    """Says its answer word by word."""

    async def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        result = await self._agenerate(messages, stop, run_manager, **kwargs)
        message = result.generations[0].message
        words = message.text.split(" ")
        for place, word in enumerate(words):
            last = place == len(words) - 1
            spent = message.usage_metadata if last else None  # type: ignore[attr-defined]
            yield ChatGenerationChunk(message=AIMessageChunk(word if last else word + " ", usage_metadata=spent))


@pytest.mark.parametrize("streams", [True, False])
async def test_who_listens_hears_the_text_grow_and_gets_the_same(streams: bool) -> None:
    kind = StreamingModel if streams else FakeModel
    told: list[str] = []
    text = "Hello große Welt."
    for listening in (False, True):
        engine = ChatEngine(kind(reply=says(text), calls=[]))
        tell = (lambda index, ids: told.append(engine.decode(ids))) if listening else None  # noqa: B023
        prefix = engine.prompt([HumanMessage("Hi")])
        (completion,) = [done async for done in engine.sample(prefix, SAMPLING, seeds=[1], tell=tell)]
        assert engine.message(completion.ids[:-1]).text == text
        assert completion.usage == Usage(prompt_computed=1, generated=5, decoded=4, calls=1)
    assert told == (["Hello ", "Hello große ", text] if streams else [])
