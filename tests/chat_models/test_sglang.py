"""ChatSGLang, over HTTP on this machine."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError, OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from tests.chat_models.server import WORDS, ChatServer, decode
from tts_agent.chat_models import ChatSGLang, ContextOverflow
from tts_agent.errors import ConfigError, EngineUnavailable

Open = Callable[..., ChatSGLang]


@pytest.fixture(scope="module")
def shared() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def server(shared: ChatServer) -> Iterator[ChatServer]:
    """One that has nothing to do, and says what it wants."""
    shared.model.bodies.clear()
    yield shared
    shared.model.pace, shared.model.says = 0.0, None


@pytest.fixture
async def connect() -> AsyncIterator[Open]:
    models: list[ChatSGLang] = []

    def model(server: ChatServer, **settings: Any) -> ChatSGLang:
        models.append(ChatSGLang(base_url=server.address, **settings))
        return models[-1]

    yield model
    for one in models:
        one.close()
        await one.aclose()


@tool
def look_up(city: str) -> str:
    """What the weather is like."""
    return f"It rains in {city}."


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Weather(BaseModel):
    """What the weather is like."""

    city: str
    degrees: int


def asked(server: ChatServer) -> dict[str, Any]:
    """The parameters of the last request."""
    params: dict[str, Any] = server.model.bodies[-1]["sampling_params"][0]
    return params


def whole(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    first, *rest = chunks
    full = sum(rest, first)
    assert isinstance(full, AIMessageChunk)
    return full


# What is sent, and what comes back


def test_nobody_is_asked_before_the_first_call() -> None:
    model = ChatSGLang(base_url="127.0.0.1:9", max_retries=0).bind_tools([add]).with_config(tags=["quiet"])
    with pytest.raises(EngineUnavailable, match="127.0.0.1:9"):
        model.invoke("Hello")


def test_settings_are_obeyed_and_can_be_given_with_a_call(server: ChatServer, connect: Open) -> None:
    model = connect(server, temperature=0.0, max_tokens=9, stop=["Hello"])
    message = model.invoke("Hi")
    assert message.text == "" and message.response_metadata["finish_reason"] == "stop"
    assert (asked(server)["temperature"], asked(server)["max_new_tokens"]) == (0.0, 9)
    message = model.invoke("Hi", max_tokens=6, stop=["none"], presence_penalty=0.5, temperature=0.3, top_p=0.9, seed=5)
    assert message.text == WORDS[:6] and message.response_metadata["finish_reason"] == "length"
    drawn = asked(server)["custom_params"]
    assert (drawn["seed"], drawn["temperature"], drawn["top_p"]) == ("5", 0.3, 0.9)
    assert asked(server)["presence_penalty"] == 0.5
    with pytest.raises(ConfigError, match="unknown arguments \\['logit_bias'\\]"):
        model.invoke("Hi", logit_bias={})
    with pytest.raises(ConfigError, match="model='other'"):
        model.invoke("Hi", model="other")
    with pytest.raises(ConfigError, match="temperature=-1"):
        model.invoke("Hi", temperature=-1)
    with pytest.raises(ValueError, match="temprature"):
        ChatSGLang(temprature=0.5)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"temperature": None}, "temperature=None must be a number"),
        ({"temperature": "hot"}, "temperature='hot' must be a number"),
        ({"top_k": 2.5}, "top_k=2.5 must be a whole number"),
        ({"max_tokens": "5"}, "max_tokens='5' must be a whole number or None"),
        ({"max_tokens": 5.5}, "max_tokens=5.5 must be a whole number or None"),
        ({"n": None}, "n=None must be a whole number"),
        ({"n": "2"}, "n='2' must be a whole number"),
        ({"n": True}, "n=True must be a whole number"),
        ({"seed": "x"}, "seed='x' must be a whole number or None"),
        ({"stop": 3}, "stop=3 must be a list of texts"),
        ({"stop": ["a", None]}, "must be a list of texts"),
    ],
)
def test_a_setting_of_another_kind_is_named(server: ChatServer, connect: Open, wrong: Any, error: str) -> None:
    model = connect(server)
    with pytest.raises(ConfigError, match=error):
        model.invoke("Hi", **wrong)
    with pytest.raises(ConfigError, match=error):
        list(model.stream("Hi", **wrong))
    assert model.invoke("Hi", max_tokens=None, seed=None).text.startswith(WORDS)


def test_the_stop_texts_of_a_call_take_the_place_of_the_models(server: ChatServer, connect: Open) -> None:
    model = connect(server, seed=1, stop=["words"])
    assert model.invoke("Hi").text == "Hello, you there. Here are some"
    for none in (model.invoke("Hi", stop=[]), model.bind(stop=[]).invoke("Hi")):
        assert none.text == f"{WORDS} [1]"
    assert model.invoke("Hi", stop="some").text == "Hello, you there. Here are"
    assert model._get_ls_params(stop=[]).get("ls_stop") is None
    assert model._get_ls_params()["ls_stop"] == ["words"]


def test_half_a_character_is_refused(server: ChatServer, connect: Open) -> None:
    model = connect(server)
    model.invoke("🦊")
    call = {"name": "add", "args": {"a": "\udc80"}, "id": "1"}
    for place, message in ((1, HumanMessage("caf\ud83d")), (1, AIMessage("", tool_calls=[call]))):
        with pytest.raises(ConfigError, match=f"message {place} .* half of a character"):
            model.invoke([HumanMessage("Hi"), message])


def test_several_answers_are_one_request(server: ChatServer, connect: Open) -> None:
    model = connect(server, n=3, seed=7)
    (generations,) = model.generate([[HumanMessage("Say something that was never said.")]]).generations
    assert [one.text for one in generations] == [f"{WORDS} [{seed}]" for seed in (7, 8, 9)]
    warm, batch = server.model.bodies[-2:]
    assert (len(warm["input_ids"]), len(batch["input_ids"])) == (1, 3)
    usages = [one.message.usage_metadata for one in generations]
    computed = [usage["input_tokens"] - usage["input_token_details"]["cache_read"] for usage in usages]
    # The prompt once, and for each sample its last token, and one that the scheduler has under way at the end.
    assert sum(computed) <= usages[0]["input_tokens"] + 2 * 3
    # Chunks of several answers would be one text, so they come whole.
    assert [message.text for message in model.stream("Hi")] == [f"{WORDS} [7]"]
    with pytest.raises(ConfigError, match="n=0"):
        model.invoke("Hi", n=0)


async def test_a_stream_says_what_an_answer_says(server: ChatServer, connect: Open) -> None:
    model = connect(server, seed=3)
    answer = await model.ainvoke("Hi")
    chunks = [chunk async for chunk in model.astream("Hi")]
    full = whole(chunks)
    assert len(chunks) > 5 and "".join(chunk.text for chunk in chunks[:-1]) != ""
    assert full.text == answer.text == f"{WORDS} [3]"
    assert (
        full.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"] == len(answer.text.encode()) + 1
    )
    assert [chunk.usage_metadata is not None for chunk in chunks[-2:]] == [False, True]
    assert chunks[-1].chunk_position == "last"
    assert full.response_metadata == {
        "model_name": "served/elsewhere",
        "model_provider": "sglang",
        "finish_reason": "stop",
    }
    assert whole(list(model.stream("Hi", stop=["some"]))).text == "Hello, you there. Here are"


# Tools


async def test_tools_are_called_and_answered(server: ChatServer, connect: Open) -> None:
    agent = create_agent(connect(server, seed=1), [look_up])
    result = await agent.ainvoke({"messages": [HumanMessage("How is it in 'Bern'?")]})
    _, call, result_of_tool, answer = result["messages"]
    assert [(one["name"], one["args"]) for one in call.tool_calls] == [("look_up", {"city": "Bern"})]
    assert call.text == "I call it." and call.response_metadata["finish_reason"] == "tool_calls"
    assert isinstance(result_of_tool, ToolMessage) and result_of_tool.text == "It rains in Bern."
    assert answer.text == f"{WORDS} [1]"
    # What the model was told and what it said is still in the cache.
    assert answer.usage_metadata["input_token_details"]["cache_read"] > call.usage_metadata["input_tokens"]


async def test_an_agent_answers_with_an_object(server: ChatServer, connect: Open) -> None:
    agent = create_agent(connect(server), [], response_format=Weather)
    result = await agent.ainvoke({"messages": [HumanMessage("How is it in 'Bern'?")]})
    assert result["structured_response"] == Weather(city="Bern", degrees=3)


@pytest.mark.parametrize(
    ("choice", "names"),
    [("any", ["look_up", "add"]), ("required", ["look_up", "add"]), (True, ["look_up", "add"]), ("add", ["add"]),
     ({"type": "function", "function": {"name": "add"}}, ["add"]), ({"type": "tool", "name": "look_up"}, ["look_up"])],
)  # fmt: skip
def test_a_call_that_must_be_made_is_bound_to_a_grammar(
    server: ChatServer, connect: Open, choice: Any, names: list[str]
) -> None:
    bound = connect(server).bind_tools([look_up, add], tool_choice=choice)
    message = bound.invoke("How is it in 'Bern'?")
    schema = json.loads(asked(server)["json_schema"])
    one = schema["items"].get("anyOf") or [schema["items"]]
    assert [call["properties"]["name"]["const"] for call in one] == names
    assert message.tool_calls[0]["name"] == names[0] and message.text == ""
    assert whole(list(bound.stream("How is it in 'Bern'?"))).tool_calls == message.tool_calls
    assert ("maxItems" in schema) == (len(names) == 1)


def test_choices_that_cannot_be_are_refused(server: ChatServer, connect: Open) -> None:
    model = connect(server)
    with pytest.raises(ConfigError, match="names no tool; known: add"):
        model.bind_tools([add], tool_choice="subtract")
    with pytest.raises(ConfigError, match="needs tools"):
        model.invoke("Hi", tool_choice="any")
    with pytest.raises(ConfigError, match="is not known"):
        model.bind_tools([add], tool_choice=3)
    with pytest.raises(ConfigError, match="cannot call tools"):
        model.bind_tools([add]).invoke("Hi", response_format={"type": "json_object"})
    with pytest.raises(ConfigError, match="response_format"):
        model.invoke("Hi", response_format={"type": "yaml"})
    assert not server.model.bodies
    assert model.bind_tools([add], tool_choice="none").invoke("Hi").tool_calls == []
    model.bind_tools([add, look_up], tool_choice="any", parallel_tool_calls=False).invoke("Hi")
    assert json.loads(asked(server)["json_schema"])["maxItems"] == 1


def test_a_call_that_cannot_be_carried_out_is_told(server: ChatServer, connect: Open) -> None:
    server.model.says = 'I try. <tool_call>{"name": "add", "arguments": {"a": 1</tool_call>'
    model = connect(server).bind_tools([add], tool_choice="any")
    message = model.invoke("Add.")
    assert message.tool_calls == [] and "not whole" in message.invalid_tool_calls[0]["error"]
    full = whole(list(model.stream("Add.")))
    assert [call["args"] for call in full.invalid_tool_calls] == [call["args"] for call in message.invalid_tool_calls]
    assert full.text == message.text == server.model.says


def test_a_server_without_a_parser_is_refused_before_it_is_asked(connect: Open) -> None:
    server = ChatServer(tool_call_parser=None)
    with pytest.raises(ConfigError, match="--tool-call-parser"):
        connect(server).bind_tools([add]).invoke("Add.")
    assert not any(body["sampling_params"][0].get("max_new_tokens", 0) > 2 for body in server.model.bodies)
    server.close()


def test_a_server_without_grammars_is_refused(connect: Open) -> None:
    server = ChatServer(grammar_backend="none")
    with pytest.raises(ConfigError, match="--grammar-backend"):
        connect(server).with_structured_output({"title": "x", "type": "object"}).invoke("Hi")
    server.close()


# Structured answers


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_answers(server: ChatServer, connect: Open, method: Any) -> None:
    model = connect(server)
    found = await model.with_structured_output(Weather, method=method).ainvoke("How is it in 'Bern'?")
    assert found == Weather(city="Bern", degrees=3)
    plain = model.with_structured_output(Weather.model_json_schema(), method=method, include_raw=True)
    result = plain.invoke("How is it in 'Bern'?")
    assert result["parsed"] == {"city": "Bern", "degrees": 3} and isinstance(result["raw"], AIMessage)
    server.model.says = '{"city": "Bern"}'
    failed = model.with_structured_output(Weather, include_raw=True).invoke("How is it?")
    assert failed["parsed"] is None and failed["parsing_error"] is not None
    with pytest.raises(ConfigError, match="unknown method"):
        model.with_structured_output(Weather, method="magic")


QUOTE = '{"city": "Zürich", "degrees": 12345}'


def said_by(method: str) -> str:
    return QUOTE if method == "json_schema" else f'[{{"name": "Weather", "arguments": {QUOTE}}}]'


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [Weather, Weather.model_json_schema()])
async def test_an_object_that_was_cut_is_none(server: ChatServer, connect: Open, method: Any, schema: Any) -> None:
    server.model.says = said_by(method)
    size = len(server.model.says.encode())
    for cut in range(1, size, 8):
        model = connect(server, max_tokens=cut)
        bound = model.with_structured_output(schema, method=method)
        with pytest.raises(OutputParserException, match="cut at max_tokens"):
            await bound.ainvoke("How is it?")
        with pytest.raises(OutputParserException, match="cut at max_tokens"):
            [part async for part in bound.astream("How is it?")]
        found = model.with_structured_output(schema, method=method, include_raw=True).invoke("How is it?")
        assert found.get("parsed") is None and "cut at max_tokens" in str(found["parsing_error"])
        assert found["raw"].response_metadata["finish_reason"] == "length"
    whole_one = connect(server, max_tokens=size + 1).with_structured_output(schema, method=method)
    weather = Weather(city="Zürich", degrees=12345)
    expected = weather if schema is Weather else weather.model_dump()
    assert await whole_one.ainvoke("How is it?") == expected
    assert list(whole_one.stream("How is it?"))[-1] == expected


def test_an_object_that_ends_at_a_stop_text_is_none(server: ChatServer, connect: Open) -> None:
    server.model.says = QUOTE
    with pytest.raises(OutputParserException, match="without stop texts"):
        connect(server, stop=["3"]).with_structured_output(Weather).invoke("How is it?")


def test_a_strict_schema_reaches_the_model(server: ChatServer, connect: Open) -> None:
    bound = connect(server).with_structured_output(Weather, method="function_calling", strict=True)
    assert bound.invoke("How is it in 'Bern'?") == Weather(city="Bern", degrees=3)
    assert '"strict": true' in decode(server.model.bodies[-1]["input_ids"][0])


@pytest.mark.parametrize("value", ["1000000000000000000000000000000", "NaN"])
async def test_an_agent_with_a_checkpointer_lives_on_after_a_call_that_cannot_be_stored(
    server: ChatServer, connect: Open, value: str
) -> None:
    server.model.says = f'[{{"name": "add", "arguments": {{"a": {value}, "b": 1}}}}]'
    model = connect(server).bind_tools([add], tool_choice="any")

    async def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("speak", speak).add_edge(START, "speak").compile(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    message = (await graph.ainvoke({"messages": [HumanMessage("Add.")]}, config))["messages"][-1]
    assert message.tool_calls == [] and value in message.invalid_tool_calls[0]["args"]


# Reasoning


PARTS = [
    *("Hello", "\n", "  ", "I think. ", "STOP", "ST", "ö🦊", "{", "[", "end.", "<", "</th", "```json"),
    *("<think>", "</think>", "<tool_call>", '{"name": "add", "arguments": {"a": 1, "b": 2}}', "</tool_call>"),
]

CALLED_WITH = st.fixed_dictionaries({}, optional={"stop": st.just(["STOP"]), "max_tokens": st.integers(1, 40)})


@pytest.fixture(scope="module")
def readers() -> Iterator[list[ChatServer]]:
    """Servers without a parser for reasoning, with one, and with an unknown one for tools."""
    infos: list[dict[str, Any]] = [{}, {"reasoning_parser": "qwen3"}, {"tool_call_parser": "mystery"}]
    servers = [ChatServer(max_req_input_len=8000, **info) for info in infos]
    yield servers
    for server in servers:
        server.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=7), st.integers(0, 2), st.booleans(), st.booleans(), CALLED_WITH)
@example(["<think>", "I think. ", "</think>", "Hello"], 0, False, False, {})
@example(["I think. ", "</think>", "Hello"], 0, True, True, {})
@example(["I think. ", "\n", "end."], 0, True, False, {})
@example(["Hello", "<think>", "end."], 1, False, False, {})
@example(["I think. ", "<tool_call>", PARTS[-2], "</tool_call>"], 1, True, True, {})
def test_a_stream_says_what_an_answer_says_whoever_reads_it(
    readers: list[ChatServer], said: list[str], place: int, thinking: bool, tools: bool, called: dict[str, Any]
) -> None:
    server = readers[place]
    server.model.says = "".join(said)
    model = ChatSGLang(base_url=server.address, seed=1, chat_template_kwargs={"enable_thinking": thinking})
    bound = model.bind_tools([add]) if tools else model
    answer, full = bound.invoke("Hi", **called), whole(list(bound.stream("Hi", **called)))
    model.close()
    assert (full.text, full.additional_kwargs) == (answer.text, answer.additional_kwargs)
    assert full.tool_calls == answer.tool_calls
    assert full.response_metadata["finish_reason"] == answer.response_metadata["finish_reason"]


def test_reasoning_is_told_apart_by_a_server_without_a_parser(server: ChatServer, connect: Open) -> None:
    server.model.says = "<think>\nI think.\n</think>\n\nHello"
    message = connect(server).invoke("Hi")
    assert (message.text, message.additional_kwargs) == ("Hello", {"reasoning_content": "I think."})
    server.model.says = 'So.\n</think>\n\nI look.<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
    opened = connect(server, chat_template_kwargs={"enable_thinking": True}).bind_tools([add])
    message = opened.invoke("Hi")
    assert (message.text, message.additional_kwargs) == ("I look.", {"reasoning_content": "So."})
    assert [call["args"] for call in message.tool_calls] == [{"a": 1, "b": 2}]


async def test_reasoning_is_told_apart(connect: Open) -> None:
    server = ChatServer(reasoning_parser="qwen3")
    model = connect(server, seed=1, chat_template_kwargs={"enable_thinking": True})
    message = await model.ainvoke("Hi")
    assert message.additional_kwargs == {"reasoning_content": "I think."} and message.text == f"{WORDS} [1]"
    chunks = [chunk async for chunk in model.astream("Hi")]
    full = whole(chunks)
    assert (full.text, full.additional_kwargs) == (message.text, message.additional_kwargs)
    assert chunks[0].additional_kwargs and not chunks[0].text
    assert [block["type"] for block in full.content_blocks] == ["reasoning", "text"]
    # An answer that must be JSON is not reasoned about: the grammar begins with its first token.
    assert await model.with_structured_output(Weather).ainvoke("How is it in 'Bern'?") == Weather(
        city="Bern", degrees=3
    )
    server.close()


# Limits


def test_a_conversation_that_is_too_long_is_named(server: ChatServer, connect: Open) -> None:
    model = connect(server)
    with pytest.raises(ContextOverflow, match="context of 2042 tokens") as raised:
        model.invoke("x" * 3000)
    assert isinstance(raised.value, ContextOverflowError) and isinstance(raised.value, ConfigError)
    model.invoke("x" * 1900)  # an answer of no given length is as long as the context allows
    assert asked(server)["max_new_tokens"] < 142
    with pytest.raises(ContextOverflow):
        model.invoke("x" * 1900, max_tokens=500)
    assert len(model.get_token_ids("Größe")) == 7


def running(server: ChatServer) -> bool:
    """Whether the server still works for somebody, within a second."""
    for _ in range(100):
        if not server.model.running:
            return False
        time.sleep(0.01)
    return True


async def test_a_cancelled_call_stops_the_server(server: ChatServer, connect: Open) -> None:
    model = connect(server)
    await model.ainvoke("Hi")
    server.model.pace = 0.02
    call = asyncio.create_task(model.ainvoke("Hi", n=2))
    while not server.model.running:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not await asyncio.to_thread(running, server)
    assert server.model.aborted


async def test_a_stream_that_is_left_stops_the_server(server: ChatServer, connect: Open) -> None:
    model = connect(server)
    await model.ainvoke("Hi")
    server.model.pace = 0.02
    parts = model.astream("Hi")
    assert (await anext(parts)).text
    assert server.model.running
    await parts.aclose()
    assert not await asyncio.to_thread(running, server)

    def take_one() -> str:
        for part in model.stream("Hi"):
            return part.text
        return ""

    assert await asyncio.to_thread(take_one)
    assert not await asyncio.to_thread(running, server)


# In graphs


async def test_a_graph_streams_its_tokens(server: ChatServer, connect: Open) -> None:
    model = connect(server, seed=1)

    async def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("speak", speak).add_edge(START, "speak").compile()
    parts = [part async for part, _ in graph.astream({"messages": [HumanMessage("Hi")]}, stream_mode="messages")]
    assert len(parts) > 5 and "".join(part.text for part in parts) == f"{WORDS} [1]"


def test_copies_of_a_model_share_its_connection(server: ChatServer, connect: Open) -> None:
    model = connect(server)
    copy = model.model_copy(update={"tags": ["other"]})
    copy.invoke("Hi")
    served = len(server.model.bodies)
    model.invoke("Hi")
    assert len(server.model.bodies) == served + 1, "a connection begins with questions about the model"
    assert model._get_ls_params()["ls_model_name"] == "served/elsewhere"
    assert model._get_ls_params(model="x", stop=["a"])["ls_model_name"] == "x"


async def test_reasoning_in_another_form_waits_for_the_servers_parser(connect: Open) -> None:
    server = ChatServer(reasoning_parser="gpt-oss")
    server.model.says = "Plain words <|channel|> come at the end."
    chunks = [chunk async for chunk in connect(server).astream("Hi")]
    assert "".join(chunk.text for chunk in chunks[:-1]) == "Plain words"
    assert whole(chunks).text == server.model.says
    server.close()
