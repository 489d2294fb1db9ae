"""Everything a search knows: the folds over its log, kept in step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tts_agent.budget import Ledger
from tts_agent.events import (
    COMMIT,
    Cancelled,
    Clock,
    Deepened,
    Event,
    Granted,
    Judged,
    Lost,
    Merged,
    Opened,
    Planned,
    Pruned,
    Reissued,
    Reserved,
    Sampled,
    Settled,
    Stopped,
)
from tts_agent.search.base import Strategy
from tts_agent.tree import ThoughtTree


@dataclass(slots=True)
class Pending:
    """An expansion that is planned and not settled."""

    planned: Planned
    arrived: set[int] = field(default_factory=set)  # sample indices
    unjudged: set[int] = field(default_factory=set)  # thoughts whose verdict is to come

    @property
    def missing(self) -> list[int]:
        """Indices of the samples still to come."""
        return [index for index in range(self.planned.request.n) if index not in self.arrived]


class SearchState:
    """Tree, ledger, strategy state and what is under way, all folds over one list of events.

    `apply` is the only way to change any of them.
    """

    def __init__(self, strategy: Strategy[Any], ledger: Ledger, *, judged: bool, events: Iterable[Event] = ()) -> None:
        self.opened: Opened | None = None
        self.tree = ThoughtTree()
        self.ledger = ledger
        self.strategy = strategy
        self.strategy_state = strategy.start(self.tree)
        self.pending: dict[int, Pending] = {}
        self.next_expansion = 0
        self.ceiling: tuple[int | None, ...] | None = None
        self.seconds = 0.0
        self.stopped: str | None = None  # why, if somebody outside stopped it
        self._judged = judged
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Fold one event into everything: the tree first, then the account, then the strategy."""
        self.tree.update(event)
        account = _ACCOUNTS.get(type(event))
        if account is not None:
            account(self, event)
        self.strategy.update(self.strategy_state, event)

    def _begin(self, event: Opened) -> None:
        self.opened = event

    def _plan(self, event: Planned) -> None:
        self.pending[event.expansion] = Pending(event)
        self.next_expansion = event.expansion + 1

    def _reserve(self, event: Reserved) -> None:
        self.ledger.reserve(event.reservation, event.bound)

    def _arrive(self, event: Sampled) -> None:
        thought = event.thought
        entry = self.pending[thought.expansion]
        entry.arrived.add(thought.id - entry.planned.first)
        if self._judged and thought.status in ("open", "complete"):
            entry.unjudged.add(thought.id)
        self.ledger.charge(entry.planned.reservation, thought.usage)

    def _judge(self, event: Judged) -> None:
        entry = self.pending[self.tree.thoughts[event.thought].expansion]
        entry.unjudged.discard(event.thought)
        self.ledger.charge(entry.planned.reservation, event.verdict.usage)

    def _drop(self, event: Merged | Pruned) -> None:
        entry = self.pending.get(self.tree.thoughts[event.thought].expansion)
        if entry is not None:
            entry.unjudged.discard(event.thought)

    def _settle(self, event: Settled) -> None:
        self._close(event.reservation)
        self.ledger.release(event.reservation)

    def _cancel(self, event: Cancelled) -> None:
        ledger = self.ledger
        self._close(event.reservation)
        if event.reservation in ledger.reservations:
            ledger.charge(event.reservation, event.usage)
            ledger.lose(event.reservation, event.lost)
            ledger.release(event.reservation)

    def _grant(self, event: Granted) -> None:
        self.ceiling = event.ceiling

    def _elapse(self, event: Clock) -> None:
        self.ledger.elapse(event.seconds - self.seconds)
        self.seconds = event.seconds

    def _deepen(self, event: Deepened) -> None:
        self.ledger.limit(self.ledger.budget.raised(event.more))
        self.stopped = None  # it comes before the stop, or after the end that the stop had

    def _stop(self, event: Stopped) -> None:
        self.stopped = event.reason

    def _lose(self, event: Lost) -> None:
        if event.reservation is None:
            self.ledger.write_off(event.amounts)
        else:
            if event.reservation != COMMIT:  # a killed commit stays planned and is sampled again if it can be paid
                self._close(event.reservation)
            self.ledger.lose(event.reservation, event.amounts)
            self.ledger.release(event.reservation)

    def _reissue(self, event: Reissued) -> None:
        if event.reservation in self.ledger.reservations:  # else it was broken off before it could be issued
            self.ledger.charge(event.reservation, event.usage)
            self.ledger.lose(event.reservation, event.lost)
            self.ledger.release(event.reservation)

    def _close(self, reservation: int) -> None:
        for expansion in [key for key, entry in self.pending.items() if entry.planned.reservation == reservation]:
            del self.pending[expansion]

    def snapshot(self) -> dict[str, Any]:
        """Plain values; states folded from equal logs have equal snapshots."""
        return {
            "tree": self.tree.to_json(),
            "ledger": self.ledger.snapshot(),
            "strategy": repr(self.strategy_state.snapshot()),
            "pending": {key: (sorted(entry.arrived), sorted(entry.unjudged)) for key, entry in self.pending.items()},
            "ceiling": self.ceiling,
            "seconds": self.seconds,
            "stopped": self.stopped,
        }


# What comes several times for every thought is looked up, not matched case by case.
_ACCOUNTS: dict[type[Any], Callable[[SearchState, Any], None]] = {
    Opened: SearchState._begin,
    Planned: SearchState._plan,
    Reserved: SearchState._reserve,
    Sampled: SearchState._arrive,
    Judged: SearchState._judge,
    Merged: SearchState._drop,
    Pruned: SearchState._drop,
    Settled: SearchState._settle,
    Cancelled: SearchState._cancel,
    Lost: SearchState._lose,
    Reissued: SearchState._reissue,
    Granted: SearchState._grant,
    Clock: SearchState._elapse,
    Deepened: SearchState._deepen,
    Stopped: SearchState._stop,
}
