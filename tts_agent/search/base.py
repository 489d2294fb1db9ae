"""What a search strategy is, and what all of them share."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random
from typing import ClassVar, NamedTuple, Protocol, TypeVar

from tts_agent.errors import ConfigError
from tts_agent.events import Event
from tts_agent.thought import Expansion, Prune, Unit
from tts_agent.tree import ThoughtTree

S = TypeVar("S")


class Allowance(NamedTuple):
    """What a strategy may count on when it proposes."""

    in_flight: int  # expansions under way
    left: float  # smallest share of a limit that is still free, in [0, 1]; 1.0 without limits


class Strategy(Protocol[S]):
    """Which thoughts to grow: frozen settings and four methods without side effects beyond the state they are given.

    The state is a fold over the search's events, owned by the caller, and holds pending expansions, since planning
    is an event. Folding the same events gives the same state, and with it the same proposals.
    """

    name: ClassVar[str]

    @property
    def unit(self) -> Unit:
        """What one sample is."""
        ...

    @property
    def bounded(self) -> bool:
        """Whether the strategy ends by itself without any budget."""
        ...

    def start(self, tree: ThoughtTree) -> S:
        """The state before the first event. `tree` is the fold the caller keeps; the strategy only reads it."""
        ...

    def update(self, state: S, event: Event) -> None:
        """Fold one event into `state`; the tree has seen it already."""
        ...

    def propose(self, state: S, allowance: Allowance, rng: Random) -> Sequence[Expansion | Prune]:
        """What to do next, most wanted first; empty if there is nothing to do before something in flight ends.

        It is asked again after its proposals were planned, until it proposes nothing, so one at a time is fine.
        """
        ...

    def choose(self, state: S) -> int | None:
        """The thought whose path is the answer so far; None if there is none."""
        ...


def check_whole(strategy: str, name: str, value: object, *, optional: bool = False) -> None:
    """Raise `ConfigError` unless a setting is a whole number of at least 1, or None where it is `optional`."""
    if value is None and optional:
        return
    either = ", or None" if optional else ""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{strategy} {name}={value!r} must be a whole number{either}")
    if value < 1:
        raise ConfigError(f"{strategy} {name}={value!r} must be at least 1{either}")


def check_number(strategy: str, name: str, value: object, *, optional: bool = False) -> None:
    """Raise `ConfigError` unless a setting is a number, or None where it is `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{strategy} {name}={value!r} must be a number{', or None' if optional else ''}")


UNVALUED = 0.5
"""Stands for the value of a thought that no verdict and no parent gives one: unknown, neither good nor bad."""


def valued(value: float | None, unvalued: float = UNVALUED) -> float:
    return unvalued if value is None else value


def suffices(tree: ThoughtTree, thought: int, enough: float | None) -> bool:
    """Whether `thought` is a whole answer with a value of at least `enough`, so that no better one is looked for."""
    if enough is None or tree.thoughts[thought].status != "complete":
        return False
    return valued(tree.value(thought), 0.0) >= enough


_RANK = {"solved": 3, "complete": 2, "open": 1}


def best(tree: ThoughtTree) -> int | None:
    """The best thought so far: solved before complete before open, then by value, then the deeper, then the older.

    An open thought whose reading says why it cannot be the end is none.
    """
    candidates, place = _candidates(tree)
    return max(candidates, key=place, default=None)


def ranked(tree: ThoughtTree) -> list[int]:
    """All thoughts that `best` considers, the best first."""
    candidates, place = _candidates(tree)
    return sorted(candidates, key=place, reverse=True)


def rank(tree: ThoughtTree, thought: int) -> tuple[float, ...]:
    """Place of a thought among those that `best` considers; the greatest is the best."""
    value = tree.value(thought)
    status = tree.thoughts[thought].status
    return (_RANK[status], -1.0 if value is None else value, tree.depth[thought], -thought)


def _candidates(tree: ThoughtTree) -> tuple[Iterator[int], Callable[[int], tuple[float, ...]]]:
    candidates = (
        number
        for number, step in tree.thoughts.items()
        if step.status in _RANK and number not in tree.merged and not (step.status == "open" and step.reason)
    )
    return candidates, partial(rank, tree)
