"""Tree of thoughts, breadth first: a beam."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from tts_agent.events import Cancelled, Carried, Event, Lost, Planned, Sampled, Settled
from tts_agent.search.base import Allowance, best, check_whole, valued
from tts_agent.thought import ROOT, Expansion, Prune, Unit
from tts_agent.tree import ThoughtTree


@dataclass(slots=True)
class BeamState:
    tree: ThoughtTree
    levels: dict[int, list[int]] = field(default_factory=lambda: {0: [ROOT]})  # thoughts by depth
    level: int = 0  # depth of the parents that are being grown
    grown: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)

    def snapshot(self) -> Any:
        return self.levels, self.level, sorted(self.grown), sorted(self.pending)


@dataclass(frozen=True, slots=True)
class Beam:
    """Breadth-first tree of thoughts (Yao et al. 2023): grow every thought of a level by `k`, keep the best `keep`.

    A level is complete before the next begins, so the slowest sibling sets the pace. Thoughts rank by value, ties
    by id. `depth` bounds the levels; without it the beam ends where its thoughts do.
    """

    name: ClassVar[str] = "beam"
    unit: ClassVar[Unit] = "thought"

    k: int = 8
    keep: int = 5
    depth: int = 32

    def __post_init__(self) -> None:
        for name in ("k", "keep", "depth"):
            check_whole(self.name, name, getattr(self, name))

    @property
    def bounded(self) -> bool:
        return True

    def start(self, tree: ThoughtTree) -> BeamState:
        return BeamState(tree)

    def update(self, state: BeamState, event: Event) -> None:
        match event:
            case Sampled(thought) | Carried(thought):
                state.levels.setdefault(state.tree.depth[thought.id], []).append(thought.id)
            case Planned() if not event.commit:
                state.level = max(state.level, state.tree.depth[event.request.parent])
                state.grown.add(event.request.parent)
                state.pending.add(event.expansion)
            case Settled() | Cancelled() | Lost():
                if event.reservation is not None:
                    state.pending.discard(event.reservation)

    def propose(self, state: BeamState, allowance: Allowance, rng: Random) -> Sequence[Expansion | Prune]:
        # In the order they were ranked when the level began, wherever a wait for a grant or a kill came between.
        waiting = [thought for thought in self._ranked(state, state.level) if thought not in state.grown]
        if waiting:
            return [Expansion(thought, self.k) for thought in waiting]
        if state.pending or state.level + 1 >= self.depth:
            return ()
        ranked = self._ranked(state, state.level + 1)
        pruned = [Prune(thought, "beam") for thought in ranked[self.keep :]]
        return [*pruned, *(Expansion(thought, self.k) for thought in ranked[: self.keep])]

    @staticmethod
    def _ranked(state: BeamState, level: int) -> list[int]:
        """The open thoughts of a level, the best first."""
        tree = state.tree
        thoughts = (thought for thought in state.levels.get(level, ()) if tree.is_open(thought))
        return sorted(thoughts, key=lambda thought: (-valued(tree.value(thought)), thought))

    def choose(self, state: BeamState) -> int | None:
        return best(state.tree)
