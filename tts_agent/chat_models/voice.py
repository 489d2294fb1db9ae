"""How the model behind an engine is spoken to: a conversation becomes ids, what it says becomes a turn."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from langchain_core.messages import AnyMessage

from tts_agent.dialects import TemplateDialect
from tts_agent.dialects.calls import Call
from tts_agent.dialects.messages import ChatMessage, chat, check_news
from tts_agent.dialects.turn import THINKING, Turn
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.prefix import Prefix

if TYPE_CHECKING:
    from tts_agent.engines.sglang.turns import SaidTurn

Tool = Mapping[str, Any]
"""A tool as the OpenAI API describes it: `{"type": "function", "function": {...}}`."""

WRITTEN = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
"""Texts with which tool calls begin in the formats that are read here, beside JSON at the beginning of an answer."""

ANY_FORM = ("<", "[", "{", "◁", ">>>", "functools")
"""What tool calls or reasoning begin with in any format that servers have parsers for."""

_CALLS = {"qwen": "<tool_call>", "qwen25": "<tool_call>", "hermes": "<tool_call>", "mistral": "[TOOL_CALLS]"}
"""What calls begin with, by the server's parser for them."""

_REASONS_IN_TAGS = (
    *(None, "deepseek-r1", "deepseek-v3", "glm45", "interns1", "kimi_k2", "nemotron_3", "qwen3", "qwen3-thinking"),
    "step3",
)
"""Parsers of servers that look for the first of the tags that are known here, and none at all."""

_THOUGHT = "".join(THINKING[0])
"""A reasoning that is over, after which those parsers look for no other."""

_TAIL = 16  # ids at the end of a prompt in which its last tag is found


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation as the model reads it.

    `prefix` ends where the model speaks; `read` takes apart what it says there. `closing` is the text that would end
    the reasoning which the prompt has opened, empty if it opens none. What follows the first of `openers` in an answer
    may turn out to be no part of its text.
    """

    prefix: Prefix
    read: Callable[[str], Turn]
    closing: str = ""
    openers: tuple[str, ...] = ()


class Voice(Protocol):
    """One model with one set of tools. Its methods may wait for others (a server), so they are called in threads."""

    end_ids: tuple[int, ...]
    """Tokens with which the model ends a turn."""

    def ask(self, messages: Sequence[AnyMessage]) -> Asked:
        """The conversation `messages`. Raises `ConfigError` for what the model cannot be given."""
        ...


class TemplateVoice:
    """Speaks by the chat template in a model's `folder`, in this process."""

    def __init__(
        self, engine: Engine, folder: str | Path, tools: Sequence[Tool], variables: Mapping[str, Any] | None
    ) -> None:
        self._engine = engine
        self._dialect = TemplateDialect(engine, folder, tools=tools, variables=variables)
        self._openers = WRITTEN if tools else ()
        self.end_ids = self._dialect.end_ids

    def ask(self, messages: Sequence[AnyMessage]) -> Asked:
        # NOTE: without what was decided before there is always something to search for, which is read as a thought.
        task = self._dialect.request(messages, None).task  # type: ignore[union-attr]

        def read(text: str) -> Turn:
            reading = task.read(None, text)
            turn = Turn.from_json(reading.action)
            return turn if turn.silent == reading.reason else replace(turn, problem=reading.reason)

        return Asked(task.root, read, _opened(self._engine, task.root)[1], self._openers)


class Renders(Engine, Protocol):
    """An engine whose server renders conversations and takes turns apart: SGLang's."""

    @property
    def info(self) -> Any: ...

    def render(
        self, messages: Sequence[ChatMessage], *, tools: Sequence[Tool] = (), variables: Mapping[str, Any] | None = None
    ) -> Prefix: ...

    def read_turn(self, text: str, *, tools: Sequence[Tool] = ()) -> "SaidTurn": ...


class ServerVoice:
    """Speaks by the chat template of an SGLang server, and reads by its parsers. Raises `ConfigError` if there are
    tools and the server reads no tool calls.
    """

    def __init__(self, engine: Renders, tools: Sequence[Tool], variables: Mapping[str, Any] | None) -> None:
        self._engine, self._tools, self._variables = engine, list(tools), variables
        self.end_ids = engine.capabilities.end_ids
        if tools:
            engine.read_turn("", tools=self._tools)  # before anything is sampled that nobody can read
        known = _CALLS.get(engine.info.tool_parser or "") if tools else ""
        self._openers: tuple[str, ...] = (known,) if known else ()
        if known is None or engine.info.reasoning_parser not in _REASONS_IN_TAGS:
            self._openers = ANY_FORM

    def ask(self, messages: Sequence[AnyMessage]) -> Asked:
        check_news(messages)
        said = [_as_openai(message) for message in chat(messages)]
        prefix = self._engine.render(said, tools=self._tools, variables=self._variables)
        opening, closing = _opened(self._engine, prefix)
        # NOTE: a parser sees the turn alone, and takes it for reasoning only if that begins in it.
        return Asked(prefix, lambda text: self._read(text, opening), closing, self._openers)

    def _read(self, text: str, opening: str) -> Turn:
        """The turn that says `text`. Reasoning in tags is told apart as it was while the turn was said, what else there
        is by the server.
        """
        turn = Turn.read(text, form=None, thinking=bool(opening), tools=())
        parser = self._engine.info.reasoning_parser
        if parser is not None and not (turn.content and parser in _REASONS_IN_TAGS):
            return self._parsed(opening + text, turn)
        if not (self._tools and turn.content):
            return turn
        parsed = self._parsed(turn.content if parser is None else _THOUGHT + turn.content, turn)
        return replace(parsed, reasoning=turn.reasoning)

    def _parsed(self, text: str, known: Turn) -> Turn:
        """What the server reads in `text`; `known` if it has a call that cannot be carried out."""
        try:
            said = self._engine.read_turn(text, tools=self._tools)
        except ConfigError as error:
            return replace(known, problem=str(error))
        calls = tuple(Call(call.name, call.args) for call in said.calls)
        return Turn(said.content.strip(), said.reasoning.strip(), calls)


def _as_openai(message: ChatMessage) -> ChatMessage:
    """`message` with arguments of tool calls as text, as the OpenAI API has them."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _opened(engine: Engine, prefix: Prefix) -> tuple[str, str]:
    """What begins the reasoning that a prompt opens, and the text that ends it; empty if it opens none."""
    tail = engine.decode(prefix.ids[-_TAIL:]).rstrip()
    return next(((begin, f"\n{end}\n\n") for begin, end in THINKING if tail.endswith(begin)), ("", ""))
