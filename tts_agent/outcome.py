"""The result of a search."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tts_agent.events import Event
from tts_agent.thought import StopReason, Thought
from tts_agent.tree import ThoughtTree
from tts_agent.usage import ZERO, Usage


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a search.

    `path` leads from the root's child to the chosen thought (empty if there is no decision at all), its first
    element is the decision. `usage` is what this search was charged, `lost` what was charged for responses that
    never arrived, `excess` what an engine used beyond the bound that was reserved for it, so that a limit may have been
    passed by as much; both by budget unit (dollars in picodollars). `cut` says what the limits cut off, or who stopped
    it, in words, empty if nothing. `tree` and `log` are the search itself.
    """

    path: tuple[Thought, ...]
    stop: StopReason
    limit: str | None = None
    usage: Usage = ZERO
    lost: dict[str, int] = field(default_factory=dict)
    excess: dict[str, int] = field(default_factory=dict)
    cut: str = ""
    tree: ThoughtTree = field(default_factory=ThoughtTree, repr=False, compare=False)
    log: Sequence[Event] = field(default=(), repr=False, compare=False)

    @property
    def decision(self) -> Thought | None:
        """The thought to act on: the first of the chosen path."""
        return self.path[0] if self.path else None

    @property
    def answer(self) -> str:
        """Text of the whole chosen path."""
        return "".join(thought.text for thought in self.path)

    @property
    def solved(self) -> bool:
        return bool(self.path) and self.path[-1].status == "solved"
