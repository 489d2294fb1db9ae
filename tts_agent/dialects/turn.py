"""What a model said in one turn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from tts_agent.dialects.calls import OPEN, Call, CallFormat, read_calls

THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""Tags between which models reason before they answer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn, taken apart. `problem` says why its tool calls cannot be carried out; `broken_off` that it may go on."""

    content: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    problem: str = ""

    @classmethod
    def read(cls, text: str, *, form: CallFormat | None, thinking: bool, tools: Sequence[str]) -> Self:
        """The turn that says `text`. `thinking` says that the prompt has opened the reasoning already.

        Without a `form` there are no tool calls. A call of a tool that is not among `tools` is a problem.
        """
        reasoning, rest, over = _split(text, thinking)
        if not over:
            return cls("", reasoning)
        if form is None:
            return cls(rest.strip(), reasoning)
        spoken = read_calls(rest, form)
        problem = spoken.problem
        if unknown := [call.name for call in spoken.calls if call.name not in tools]:
            problem = problem or f"there is no tool {unknown[0]!r}; known: {', '.join(tools)}"
        return cls(spoken.content, reasoning, spoken.calls, problem)

    @property
    def broken_off(self) -> bool:
        """Whether the only problem is that the turn is not over."""
        return self.problem == OPEN

    @property
    def silent(self) -> str:
        """Why the turn tells nobody anything; empty if it does."""
        if self.content or self.calls or self.problem:
            return ""
        return "the turn reasons and says nothing" if self.reasoning else "the turn says nothing"

    @property
    def key(self) -> str:
        """Canonical form of the tool calls: turns that call the same are the same decision. Empty without calls."""
        calls = [[call.name, call.args] for call in self.calls]
        return f"calls:{json.dumps(calls, sort_keys=True)}" if calls else ""

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"content": self.content}
        if self.reasoning:
            data["reasoning"] = self.reasoning
        if self.calls:
            data["calls"] = [{"name": call.name, "args": call.args} for call in self.calls]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        calls = tuple(Call(call["name"], call["args"]) for call in data.get("calls", ()))
        return cls(data["content"], data.get("reasoning", ""), calls)


def _split(text: str, thinking: bool) -> tuple[str, str, bool]:
    """Reasoning, the rest, and whether the reasoning is over (so that the rest has begun)."""
    for begin, end in THINKING:
        opened = text.lstrip().startswith(begin)
        before, found, after = text.partition(end)
        if found and (opened or thinking):
            return before.strip().removeprefix(begin).strip("\n"), after, True
        if opened:
            return text.lstrip().removeprefix(begin).strip("\n"), "", False
    return (text.strip("\n"), "", False) if thinking else ("", text, True)
