"""The chat model on a real server: its template, its parsers, its grammars, its cache. The words are random."""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool

from tests import models
from tests.sglang.server import Server
from tts_agent.chat_models import ChatSGLang, ContextOverflow

PATHS = ("server", "folder")


@tool
def look_up(city: Literal["Bern", "Zürich"], days: Literal[1, 2, 3]) -> str:
    """What the weather is like."""
    return f"It rains in {city} for {days} days."


@pytest.fixture(params=PATHS)
async def model(qwen: Server, request: pytest.FixtureRequest) -> AsyncIterator[ChatSGLang]:
    """Speaking by the server's template and parsers, and by the folder's template in this process."""
    folder = models.qwen() if request.param == "folder" else None
    model = ChatSGLang(base_url=qwen.address, folder=folder, max_tokens=30)
    yield model
    model.close()
    await model.aclose()


async def test_a_stream_is_the_answer_token_by_token(model: ChatSGLang) -> None:
    for seed in range(3):
        answer = await model.ainvoke("Hello?", seed=seed)
        chunks = [chunk async for chunk in model.astream("Hello?", seed=seed)]
        full = sum(chunks[1:], chunks[0])
        assert isinstance(full, AIMessageChunk)
        assert (full.text, full.additional_kwargs) == (answer.text, answer.additional_kwargs)
        assert full.usage_metadata is not None and answer.usage_metadata is not None
        assert full.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]
        assert full.usage_metadata["input_token_details"]["cache_read"] == full.usage_metadata["input_tokens"] - 1
        assert len(chunks) > 3


async def test_usage_is_the_servers_own(qwen: Server, model: ChatSGLang) -> None:
    before = qwen.computed()
    question = [HumanMessage("What is the capital of France? " * 4)]
    (messages,) = (await model.agenerate([question], n=3, seed=1)).generations
    usages = [one.message.usage_metadata for one in messages]
    await asyncio.sleep(0.5)
    computed = sum(usage["input_tokens"] - usage["input_token_details"]["cache_read"] for usage in usages)
    assert computed + sum(usage["output_tokens"] - 1 for usage in usages) == qwen.computed() - before


async def test_a_call_that_must_be_made_has_the_tools_form(model: ChatSGLang) -> None:
    bound = model.bind_tools([look_up], tool_choice="any", parallel_tool_calls=False)
    called = 0
    for seed in range(8):
        message = await bound.ainvoke("How is it in Zürich?", seed=seed, max_tokens=150)
        for call in message.tool_calls:
            assert call["name"] == "look_up"
            assert call["args"]["city"] in ("Bern", "Zürich") and call["args"]["days"] in (1, 2, 3)
            called += 1
        assert len(message.tool_calls) + len(message.invalid_tool_calls) == 1
    assert called > 0


async def test_a_conversation_with_tool_calls_is_read(model: ChatSGLang) -> None:
    call = {"name": "look_up", "args": {"city": "Zürich", "days": 2}, "id": "a1b2c3d4e"}
    conversation = [
        HumanMessage("How is it in Zürich?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("It rains.", tool_call_id="a1b2c3d4e", name="look_up"),
    ]
    bound = model.bind_tools([look_up])
    message = await bound.ainvoke(conversation, temperature=0)
    again = [chunk async for chunk in bound.astream([*conversation, message, HumanMessage("Really?")])]
    assert again[-1].usage_metadata is not None
    # What was said before is in the cache.
    assert again[-1].usage_metadata["input_token_details"]["cache_read"] > message.usage_metadata["input_tokens"] / 2


async def test_a_schema_binds_the_answer(model: ChatSGLang) -> None:
    schema = {"title": "verdict", "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    bound = model.with_structured_output({**schema, "additionalProperties": False}, include_raw=True)
    for _ in range(4):
        found = await bound.ainvoke("Is it?")
        if found["raw"].response_metadata["finish_reason"] == "stop":
            assert isinstance(found["parsed"]["ok"], bool)


async def test_limits_and_cancellation(qwen: Server, model: ChatSGLang) -> None:
    with pytest.raises(ContextOverflow):
        await model.ainvoke("x " * 5000)
    call = asyncio.create_task(model.ainvoke("Hello?", max_tokens=1500, n=4))
    await asyncio.sleep(1.0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    for _ in range(50):
        if not qwen.running():
            break
        await asyncio.sleep(0.1)
    assert qwen.running() == 0
