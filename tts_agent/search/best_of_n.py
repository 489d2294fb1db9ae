"""Best-of-N: independent answers, whole or step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Literal

from tts_agent.errors import ConfigError
from tts_agent.events import (
    Cancelled,
    Event,
    Judged,
    Lost,
    Merged,
    Opened,
    Planned,
    Pruned,
    Sampled,
    Settled,
)
from tts_agent.search.base import Allowance, best, check_number, check_whole, suffices
from tts_agent.thought import ROOT, Expansion, Unit
from tts_agent.tree import ThoughtTree


@dataclass(slots=True)
class BestOfNState:
    tree: ThoughtTree
    started: int = 0  # answers begun
    ready: list[int] = field(default_factory=list)  # where answers stand that wait for their next sample
    missing: dict[int, tuple[int, int]] = field(default_factory=dict)  # expansion -> (parent, samples to come)
    ended: bool = False  # an answer is good enough

    def snapshot(self) -> Any:
        return self.started, self.ready, self.missing, self.ended


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Sample `n` independent answers, `width` at a time, and choose the best (Cobbe et al. 2021).

    Whole answers are drawn in batches: one request for `width` of them, and the next when the last of them has ended.
    Steps are drawn as each answer needs one.

    `unit="answer"` samples whole answers. `unit="thought"` samples them step by step, and a step that breaks a rule
    is sampled again from where it stood, which is the stronger baseline wherever rules can be checked; with
    `retry="answer"` the whole answer is given up there and another is begun at the root. The search ends with the first
    answer proven right. `n=None` goes on as long as the budget lasts, after the
    first whole answer of value `enough` nothing more is begun, and what is under way comes to its end.
    """

    name: ClassVar[str] = "best_of_n"

    n: int | None = 16
    width: int = 8
    unit: Unit = "answer"
    retry: Literal["step", "answer"] = "step"  # what is sampled again after a step that breaks a rule
    enough: float | None = None

    def __post_init__(self) -> None:
        check_whole(self.name, "n", self.n, optional=True)
        check_whole(self.name, "width", self.width)
        check_number(self.name, "enough", self.enough, optional=True)
        if self.unit not in ("answer", "thought"):
            raise ConfigError(f"best_of_n unit={self.unit!r} is unknown; known: 'answer', 'thought'")
        if self.retry not in ("step", "answer"):
            raise ConfigError(f"best_of_n retry={self.retry!r} is unknown; known: 'step', 'answer'")
        if self.unit == "answer" and self.retry == "answer":
            raise ConfigError("best_of_n retry='answer' needs unit='thought': whole answers are read at their end")

        if self.enough is not None and not 0 < self.enough <= 1:
            raise ConfigError(f"best_of_n enough={self.enough!r} must lie in (0, 1], or be None")

    @property
    def bounded(self) -> bool:
        return self.n is not None and self.unit == "answer"

    def start(self, tree: ThoughtTree) -> BestOfNState:
        return BestOfNState(tree)

    def _begin(self, state: BestOfNState, answers: int) -> None:
        if self.n is not None:
            answers = min(answers, self.n - state.started)
        state.started += answers
        state.ready.extend([ROOT] * answers)

    def update(self, state: BestOfNState, event: Event) -> None:
        fold = _FOLDS.get(type(event))
        if fold is not None:
            fold(self, state, event)

    def _open(self, state: BestOfNState, event: Opened) -> None:
        self._begin(state, self.width)

    def _plan(self, state: BestOfNState, event: Planned) -> None:
        if not event.commit:
            parent, n = event.request.parent, event.request.n
            for _ in range(n):
                state.ready.remove(parent)
            state.missing[event.expansion] = (parent, n)

    def _sample(self, state: BestOfNState, event: Sampled) -> None:
        thought = event.thought
        if thought.expansion in state.missing:
            parent, missing = state.missing[thought.expansion]
            state.missing[thought.expansion] = (parent, missing - 1)
            if thought.status == "open":
                state.ready.append(thought.id)
            elif thought.status == "invalid" and self.unit == "thought" and self.retry == "step":
                state.ready.append(thought.parent)
            else:
                self._begin(state, 1)

    def _judge(self, state: BestOfNState, event: Judged) -> None:
        state.ended = state.ended or suffices(state.tree, event.thought, self.enough)

    def _merge(self, state: BestOfNState, event: Merged) -> None:
        if event.thought in state.ready:
            # The same state was reached before: the answer goes on from there, or ends where that one ended.
            state.ready.remove(event.thought)
            if state.tree.is_open(event.into):
                state.ready.append(event.into)
            else:
                self._begin(state, 1)

    def _prune(self, state: BestOfNState, event: Pruned) -> None:
        # Its context is full, or somebody dropped it: the answers that stood there are given up.
        given_up = state.ready.count(event.thought)
        if given_up:
            state.ready = [thought for thought in state.ready if thought != event.thought]
            self._begin(state, given_up)

    def _close(self, state: BestOfNState, event: Settled | Cancelled | Lost) -> None:
        if event.reservation in state.missing:
            parent, missing = state.missing.pop(event.reservation)
            state.ready.extend([parent] * missing)

    def propose(self, state: BestOfNState, allowance: Allowance, rng: Random) -> Sequence[Expansion]:
        if state.ended or (self.unit == "answer" and state.missing):
            return ()
        waiting: dict[int, int] = {}
        for parent in state.ready:
            waiting[parent] = waiting.get(parent, 0) + 1
        return [Expansion(parent, n, self.unit) for parent, n in waiting.items()]

    def choose(self, state: BestOfNState) -> int | None:
        return best(state.tree)


_FOLDS: dict[type[Any], Callable[[BestOfN, BestOfNState, Any], None]] = {
    Opened: BestOfN._open,
    Planned: BestOfN._plan,
    Sampled: BestOfN._sample,
    Judged: BestOfN._judge,
    Merged: BestOfN._merge,
    Pruned: BestOfN._prune,
    Settled: BestOfN._close,
    Cancelled: BestOfN._close,
    Lost: BestOfN._close,
}
