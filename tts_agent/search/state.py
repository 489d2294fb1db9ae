"""Everything a search knows: the folds over its log, kept in step."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tts_agent.budget import Ledger
from tts_agent.events import (
    COMMIT,
    Cancelled,
    Carried,
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
    Reserved,
    Sampled,
    Settled,
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
        self._judged = judged
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Fold one event into everything: the tree first, then the account, then the strategy."""
        self.tree.update(event)
        self._account(event)
        self.strategy.update(self.strategy_state, event)

    def _account(self, event: Event) -> None:
        ledger, pending = self.ledger, self.pending
        match event:
            case Opened():
                self.opened = event
            case Planned():
                pending[event.expansion] = Pending(event)
                self.next_expansion = event.expansion + 1
            case Reserved(reservation, bound):
                ledger.reserve(reservation, bound)
            case Sampled(thought):
                entry = pending[thought.expansion]
                entry.arrived.add(thought.id - entry.planned.first)
                if self._judged and thought.status in ("open", "complete"):
                    entry.unjudged.add(thought.id)
                ledger.charge(entry.planned.reservation, thought.usage)
            case Judged(thought_id, verdict):
                entry = pending[self.tree.thoughts[thought_id].expansion]
                entry.unjudged.discard(thought_id)
                ledger.charge(entry.planned.reservation, verdict.usage)
            case Merged(thought_id) | Pruned(thought_id):
                expansion = self.tree.thoughts[thought_id].expansion
                if expansion in pending:
                    pending[expansion].unjudged.discard(thought_id)
            case Settled(reservation):
                self._close(reservation)
                ledger.release(reservation)
            case Cancelled():
                self._close(event.reservation)
                if event.reservation in ledger.reservations:
                    ledger.charge(event.reservation, event.usage)
                    ledger.lose(event.reservation, event.lost)
                    ledger.release(event.reservation)
            case Lost():
                self._lose(event)
            case Granted(ceiling):
                self.ceiling = ceiling
            case Clock(seconds):
                ledger.elapse(seconds - self.seconds)
                self.seconds = seconds
            case Deepened(more):
                ledger.limit(ledger.budget.raised(more))
            case Carried():
                pass

    def _lose(self, event: Lost) -> None:
        if event.reservation is None:
            self.ledger.write_off(event.amounts)
        else:
            if event.reservation != COMMIT:  # a killed commit stays planned and is sampled again if it can be paid
                self._close(event.reservation)
            self.ledger.lose(event.reservation, event.amounts)
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
        }
