"""Whatever is said in a conversation, its ids are only extended, and say what the template would."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AnyMessage, HumanMessage, ToolMessage

from tests import models
from tests.dialects.world import TokenEngine, add, look_up
from tts_agent.dialect import Decided, Request
from tts_agent.dialects import TemplateDialect
from tts_agent.dialects.messages import chat
from tts_agent.thought import ROOT, Thought

PIECES = [
    "Hello",
    " 🦊",
    "\n",
    " ",
    "é",
    "<|im_end|>",
    "<|im_start|>",
    "</tool_response>",
    "{",
    '"',
    "\\n",
    "天",
    "\ue000",
]
SAID = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


class Exchange(NamedTuple):
    """A turn of the model with as many calls as there are results, and what a human says if there are none."""

    answer: str
    results: list[str]
    human: str


EXCHANGES = st.lists(st.builds(Exchange, SAID, st.lists(SAID, max_size=2), SAID), min_size=1, max_size=4)


@cache
def dialect() -> TemplateDialect:
    return TemplateDialect(TokenEngine(models.qwen()), models.qwen(), tools=[add, look_up])


def asked(messages: Sequence[AnyMessage], last: Decided | None) -> Request:
    request = dialect().request(messages, last)
    assert isinstance(request, Request)
    return request


def told(request: Request, exchange: Exchange) -> Decided:
    """The turn of `exchange` as it was sampled: its special tokens are text, and its ids letter by letter."""
    text = "\n".join(["Well: " + exchange.answer.strip() + ".", *[CALL] * len(exchange.results)])
    tokens = dialect().template.tokens
    ids = tuple(token for letter in text for token in tokens.encode(letter, after=True))
    reading = request.task.read(None, text)
    return Decided(request.task.root.extend(ids), Thought(1, ROOT, 0, ids, text, action=reading.action))


def conversation(exchanges: Sequence[Exchange]) -> list[tuple[list[AnyMessage], Request]]:
    """The messages and the request of every planning step."""
    messages: list[AnyMessage] = [HumanMessage("Begin.")]
    last: Decided | None = None
    steps = []
    for exchange in exchanges:
        request = asked(messages, last)
        steps.append((list(messages), request))
        last = told(request, exchange)
        decision = dialect().decide(last.thought)
        answers = zip(decision.tool_calls, exchange.results, strict=True)
        results = [ToolMessage(text, tool_call_id=str(call["id"]), name=call["name"]) for call, text in answers]
        messages += [decision, *(results or [HumanMessage(exchange.human)])]
        assert asked(messages, last).task.root.starts_with(last.prefix)
    return [*steps, (messages, asked(messages, last))]


def specials(ids: Sequence[int]) -> Counter[int]:
    special: Any = dialect().template.tokens.special.values()
    return Counter(number for number in ids if number in special)


@settings(max_examples=60, deadline=None)
@given(EXCHANGES)
def test_every_request_extends_the_one_before(exchanges: list[Exchange]) -> None:
    roots = [request.task.root for _, request in conversation(exchanges)]
    assert all(later.starts_with(earlier) for earlier, later in zip(roots, roots[1:], strict=False))
    assert all(len(later) > len(earlier) for earlier, later in zip(roots, roots[1:], strict=False))


@settings(max_examples=60, deadline=None)
@given(EXCHANGES)
def test_what_is_extended_reads_as_what_is_rendered(exchanges: list[Exchange]) -> None:
    template = dialect().template
    messages, request = conversation(exchanges)[-1]
    text, mark = template.text(chat(messages), generation=True)
    assert template.tokens.decode(request.task.root.ids) == text.replace(mark, "")


@settings(max_examples=60, deadline=None)
@given(EXCHANGES)
def test_no_text_adds_a_special_token(exchanges: list[Exchange]) -> None:
    harmless = [Exchange("x", ["x"] * len(exchange.results), "x") for exchange in exchanges]
    ids = conversation(exchanges)[-1][1].task.root.ids
    assert specials(ids) == specials(conversation(harmless)[-1][1].task.root.ids)
