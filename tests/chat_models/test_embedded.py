"""The same chat model over the engine in this process, whose model and grammars are real and whose words are random."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool

from tests import models
from tests.dialects.world import TokenEngine, thinker
from tests.engines.test_contract import scripted
from tts_agent import Budget
from tts_agent.chat_models import ChatSGLang
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.errors import ConfigError
from tts_agent.middleware import BudgetMiddleware


@tool
def look_up(city: str, days: int) -> str:
    """What the weather is like."""
    return f"It rains in {city} for {days} days."


@pytest.fixture(scope="module")
def folder() -> Path:
    return models.qwen()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[EmbeddedEngine]:
    engine = EmbeddedEngine(folder)
    yield engine
    ChatSGLang(engine=engine, folder=folder).close()  # an engine that was open before stays open
    assert engine.counters.in_use == 0


@pytest.fixture
def model(engine: EmbeddedEngine, folder: Path) -> ChatSGLang:
    return ChatSGLang(engine=engine, folder=folder, max_tokens=40, seed=11)


async def test_a_stream_says_what_an_answer_says(model: ChatSGLang) -> None:
    for seed in range(5):
        answer = await model.ainvoke("Hello?", seed=seed)
        chunks = [chunk async for chunk in model.astream("Hello?", seed=seed)]
        first, *rest = chunks
        full = sum(rest, first)
        assert isinstance(full, AIMessageChunk)
        assert (full.text, full.additional_kwargs) == (answer.text, answer.additional_kwargs)
        assert full.response_metadata["finish_reason"] == answer.response_metadata["finish_reason"]


def test_usage_is_the_engines_own(engine: EmbeddedEngine, model: ChatSGLang) -> None:
    before = engine.counters
    messages = [HumanMessage("A question that nobody has asked before.")]
    usages = [one.message.usage_metadata for one in model.generate([messages], n=3).generations[0]]
    computed = sum(usage["input_tokens"] - usage["input_token_details"]["cache_read"] for usage in usages)
    generated = sum(usage["output_tokens"] for usage in usages)
    assert generated == engine.counters.generated - before.generated
    assert computed + generated - 3 == engine.counters.computed - before.computed


def test_a_grammar_makes_a_call_even_of_random_words(model: ChatSGLang) -> None:
    bound = model.bind_tools([look_up], tool_choice="look_up")
    whole = 0
    for seed in range(8):
        message = bound.invoke("How is it in Zürich?", seed=seed, max_tokens=120, temperature=0.5)
        for call in message.tool_calls:
            assert call["name"] == "look_up"
            assert isinstance(call["args"]["city"], str) and isinstance(call["args"]["days"], int)
            whole += 1
        assert len(message.tool_calls) + len(message.invalid_tool_calls) == 1
    assert whole > 0


def test_an_answer_is_of_the_schema(model: ChatSGLang) -> None:
    schema = {"title": "verdict", "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    bound = model.with_structured_output({**schema, "additionalProperties": False}, include_raw=True)
    found = [bound.invoke("Is it?", config={"tags": [str(seed)]}) for seed in range(4)]
    for one in found:
        if one["raw"].response_metadata["finish_reason"] == "stop":
            assert json.loads(one["raw"].text) == one["parsed"] and isinstance(one["parsed"]["ok"], bool)


def test_what_cannot_hold_a_conversation_is_refused(engine: EmbeddedEngine) -> None:
    with pytest.raises(ConfigError, match="pass folder="):
        ChatSGLang(engine=engine).invoke("Hello?")
    with pytest.raises(ValueError, match="base_url"):
        ChatSGLang(engine=engine, base_url="http://127.0.0.1:30000")
    with pytest.raises(ConfigError, match="different ids|cannot"):
        ChatSGLang(engine=scripted(), folder=models.llama()).invoke("Hello?")


def test_a_template_that_opens_the_reasoning() -> None:
    heard: list[str] = []

    def say(prompt: str, seed: int) -> str:
        heard.append(prompt)
        return "So be it.\n</think>\n\nYes.<|im_end|>" if prompt.endswith("<think>\n") else '{"ok": true}<|im_end|>'

    model = ChatSGLang(engine=TokenEngine(thinker(), say), folder=thinker(), max_tokens=60)
    message = model.invoke("Is it?")
    assert (message.text, message.additional_kwargs) == ("Yes.", {"reasoning_content": "So be it."})
    # A grammar begins with the first token, so the reasoning is closed before.
    assert model.invoke("Is it?", response_format={"type": "json_object"}).text == '{"ok": true}'
    assert heard[-1].endswith("<think>\n\n</think>\n\n")


def test_a_budget_in_tokens_is_hard_where_prompts_can_be_counted(engine: EmbeddedEngine, folder: Path) -> None:
    model = ChatSGLang(engine=engine, folder=folder, max_tokens=200)
    size = model.prompt_size([HumanMessage("Hello?")], {})
    assert size.sure and size.tokens == model.invoke("Hello?").usage_metadata["input_tokens"]
    limit = size.tokens + 70
    guard = BudgetMiddleware(Budget(total_tokens=limit), prompt_bound=model.prompt_size)
    agent = create_agent(model, [], middleware=[guard])  # a warning that it is soft would be an error here
    for _ in range(6):
        answer = agent.invoke({"messages": [HumanMessage("Hello?")]})["messages"][1]
        assert size.tokens < answer.usage_metadata["total_tokens"] <= limit
    with pytest.raises(ConfigError, match="pass folder="):
        ChatSGLang(base_url="127.0.0.1:9").prompt_size([HumanMessage("Hello?")], {})
