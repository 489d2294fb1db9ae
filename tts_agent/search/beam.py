"""Tree of thoughts, breadth first: a beam."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from tts_agent.errors import ConfigError
from tts_agent.events import Cancelled, Carried, Event, Judged, Lost, Planned, Sampled, Settled
from tts_agent.search.base import Allowance, Best
from tts_agent.thought import ROOT, Expansion, Prune, Unit
from tts_agent.tree import ThoughtTree


@dataclass(slots=True)
class BeamState:
    tree: ThoughtTree
    best: Best
    levels: dict[int, list[int]] = field(default_factory=lambda: {0: [ROOT]})  # thoughts by depth
    level: int = 0  # depth of the parents that are being grown
    grown: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)

    def snapshot(self) -> Any:
        return self.levels, self.level, sorted(self.grown), sorted(self.pending), self.best.snapshot()


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
            if getattr(self, name) < 1:
                raise ConfigError(f"beam {name}={getattr(self, name)!r} must be at least 1")

    @property
    def bounded(self) -> bool:
        return True

    def start(self, tree: ThoughtTree) -> BeamState:
        return BeamState(tree, Best(tree))

    def update(self, state: BeamState, event: Event) -> None:
        match event:
            case Sampled(thought) | Carried(thought):
                state.levels.setdefault(state.tree.depth[thought.id], []).append(thought.id)
                state.best.offer(thought.id)
            case Judged(thought_id):
                state.best.offer(thought_id)
            case Planned() if not event.commit:
                state.level = max(state.level, state.tree.depth[event.request.parent])
                state.grown.add(event.request.parent)
                state.pending.add(event.expansion)
            case Settled() | Cancelled() | Lost():
                if event.reservation is not None:
                    state.pending.discard(event.reservation)

    def propose(self, state: BeamState, allowance: Allowance, rng: Random) -> Sequence[Expansion | Prune]:
        waiting = [thought for thought in self._open(state, state.level) if thought not in state.grown]
        if waiting:
            return [Expansion(thought, self.k) for thought in waiting]
        if state.pending or state.level + 1 >= self.depth:
            return ()
        tree = state.tree
        ranked = sorted(self._open(state, state.level + 1), key=lambda t: (-(tree.value(t) or 0.0), t))
        pruned = [Prune(thought, "beam") for thought in ranked[self.keep :]]
        return [*pruned, *(Expansion(thought, self.k) for thought in ranked[: self.keep])]

    @staticmethod
    def _open(state: BeamState, level: int) -> list[int]:
        return [thought for thought in state.levels.get(level, ()) if state.tree.is_open(thought)]

    def choose(self, state: BeamState) -> int | None:
        return state.best.thought
