"""Best-first search with re-expansion."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, inf
from random import Random
from typing import Any, ClassVar

from tts_agent.errors import ConfigError
from tts_agent.events import (
    Cancelled,
    Carried,
    Clock,
    Event,
    Granted,
    Judged,
    Lost,
    Opened,
    Planned,
    Reserved,
    Sampled,
    Settled,
)
from tts_agent.search.base import UNVALUED, Allowance, best, check_number, check_whole, suffices, valued
from tts_agent.thought import ROOT, Expansion, Thought, Unit
from tts_agent.tree import ThoughtTree

LEAST_UNSEEN = 1e-3
"""However much of a thought's children has been seen, this share of its priority is left to it."""

UNLIKELY = -14.0
"""Log-probability below which a child is one of so many that it is not worth remembering (about 1 in a million)."""


@dataclass(slots=True)
class BestFirstState:
    tree: ThoughtTree
    heap: list[tuple[float, int]] = field(default_factory=list)  # (-priority, thought)
    priority: dict[int, float] = field(default_factory=dict)  # of the thoughts that may be grown
    times: dict[int, int] = field(default_factory=dict)  # how often a thought was expanded
    seen: dict[int, set[tuple[int, ...]]] = field(default_factory=dict)  # parent -> what its children say
    covered: dict[int, float] = field(default_factory=dict)  # parent -> probability that a child says one of these
    pending: set[int] = field(default_factory=set)
    planned: int = 0
    ended: bool = False  # an answer is good enough
    judged: bool = True  # whether verdicts are to come

    def snapshot(self) -> Any:
        return sorted(self.heap), self.times, self.covered, sorted(self.pending), self.ended


@dataclass(frozen=True, slots=True)
class BestFirst:
    """Grow the thought with the highest priority, `k` children at a time, `parallel` expansions in flight.

    A thought's priority is its value, times `discount` for every time it was grown before: a promising parent whose
    children disappointed is sampled again instead of being given up, and a hopeless one is left for good reasons
    only (best-first search as in Koh et al. 2024, "Tree Search for Language Model Agents", with re-expansion).
    With `unseen` it is also times the probability that another child is a new one: 1 less the model's probabilities
    of the different children there are, at temperature 1. Where next thoughts are few, as in a game, this is what
    keeps the search from paying for duplicates; where they are many, or the engine gives no log-probabilities, it
    changes nothing.

    `reheat` samples a parent the hotter the less of its next thoughts is unseen: its temperature is times
    1 + `reheat` * (1 - unseen). The likely ones were seen, so another sample at the same temperature would mostly say
    them again, and be paid for. It needs `unseen`.

    With `greedy_first` the first child of every thought is its likeliest (temperature 0), alone, and only the next ones
    are sampled: the search begins with what greedy decoding would say, and costs no more where that is right.

    `discount=0` grows each thought once. The root's value is 1. `unvalued` stands for the value of a thought that no
    verdict and no parent gives one. After the first whole answer of value `enough` nothing more is begun, which saves
    what looking for a better one would cost, and the chance that a wrong one looks better; what is under way comes to
    its end. `max_expansions` bounds the search without a budget.
    """

    name: ClassVar[str] = "best_first"
    unit: ClassVar[Unit] = "thought"

    k: int = 4
    discount: float = 0.5
    parallel: int = 1
    unvalued: float = UNVALUED
    unseen: bool = True
    reheat: float = 0.0
    greedy_first: bool = False
    enough: float | None = None
    max_expansions: int | None = None

    def __post_init__(self) -> None:
        for name in ("k", "parallel"):
            check_whole(self.name, name, getattr(self, name))
        check_whole(self.name, "max_expansions", self.max_expansions, optional=True)
        for name in ("discount", "unvalued", "reheat"):
            check_number(self.name, name, getattr(self, name))
        check_number(self.name, "enough", self.enough, optional=True)
        if not 0 <= self.discount <= 1 or not 0 <= self.unvalued <= 1:
            raise ConfigError(
                f"best_first needs discount and unvalued in [0, 1], got {self.discount!r} and {self.unvalued!r}"
            )
        if not 0 <= self.reheat < inf or (self.reheat and not self.unseen):
            raise ConfigError(
                f"best_first reheat={self.reheat!r} must be a finite number >= 0, and goes by what is unseen: "
                f"unseen={self.unseen!r}"
            )
        if self.greedy_first and not self.discount:
            raise ConfigError("best_first greedy_first=True needs discount > 0: no second child would ever be sampled")
        if self.enough is not None and not 0 < self.enough <= 1:
            raise ConfigError(f"best_first enough={self.enough!r} must lie in (0, 1], or be None")

    @property
    def bounded(self) -> bool:
        return self.max_expansions is not None

    def start(self, tree: ThoughtTree) -> BestFirstState:
        return BestFirstState(tree)

    def _priority(self, state: BestFirstState, thought: int) -> float:
        value = 1.0 if thought == ROOT else state.tree.value(thought)
        priority = valued(value, self.unvalued) * self.discount ** state.times.get(thought, 0)
        return priority * max(LEAST_UNSEEN, 1 - state.covered.get(thought, 0.0))

    def _push(self, state: BestFirstState, thought: int) -> None:
        if state.tree.is_open(thought) and (self.discount or thought not in state.times):
            priority = state.priority[thought] = self._priority(state, thought)
            heapq.heappush(state.heap, (-priority, thought))
        else:
            state.priority.pop(thought, None)

    def _cover(self, state: BestFirstState, thought: Thought) -> None:
        """Take note of what a child leaves unseen of its parent's next thoughts."""
        if not self.unseen or thought.logprob is None or thought.logprob < UNLIKELY:
            return
        seen = state.seen.setdefault(thought.parent, set())
        if thought.ids not in seen:
            seen.add(thought.ids)
            state.covered[thought.parent] = state.covered.get(thought.parent, 0.0) + exp(thought.logprob)
            self._push(state, thought.parent)

    def update(self, state: BestFirstState, event: Event) -> None:
        match event:
            case Opened():
                state.judged = bool(event.verifier)
                self._push(state, ROOT)
            case Sampled(thought):
                self._cover(state, thought)
                if not state.judged:
                    self._push(state, thought.id)
            case Judged(thought_id):
                state.ended = state.ended or suffices(state.tree, thought_id, self.enough)
                self._push(state, thought_id)
            case Carried(thought):
                self._cover(state, thought)
                self._push(state, thought.id)
            case Planned() if not event.commit:
                parent = event.request.parent
                state.times[parent] = state.times.get(parent, 0) + 1
                state.pending.add(event.expansion)
                state.planned += 1
                self._push(state, parent)
            case Settled() | Cancelled() | Lost():
                if event.reservation is not None:
                    state.pending.discard(event.reservation)
                return
            case Reserved() | Clock() | Granted():
                return
        self._drop_stale(state)

    def _drop_stale(self, state: BestFirstState) -> None:
        # An entry is stale once its thought has another priority, for which a newer entry stands, or was pruned.
        heap = state.heap
        while heap and (not state.tree.is_open(heap[0][1]) or -heap[0][0] != state.priority.get(heap[0][1])):
            heapq.heappop(heap)

    def propose(self, state: BestFirstState, allowance: Allowance, rng: Random) -> Sequence[Expansion]:
        full = self.max_expansions is not None and state.planned >= self.max_expansions
        if full or state.ended or not state.heap or len(state.pending) >= self.parallel:
            return ()
        thought = state.heap[0][1]
        if self.greedy_first and thought not in state.times:
            return (Expansion(thought, 1, temperature=0.0),)
        seen = min(1.0, state.covered.get(thought, 0.0))
        return (Expansion(thought, self.k, heat=1 + self.reheat * seen),)

    def choose(self, state: BestFirstState) -> int | None:
        return best(state.tree)
