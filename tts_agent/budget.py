"""Limits with a unit, and the ledger that never lets them be passed.

Checks run in this order, and the first that refuses is reported: calls, generated_tokens, total_tokens,
computed_tokens, dollars, seconds. The scope itself is asked before its parents.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from operator import add, attrgetter, le
from typing import Any, NamedTuple

from tts_agent.errors import BudgetError, SearchError
from tts_agent.usage import USAGE_FIELDS, ZERO, Prices, Usage


class Amounts(NamedTuple):
    """A usage, or a limit on one, by budget unit. Dollars are whole picodollars, so that sums are exact."""

    calls: int = 0
    generated_tokens: int = 0
    total_tokens: int = 0
    computed_tokens: int = 0
    picodollars: int = 0

    @classmethod
    def of(cls, usage: Usage) -> "Amounts":
        # NOTE: this and the ledger's sums are written out, because they run several times for every thought.
        computed, cached, generated, decoded, calls, _, dollars, *_ = usage
        paid = round(dollars * PICO) if dollars else 0
        return cls(calls, generated, computed + cached + generated, computed + decoded, paid)

    def plus(self, other: "Amounts") -> "Amounts":
        a, b = self, other
        return Amounts(a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4])

    def minus(self, other: "Amounts") -> "Amounts":
        """The difference, nothing below zero."""
        a, b = self, other
        return Amounts(
            a[0] - b[0] if a[0] > b[0] else 0,
            a[1] - b[1] if a[1] > b[1] else 0,
            a[2] - b[2] if a[2] > b[2] else 0,
            a[3] - b[3] if a[3] > b[3] else 0,
            a[4] - b[4] if a[4] > b[4] else 0,
        )

    def to_json(self) -> dict[str, int]:
        """The amounts that are not zero."""
        if self == NOTHING:
            return {}
        return {unit: value for unit, value in zip(self._fields, self, strict=True) if value}


PICO = 10**12
NOTHING = Amounts()
SECONDS = USAGE_FIELDS.index("seconds")
UNITS = ("calls", "generated_tokens", "total_tokens", "computed_tokens", "dollars")
"""Budget units in the order of `Amounts`."""
CALLS = UNITS.index("calls")


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a search, a node or a run; None is unlimited, and a default budget changes nothing.

    `generated_tokens` counts sampled tokens. `total_tokens` counts prompts in full plus sampled tokens.
    `computed_tokens` counts what the engine ran through the model, and `dollars` its price: both are reserved as if
    nothing were cached and settled at the real count. `calls` counts model requests: one per expansion however many
    siblings it samples, one per question. `seconds` is wall-clock time inside the search.

    `commit_tokens` is held back for one greedy completion, so that a decision can be finished when the rest is used
    up; None holds back what the task's decision may take (one thought, or a whole answer), 0 nothing.
    """

    calls: int | None = None
    generated_tokens: int | None = None
    total_tokens: int | None = None
    computed_tokens: int | None = None
    dollars: float | None = None
    seconds: float | None = None
    commit_tokens: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            integral = field.name not in ("dollars", "seconds")
            if isinstance(value, bool) or not isinstance(value, int if integral else (int, float)):
                kind = "a whole number" if integral else "a number"
                raise BudgetError(f"budget {field.name}={value!r} must be {kind}, or None for no limit")
            if value == float("inf"):
                raise BudgetError(f"budget {field.name}={value!r} is no limit; use None for no limit")
            if not (value >= 0 if field.name == "commit_tokens" else value > 0):
                raise BudgetError(f"budget {field.name}={value!r} must be positive; None means no limit")

    @property
    def limits(self) -> tuple[int | None, ...]:
        """Limits in the order and the units of `Amounts`."""
        dollars = None if self.dollars is None else int(self.dollars * PICO)
        return (self.calls, self.generated_tokens, self.total_tokens, self.computed_tokens, dollars)

    def override(self, changes: Mapping[str, Any]) -> "Budget":
        """This budget with some limits replaced; unknown names raise."""
        known = [field.name for field in fields(self)]
        if unknown := sorted(set(changes) - set(known), key=str):
            raise BudgetError(f"unknown budget fields {unknown!r}; known: {', '.join(known)}")
        return replace(self, **changes)

    def raised(self, more: Mapping[str, Any]) -> "Budget":
        """This budget with some of its limits raised by so much; what is not limited stays so.

        Raises `BudgetError` for names that are no limits, and for amounts that are not positive.
        """
        known = [field.name for field in fields(self) if field.name != "commit_tokens"]
        if unknown := sorted(set(more) - set(known), key=str):
            raise BudgetError(f"{unknown!r} are no limits that can be raised; known: {', '.join(known)}")
        if unset := [name for name, amount in more.items() if amount is None]:
            raise BudgetError(f"limits {unset!r} cannot be raised by None; say by how much")
        Budget(**more)
        return replace(
            self, **{name: limit + more[name] for name in more if (limit := getattr(self, name)) is not None}
        )

    def to_json(self) -> dict[str, float]:
        return {name: value for name, value in zip(_FIELDS, _values(self), strict=True) if value is not None}


_FIELDS = tuple(field.name for field in fields(Budget))
_values = attrgetter(*_FIELDS)
_UNLIMITED = Budget()


class Ledger:
    """The account of one scope (a run, a node, a planning step), nested in its parent's.

    Work is reserved at its worst case before it starts, charged as its parts arrive, and the rest is released. What
    is charged and reserved together never passes a limit of the scope or of any scope around it. All methods are
    synchronous and take one lock per tree of scopes, so tasks, threads and event loops may share a ledger.

    Raises `BudgetError` for a `budget`, a `parent` or `prices` that are none, and for dollars without prices.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        name: str = "run",
        parent: "Ledger | None" = None,
        prices: Prices | None = None,
    ) -> None:
        if not (budget is None or isinstance(budget, Budget)):
            raise BudgetError(f"budget {budget!r} of scope {name!r} is no Budget; pass Budget(calls=...)")
        if not (parent is None or isinstance(parent, Ledger)):
            raise BudgetError(f"ledger {parent!r} around scope {name!r} is no Ledger; pass Ledger(Budget(...))")
        if not (prices is None or isinstance(prices, Prices)):
            raise BudgetError(f"prices {prices!r} of scope {name!r} are no Prices; pass Prices(prompt, generated)")
        self.budget = _UNLIMITED if budget is None else budget
        self.name = name
        self.parent = parent
        self.prices: Prices | None = parent.prices if prices is None and parent is not None else prices
        if self.budget.dollars is not None and self.prices is None:
            raise BudgetError(f"budget dollars={self.budget.dollars!r} of scope {name!r} needs prices=Prices(...)")
        self.seconds = 0.0
        # Running sums are lists that are changed in place: a thought costs several of these additions in every scope.
        self._spent: list[float] = [0] * len(USAGE_FIELDS)
        self._lost, self._charged, self._reserved = [0] * len(UNITS), [0] * len(UNITS), [0] * len(UNITS)
        self._excess = [0] * len(UNITS)
        self._open: dict[int, Amounts] = {}
        self._limits: tuple[int | None, ...] = ()
        self._bounded: list[int] = []
        self._chain: tuple[Ledger, ...] = (self, *(parent._chain if parent else ()))
        self._lock: threading.RLock = parent._lock if parent else threading.RLock()
        self.limit(self.budget)

    def scope(self, budget: Budget | None = None, *, name: str) -> "Ledger":
        """A ledger nested in this one: what it spends is spent here too."""
        return Ledger(budget, name=name, parent=self)

    # --- questions: no effects

    @property
    def reservations(self) -> Mapping[int, Amounts]:
        """Open reservations of this scope by id, less what was charged against them."""
        return self._open

    @property
    def spent(self) -> Usage:
        """What was used and reported, here and in the scopes inside."""
        return Usage(*self._spent)  # type: ignore[arg-type]

    @property
    def lost(self) -> Amounts:
        """What was charged for responses that never arrived."""
        return Amounts(*self._lost)

    @property
    def excess(self) -> Amounts:
        """What was charged beyond what had been reserved for it: nothing, unless an engine used more than its bound.

        A limit may have been passed by as much.
        """
        return Amounts(*self._excess)

    @property
    def reserved(self) -> Amounts:
        """What is set aside and not charged yet."""
        return Amounts(*self._reserved)

    @property
    def committed(self) -> Amounts:
        """Charged and reserved together."""
        return Amounts(*map(add, self._charged, self._reserved))

    def held(self) -> AbstractContextManager[Any]:
        """Hold the lock of the whole tree of scopes: what `refuses` lets pass can then be reserved."""
        return self._lock

    def refuses(self, bound: Usage) -> str | None:
        """The first unit whose limit, here or in a scope around, leaves no room for `bound`; None if it fits."""
        return self._refuses(Amounts.of(self.priced(bound)))

    def _refuses(self, amounts: Amounts) -> str | None:
        with self._lock:
            for scope in self._chain:
                charged, reserved, limits = scope._charged, scope._reserved, scope._limits
                for unit in scope._bounded:
                    if charged[unit] + reserved[unit] + amounts[unit] > limits[unit]:  # type: ignore[operator]
                        return UNITS[unit]
            return None

    def free(self) -> tuple[int | None, ...]:
        """What may still be reserved here, in the order and the units of `Amounts`; None where nothing limits it."""
        return self._least(lambda scope, unit, limit: limit - scope._charged[unit] - scope._reserved[unit])

    @property
    def limited(self) -> bool:
        """Whether anything but time limits this scope, or one around it."""
        return any(map(_bounded, self._chain))

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit on tokens or dollars holds for this scope."""
        return any(unit != CALLS for scope in self._chain for unit in scope._bounded)

    def limits(self) -> tuple[int | None, ...]:
        """The smallest limit of this scope and those around it, in the order and the units of `Amounts`."""
        return self._least(lambda scope, unit, limit: limit)

    def _least(self, value: "Callable[[Ledger, int, int], int]") -> tuple[int | None, ...]:
        least: list[int | None] = [None] * len(UNITS)
        with self._lock:
            for scope in self._chain:
                for unit, limit in enumerate(scope._limits):
                    if limit is not None:
                        here, so_far = value(scope, unit, limit), least[unit]
                        least[unit] = here if so_far is None else min(here, so_far)
        return tuple(least)

    def room(self) -> dict[str, float]:
        """What may still be reserved, by unit, for the units that have a limit."""
        free = zip(UNITS, self.free(), strict=True)
        return {unit: left / PICO if unit == "dollars" else left for unit, left in free if left is not None}

    def seconds_left(self) -> float | None:
        """Seconds until the nearest time limit of this scope or one around it; None without one."""
        least: float | None = None
        for scope in self._chain:
            if (limit := scope.budget.seconds) is not None:
                left = limit - scope.seconds
                least = left if least is None or left < least else least
        return least

    def priced(self, usage: Usage) -> Usage:
        """`usage` with its dollars, if the ledger has prices and the engine gave none."""
        if self.prices is None or usage.dollars:
            return usage
        return usage._replace(dollars=self.prices.dollars(usage))

    # --- acts

    def limit(self, budget: Budget) -> None:
        """Have other limits from now on. What is charged and reserved already stays, also where it passes them."""
        with self._lock:
            self.budget, self._limits = budget, budget.limits
            self._bounded = [unit for unit, limit in enumerate(self._limits) if limit is not None]

    def reserve(self, reservation: int, bound: Usage) -> None:
        """Set `bound` aside under an id. Raises `BudgetError` if it does not fit: ask `refuses` first."""
        amounts = Amounts.of(self.priced(bound))
        with self._lock:
            if unit := self._refuses(amounts):
                raise BudgetError(f"reservation {reservation!r} does not fit into {unit} of scope {self.name!r}")
            if reservation in self._open:
                raise SearchError(f"reservation {reservation!r} is open already in scope {self.name!r}")
            self._open[reservation] = amounts
            for scope in self._chain:
                _add(scope._reserved, amounts)

    def charge(self, reservation: int, usage: Usage) -> None:
        """Charge a part of the reserved work; the reservation shrinks by as much."""
        if usage == ZERO:
            return
        usage = self.priced(usage)
        with self._lock:
            self._take(reservation, Amounts.of(usage))
            for scope in self._chain:
                scope._spent = list(map(add, scope._spent, usage))

    def lose(self, reservation: int, amounts: Amounts | None = None) -> Amounts:
        """Charge work whose response never arrived: `amounts`, or all that is still reserved; returns it."""
        with self._lock:
            taken = self._open[reservation] if amounts is None else amounts
            self._take(reservation, taken)
            for scope in self._chain:
                _add(scope._lost, taken)
            return taken

    def _take(self, reservation: int, amounts: Amounts) -> None:
        """Turn `amounts` of what is reserved into what is charged."""
        held = self._open[reservation]
        freed = amounts if all(map(le, amounts, held)) else Amounts(*map(min, amounts, held))
        self._open[reservation] = held.minus(freed)
        for scope in self._chain:
            _add(scope._charged, amounts)
            _subtract(scope._reserved, freed)
        if freed is not amounts:
            excess = amounts.minus(freed)
            for scope in self._chain:
                _add(scope._excess, excess)

    def write_off(self, amounts: Amounts) -> None:
        """Charge what a killed process may have spent; every reservation is closed but the commit's (id < 0)."""
        with self._lock:
            for reservation in [key for key in self._open if key >= 0]:
                self.release(reservation)
            for scope in self._chain:
                _add(scope._lost, amounts)
                _add(scope._charged, amounts)

    def release(self, reservation: int) -> None:
        """Give back what is still reserved under the id."""
        with self._lock:
            rest = self._open.pop(reservation)
            for scope in self._chain:
                _subtract(scope._reserved, rest)

    def elapse(self, seconds: float) -> None:
        """Let time pass in this scope and those around it. Scopes that run side by side both count their own time."""
        with self._lock:
            for scope in self._chain:
                scope._pass(seconds)

    def _pass(self, seconds: float) -> None:
        """Count seconds in this scope alone."""
        self.seconds += seconds
        self._spent[SECONDS] += seconds

    def snapshot(self) -> dict[str, Any]:
        """The whole account as plain JSON; equal snapshots are equal ledgers."""
        with self._lock:
            return {
                "spent": self.spent.to_json(),
                "lost": self.lost.to_json(),
                "excess": self.excess.to_json(),
                "reserved": self.reserved.to_json(),
                "open": {str(key): value.to_json() for key, value in self._open.items()},
            }


_bounded = attrgetter("_bounded")


def _add(total: list[int], amounts: Amounts) -> None:
    total[0] += amounts[0]
    total[1] += amounts[1]
    total[2] += amounts[2]
    total[3] += amounts[3]
    total[4] += amounts[4]


def _subtract(total: list[int], amounts: Amounts) -> None:
    total[0] -= amounts[0]
    total[1] -= amounts[1]
    total[2] -= amounts[2]
    total[3] -= amounts[3]
    total[4] -= amounts[4]


class Fit(NamedTuple):
    """A request as large as the budget allows."""

    n: int
    max_tokens: int


def fit(refuses: Callable[[int, int], bool], n: int, max_tokens: int, *, least_tokens: int) -> Fit | None:
    """The largest request that is not refused: `n` is trimmed first, then `max_tokens` down to `least_tokens`.

    `refuses(n, max_tokens)` must be monotone. None if not even one sample of `least_tokens` fits.
    """
    if not refuses(n, max_tokens):
        return Fit(n, max_tokens)
    if not refuses(1, max_tokens):
        return Fit(_largest(lambda k: refuses(k, max_tokens), 1, n), max_tokens)
    if least_tokens < max_tokens and not refuses(1, least_tokens):
        return Fit(1, _largest(lambda k: refuses(1, k), least_tokens, max_tokens))
    return None


def _largest(refuses: Callable[[int], bool], low: int, high: int) -> int:
    """Largest k in [low, high) that is not refused, given that `low` is not and `high` is."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refuses(middle) else (middle, high)
    return low
