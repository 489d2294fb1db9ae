"""Answers that are objects: whole, or none at all."""

import json
from collections.abc import AsyncIterator, Iterator
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough


def read_by(
    model: Runnable[LanguageModelInput, AIMessage], parser: Any, *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """What `model` says, read by `parser`. An answer that is not whole raises `OutputParserException`; a stream of it
    does at its end.

    With `include_raw` it is the message beside what it says, or beside the reason why that cannot be read.
    """
    whole = RunnableGenerator(_checked, _achecked, name="whole_answer")
    read: Runnable[AIMessage, Any] = whole | parser
    if not include_raw:
        return model | read
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | read, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


class _Heard:
    """What was said of one answer.

    It is checked by itself, since LangChain's parsers complete JSON that is not whole: a number that was cut becomes
    another number.
    """

    def __init__(self) -> None:
        self._text = self._finish = self._problem = ""
        self._called = False

    def add(self, message: AIMessage) -> AIMessage:
        self._text += message.text
        self._finish = message.response_metadata.get("finish_reason", self._finish)
        self._called = self._called or bool(message.tool_calls)
        for call in message.invalid_tool_calls:
            self._problem = call["error"] or "a tool call cannot be read"  # a chunk does not say why
        return message

    def check(self) -> None:
        problem = self._problem or ("" if self._called else _fault(self._text))
        if not problem:
            return
        why, remedy = "it cannot be read", "ask again, without stop texts"
        if self._finish == "length":
            why, remedy = "it was cut at max_tokens", "allow more, or ask for less"
        said = self._text[:200]
        raise OutputParserException(f"the answer is no whole object, {why}: {problem}; {remedy}: {said!r}", None, said)


def _fault(text: str) -> str:
    try:
        json.loads(text, strict=False)
    except ValueError as error:
        return str(error)
    return ""


def _checked(messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
    heard = _Heard()
    for message in messages:
        yield heard.add(message)
    heard.check()


async def _achecked(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    heard = _Heard()
    async for message in messages:
        yield heard.add(message)
    heard.check()
