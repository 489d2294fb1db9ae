"""How many tokens a prompt has at most, before a provider counts it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

_TEXT = ("text", "text-plain", "reasoning", "thinking", "redacted_thinking", "tool_call", "tool_use")
"""Blocks of a message that are made of text."""

_ASKED = ("tools", "functions", "response_format", "tool_choice")
"""Arguments of a model that become part of its prompt."""


class PromptSize(NamedTuple):
    """Tokens of a prompt; only an estimate unless `sure`."""

    tokens: int
    sure: bool


class PromptBound(Protocol):
    """Says how many tokens a prompt has at most."""

    def __call__(self, messages: Sequence[BaseMessage], params: Mapping[str, Any]) -> PromptSize:
        """The bound for `messages` and for what the arguments `params` of the model add to them (its tools)."""
        ...


def utf8_bytes(text: str) -> int:
    """Bytes of `text`: no tokenizer that falls back to bytes makes more tokens of it."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class TextBound:
    """A bound by counting text.

    `count(text)` is the most tokens that a text becomes: its bytes, or a tokenizer of yours. `per_message` and
    `per_request` are what a chat template may add. Tools are counted as indented JSON. Where a message holds anything
    but text (an image), the bound is not sure.
    """

    def __init__(
        self, count: Callable[[str], int] = utf8_bytes, *, per_message: int = 16, per_request: int = 64
    ) -> None:
        self._count, self._per_message, self._per_request = count, per_message, per_request

    def __call__(self, messages: Sequence[BaseMessage], params: Mapping[str, Any]) -> PromptSize:
        tokens, sure = self._per_request, True
        for message in messages:
            size = self._message(message)
            tokens += size.tokens + self._per_message
            sure = sure and size.sure
        tokens += sum(self._json(params[name]) for name in _ASKED if params.get(name))
        return PromptSize(tokens, sure)

    def _message(self, message: BaseMessage) -> PromptSize:
        tokens, sure = 0, True
        if isinstance(message.content, str):
            tokens += self._count(message.content)
        else:
            for block in message.content:
                if isinstance(block, str):
                    tokens += self._count(block)
                elif block.get("type") in _TEXT:
                    tokens += self._json(block)
                else:
                    sure = False
        if message.name:
            tokens += self._count(message.name)
        if isinstance(message, ToolMessage):
            tokens += self._count(message.tool_call_id)
        if isinstance(message, AIMessage):
            tokens += sum(self._json(call) for call in (*message.tool_calls, *message.invalid_tool_calls))
        # What providers keep here (reasoning, raw calls) may be sent again.
        if message.additional_kwargs:
            tokens += self._json(message.additional_kwargs)
        return PromptSize(tokens, sure)

    def _json(self, value: Any) -> int:
        return self._count(json.dumps(value, indent=4, default=str))


def estimate(messages: Sequence[BaseMessage], params: Mapping[str, Any]) -> PromptSize:
    """What a prompt usually has: a token for three bytes."""
    size = _BYTES(messages, params)
    return PromptSize(size.tokens // 3, False)


_BYTES = TextBound()
