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


def check_news(messages: Sequence[AnyMessage]) -> int:
    """Place of the newest message of the model, -1 if there is none.

    Raises `ConfigError` if there is nothing to answer, or if tool calls are still without results.
    """
    if not messages:
        raise ConfigError("there are no messages; begin with a message of a human")
    newest = max((place for place, message in enumerate(messages) if isinstance(message, AIMessage)), default=-1)
    if newest == len(messages) - 1:
        raise ConfigError(
            "the newest message is the model's own, so there is nothing to answer; add a message of a human or the "
            "results of its tool calls"
        )
    answered = {message.tool_call_id for message in messages[newest + 1 :] if isinstance(message, ToolMessage)}
    decision = messages[newest] if newest >= 0 else None
    calls = decision.tool_calls if isinstance(decision, AIMessage) else []
    if missing := [call["id"] for call in calls if call["id"] not in answered]:
        raise ConfigError(
            f"tool calls {missing!r} have no result; add a ToolMessage for each, or take the calls out of the message"
        )
    return newest


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
