"""What of a growing turn can be shown before it ends."""

from collections.abc import Iterable, Sequence

from tts_agent.dialects.turn import THINKING, Turn

_ENDS = tuple(end for _, end in THINKING)
_BEGINS = tuple(begin for begin, _ in THINKING)

_BREAKS = ("<tool_call>", "<|tool_calls_section_begin|>")
"""Tool calls with which reasoning that is not closed may end, where a server's parser says so."""


class Unfolding:
    """Shows a turn while it is said. Nothing that was shown is taken back: what may still become something else (half
    a character, a stop text, a tag, a tool call) waits.

    `thinking` says that the prompt has opened the model's reasoning, `openers` are texts from which on an answer may be
    no text, `stops` those before which it ends.
    """

    def __init__(self, *, thinking: bool = False, openers: Sequence[str] = (), stops: Sequence[str] = ()) -> None:
        self._thinking, self._openers, self._stops = thinking, openers, stops
        self._reasoning = self._content = ""

    def show(self, text: str) -> tuple[str, str]:
        """Reasoning and content that can be added, now that the model has said `text` in all."""
        text = text.rstrip("\ufffd")
        ended = before(text, self._stops)
        text = ended if ended != text else _without_half(text, self._stops)
        if any(begin.startswith(text.lstrip()) for begin in _BEGINS):
            return "", ""
        turn = Turn.read(text, form=None, thinking=self._thinking, tools=())
        reasoning = turn.reasoning
        if not turn.content:
            reasoning = _without_half(before(reasoning, _BREAKS), (*_ENDS, *_BREAKS))
        return self._add(reasoning.strip(), self._text(turn.content))

    def rest(self, turn: Turn) -> tuple[str, str]:
        """Reasoning and content of the whole `turn` that were not shown yet."""
        return self._add(turn.reasoning.strip(), turn.content)

    def _text(self, content: str) -> str:
        if not self._openers:
            return content
        if content.startswith("{"):
            return ""
        return _without_half(before(content, self._openers), self._openers).rstrip()

    def _add(self, reasoning: str, content: str) -> tuple[str, str]:
        said, self._reasoning = _more(self._reasoning, reasoning)
        answered, self._content = _more(self._content, content)
        return said, answered


def before(text: str, marks: Iterable[str]) -> str:
    """`text` up to the first of `marks`."""
    return text[: min((place for mark in marks if (place := text.find(mark)) >= 0), default=len(text))]


def _without_half(text: str, marks: Iterable[str]) -> str:
    """`text` without the beginning of a mark at its end."""
    halves = (size for mark in marks for size in range(1, len(mark)) if text.endswith(mark[:size]))
    return text[: len(text) - max(halves, default=0)]


def _more(shown: str, known: str) -> tuple[str, str]:
    """What `known` adds to what was `shown`, and both together."""
    if not known.startswith(shown):
        return "", shown
    return known[len(shown) :], known
