"""Greedy decoding as a search: one branch, the most likely token each time."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from tts_agent.events import Cancelled, Carried, Event, Lost, Merged, Opened, Planned, Pruned, Sampled, Settled
from tts_agent.search.base import Allowance, best, check_whole
from tts_agent.thought import ROOT, Expansion, Unit
from tts_agent.tree import ThoughtTree


@dataclass(slots=True)
class GreedyState:
    tree: ThoughtTree
    tip: int | None = None  # the end of the branch, None while it is being grown or once it has ended
    pending: int | None = None

    def snapshot(self) -> Any:
        return self.tip, self.pending


@dataclass(frozen=True, slots=True)
class Greedy:
    """One branch at temperature 0, thought by thought, to its end: what an agent without search does."""

    name: ClassVar[str] = "greedy"
    unit: ClassVar[Unit] = "thought"

    depth: int = 32

    def __post_init__(self) -> None:
        check_whole(self.name, "depth", self.depth)

    @property
    def bounded(self) -> bool:
        return True

    def start(self, tree: ThoughtTree) -> GreedyState:
        return GreedyState(tree)

    def update(self, state: GreedyState, event: Event) -> None:
        match event:
            case Opened():
                state.tip = ROOT
            case Planned() if not event.commit:
                state.tip, state.pending = None, event.expansion
            case Sampled(thought) | Carried(thought):
                state.tip = thought.id if thought.status == "open" else None
            case Merged(_, into):
                # Where the branch has been before, the most likely token leads round in a circle: it ends here.
                state.tip = None if into in state.tree.children else into
            case Pruned(thought_id) if thought_id == state.tip:
                state.tip = None
            case Settled() | Cancelled() | Lost() if event.reservation == state.pending:
                state.pending = None

    def propose(self, state: GreedyState, allowance: Allowance, rng: Random) -> Sequence[Expansion]:
        if state.pending is not None or state.tip is None or state.tree.depth[state.tip] >= self.depth:
            return ()
        return (Expansion(state.tip, 1, temperature=0.0),)

    def choose(self, state: GreedyState) -> int | None:
        return best(state.tree)
