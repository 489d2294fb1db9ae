"""ChatSGLang, over HTTP on this machine."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from tests.chat_models.server import WORDS, ChatServer
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


# Reasoning


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
