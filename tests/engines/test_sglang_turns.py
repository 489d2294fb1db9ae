"""Turns that a server has taken apart."""

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, ToolCall
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from tests.engines.sglang_server import RECORDED
from tts_agent.engines.sglang.info import ServerInfo
from tts_agent.engines.sglang.server import Server
from tts_agent.engines.sglang.turns import SaidTurn, read_turn
from tts_agent.errors import ConfigError

INFO = ServerInfo.from_json("http://here", {**RECORDED["server_info"], "tool_call_parser": "qwen25"})
STORED = JsonPlusSerializer()


class Parsing:
    """A server whose parser has found a call with the arguments `parameters`."""

    def __init__(self, parameters: str) -> None:
        self.parameters = parameters

    def ask(self, path: str, body: Any) -> Any:
        assert path == "/parse_function_call"
        return {"normal_text": "I go.", "calls": [{"name": "go", "parameters": self.parameters}]}


def read(parameters: str) -> SaidTurn:
    return read_turn(cast(Server, Parsing(parameters)), INFO, "I go.", tools=[{"type": "function"}])


def test_arguments_are_read() -> None:
    assert read('{"a": 1}') == SaidTurn("I go.", "", (("go", {"a": 1}),))
    assert read("").calls[0].args == {}


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ('{"a": 1', "of 'go' are not JSON"),
        ("[1]", "of 'go' are no JSON object"),
        (f'{{"a": {10**30}}}', "more than 64 bits"),
        ('{"a": NaN}', "NaN is no JSON"),
        ('{"a": "\\ud83d"}', "surrogates"),
    ],
)
def test_arguments_that_cannot_be_carried_out_are_refused(parameters: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(parameters)


VALUES = st.integers() | st.integers(2**62, 2**66) | st.floats() | st.text(st.characters())


@given(st.dictionaries(st.text(), VALUES))
def test_what_is_read_can_be_stored(args: dict[str, Any]) -> None:
    try:
        (call,) = read(json.dumps(args)).calls
    except ConfigError:
        return
    message = AIMessage("", tool_calls=[ToolCall(name=call.name, args=call.args, id="1")])
    assert call.args == args
    assert STORED.loads_typed(STORED.dumps_typed(message)) == message
