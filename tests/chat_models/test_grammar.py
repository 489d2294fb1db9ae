"""Schemas that bind tool calls, and what is read of them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, ToolCall
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from llguidance import LLMatcher

from tts_agent.chat_models.grammar import answer_schema, call_schema, read_calls, read_choice
from tts_agent.errors import ConfigError


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STORED = JsonPlusSerializer()

CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
REFERS = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "$defs": {"City": CITY}}
TREE = {"type": "object", "properties": {"below": {"$ref": "#/$defs/Tree"}}}
RECURSIVE = {"type": "object", "properties": {"tree": {"$ref": "#/$defs/Tree"}}, "$defs": {"Tree": TREE}}


def test_references_of_a_tool_are_followed() -> None:
    schema = json.loads(call_schema([tool("go", REFERS)], "go", several=True))
    call = schema["items"]["properties"]
    assert call["name"] == {"const": "go"} and call["arguments"]["properties"]["city"] == CITY
    assert schema["maxItems"] == 1 and "$ref" not in json.dumps(schema)
    assert "$ref" not in call_schema([tool("grow", RECURSIVE)], "any", several=True)


@pytest.mark.parametrize("tools", [[tool("go")], [tool("go", REFERS), tool("stay", CITY)], [tool("grow", RECURSIVE)]])
def test_the_schema_can_be_compiled(tools: list[dict[str, Any]]) -> None:
    for choice in ("any", tools[-1]["function"]["name"]):
        grammar = LLMatcher.grammar_from_json_schema(call_schema(tools, choice, several=True))
        assert not LLMatcher.validate_grammar(grammar)


def test_calls_are_read() -> None:
    turn = read_calls('[{"name": "go", "arguments": {"a": 1}}, {"name": "stay", "arguments": {}}]')
    assert [(call.name, call.args) for call in turn.calls] == [("go", {"a": 1}), ("stay", {})]
    assert (turn.content, turn.problem) == ("", "")


@pytest.mark.parametrize("text", ['[{"name": "go", "argu', '[{"name": "go"}]', "3", '[{"name": "go", "arguments": 3}]'])
def test_broken_calls_are_told(text: str) -> None:
    turn = read_calls(text)
    assert not turn.calls and turn.content == text and "not whole" in turn.problem


@pytest.mark.parametrize(
    ("value", "problem"),
    [(str(10**30), "64 bits"), ("NaN", "NaN"), ("-Infinity", "Infinity"), ('"\\ud83d"', "surrogates")],
)
def test_calls_that_no_checkpoint_holds_are_told(value: str, problem: str) -> None:
    turn = read_calls(f'[{{"name": "go", "arguments": {{"a": {value}}}}}]')
    assert not turn.calls and problem in turn.problem and value in turn.content


NUMBERS = st.integers() | st.integers(2**62, 2**66) | st.floats()
ARGUMENTS = st.dictionaries(st.text(), st.recursive(NUMBERS | st.text(st.characters()), st.lists, max_leaves=4))


@given(ARGUMENTS)
def test_what_is_read_can_be_stored(args: dict[str, Any]) -> None:
    turn = read_calls(json.dumps([{"name": "go", "arguments": args}]))
    if turn.problem:
        return
    message = AIMessage("", tool_calls=[ToolCall(name=call.name, args=call.args, id="1") for call in turn.calls])
    assert turn.calls[0].args == args
    assert STORED.loads_typed(STORED.dumps_typed(message)) == message


def test_choices_are_read_in_every_form() -> None:
    tools = [tool("go")]
    assert [read_choice(choice, tools) for choice in (None, "auto", "none", False)] == ["auto", "auto", "none", "none"]
    assert [read_choice(choice, tools) for choice in ("any", "required", True, "go")] == ["any", "any", "any", "go"]
    with pytest.raises(ConfigError, match="known: go"):
        read_choice({"type": "function", "function": {"name": "fly"}}, tools)


def test_formats_are_read() -> None:
    assert answer_schema(None) is answer_schema({"type": "text"}) is None
    assert answer_schema({"type": "json_object"}) == '{"type": "object"}'
    assert answer_schema({"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}) == json.dumps(CITY)
    for wrong in ({"type": "xml"}, "json", {"type": "json_schema"}):
        with pytest.raises(ConfigError, match="response_format"):
            answer_schema(wrong)
