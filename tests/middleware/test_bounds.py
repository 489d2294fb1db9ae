"""A bound for prompts: no chat template and no tokenizer that falls back to bytes makes more of them."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from tests.middleware.world import add
from tts_agent.middleware import TextBound, utf8_bytes

texts = st.text(max_size=40)
arguments = st.dictionaries(texts, texts | st.integers(), max_size=3)


def told(messages: list[Any], tools: list[Any]) -> str:
    """A conversation as templates of the usual kind write it."""
    lines = [f"<|start|>{message.type}\n{message.text}<|end|>\n" for message in messages]
    for message in messages:
        if isinstance(message, AIMessage):
            calls = [{"name": call["name"], "arguments": call["args"]} for call in message.tool_calls]
            lines += [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls]
    return "".join(lines) + json.dumps(tools, indent=4) + "<|start|>assistant\n"


@given(st.lists(texts, max_size=4), st.lists(arguments, max_size=2), st.booleans())
def test_it_holds_for_whatever_is_said_and_called(said: list[str], calls: list[Any], tooled: bool) -> None:
    made = [{"name": "add", "args": args, "id": f"c{place}"} for place, args in enumerate(calls)]
    messages = [SystemMessage("be brief"), *map(HumanMessage, said), AIMessage("", tool_calls=made)]
    messages += [ToolMessage(text, tool_call_id="c0") for text in said]
    tools = [convert_to_openai_tool(add)] if tooled else []
    bound = TextBound(per_message=64, per_request=64)(messages, {"tools": tools})
    assert bound.sure and bound.tokens >= utf8_bytes(told(messages, tools))


@given(texts)
def test_bytes_are_counted_whatever_the_text(text: str) -> None:
    assert utf8_bytes(text) == len(text.encode("utf-8", "surrogatepass"))
    assert utf8_bytes("\ud800") == 3


def test_a_tokenizer_of_ones_own_counts_and_what_is_no_text_is_not_sure() -> None:
    bound = TextBound(lambda text: len(text.split()), per_message=4, per_request=3)
    assert bound([HumanMessage("one two three")], {}) == (3 + 4 + 3, True)
    mixed = HumanMessage([{"type": "text", "text": "look"}, {"type": "image", "url": "http://127.0.0.1/x"}, "here"])
    assert not bound([mixed], {}).sure
    assert bound([HumanMessage("a", name="b c")], {}).tokens == 3 + 4 + 1 + 2
