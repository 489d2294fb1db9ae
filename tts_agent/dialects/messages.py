"""LangChain messages as chat templates read them."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage

from tts_agent.errors import ConfigError

ChatMessage = dict[str, Any]
"""One message of a chat, plain JSON."""

_TEXT = ("text", "text-plain")
_SILENT = ("reasoning", "thinking", "redacted_thinking", "tool_call", "tool_use", "invalid_tool_call")
"""Blocks of the model's own messages that are told elsewhere, or not at all."""


def chat(messages: Sequence[AnyMessage]) -> list[ChatMessage]:
    """`messages` as plain JSON. Raises `ConfigError` for what a text model cannot read."""
    return [_chat(place, message) for place, message in enumerate(messages)]


def _chat(place: int, message: AnyMessage) -> ChatMessage:
    content = _text(place, message)
    match message:
        case HumanMessage():
            return {"role": "user", "content": content}
        case SystemMessage():
            return {"role": "system", "content": content}
        case ToolMessage():
            named = {"name": message.name} if message.name else {}
            return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id, **named}
        case AIMessage():
            return _own(message, content)
    raise ConfigError(
        f"message {place} is of type {message.type!r}; a chat template knows human, AI, system and tool messages"
    )


def _own(message: AIMessage, content: str) -> ChatMessage:
    said: ChatMessage = {"role": "assistant", "content": content}
    if reasoning := message.additional_kwargs.get("reasoning_content"):
        said["reasoning_content"] = str(reasoning)
    if message.tool_calls:
        said["tool_calls"] = [
            {"type": "function", "id": call["id"] or "", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    return said


def _text(place: int, message: AnyMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        kind = "text" if isinstance(block, str) else str(block.get("type"))
        if kind in _TEXT:
            texts.append(block if isinstance(block, str) else str(block.get("text", "")))
        elif not (kind in _SILENT and isinstance(message, AIMessage)):
            raise ConfigError(
                f"message {place} ({message.type}) has a block of type {kind!r}; this dialect reads text only: "
                "describe it in words, or plan with a chat model that sees it (ChatEngine)"
            )
    return "".join(texts)
