"""Conversations by the server's own chat template and parsers; no tokenizer and no template are needed here."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tts_agent.dialects.calls import whole_json
from tts_agent.engines.sglang.info import ServerInfo
from tts_agent.engines.sglang.server import Server
from tts_agent.errors import ConfigError

Message = Mapping[str, Any]
"""`role`, `content`, and what else a role has, as the OpenAI API writes it."""


class SaidCall(NamedTuple):
    """A tool call that the server's parser has read."""

    name: str
    args: dict[str, Any]


class SaidTurn(NamedTuple):
    """A turn of the model, taken apart by the server's parsers."""

    content: str
    reasoning: str = ""
    calls: tuple[SaidCall, ...] = ()


def render(
    server: Server,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] | None,
) -> tuple[int, ...]:
    """Ids of `messages` and `tools`, up to where the model speaks. Raises `ConfigError` if there is no template."""
    body: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": True}
    if tools:
        body["tools"] = list(tools)
    if variables:
        body["chat_template_kwargs"] = dict(variables)
    try:
        ids: list[int] = server.ask("/tokenize", body)["tokens"]
    except ConfigError as error:
        hint = (
            "; give prompts as ids or plain text, or launch it with --chat-template" if "template" in str(error) else ""
        )
        raise ConfigError(f"{error}{hint}") from error
    return tuple(ids)


def read_turn(server: Server, info: ServerInfo, text: str, *, tools: Sequence[Mapping[str, Any]]) -> SaidTurn:
    """What `text` says: its reasoning and its calls of `tools`, where the server was launched with parsers for them.

    Raises `ConfigError` if there are tools and no parser, or if a call's arguments are no JSON object that a checkpoint
    holds.
    """
    reasoning = ""
    if info.reasoning_parser is not None:
        parts = server.ask("/separate_reasoning", {"text": text, "reasoning_parser": info.reasoning_parser})
        reasoning, text = parts.get("reasoning_text") or "", parts.get("text") or ""
    if not tools:
        return SaidTurn(text, reasoning)
    if info.tool_parser is None:
        raise ConfigError(
            f"the server at {info.address!r} reads no tool calls; launch it with --tool-call-parser, such as qwen25"
        )
    body = {"text": text, "tools": list(tools), "tool_call_parser": info.tool_parser}
    parts = server.ask("/parse_function_call", body)
    return SaidTurn(parts["normal_text"], reasoning, tuple(map(_call, parts["calls"])))


def _call(said: Mapping[str, Any]) -> SaidCall:
    try:
        args = whole_json(said["parameters"] or "{}")
    except ValueError as error:
        raise ConfigError(f"the arguments of {said['name']!r} are not JSON: {error}") from error
    if not isinstance(args, dict):
        raise ConfigError(f"the arguments of {said['name']!r} are no JSON object: {args!r}")
    return SaidCall(said["name"], args)
