"""Exact Countdown solver: for a multiset of numbers, the number of solutions for every target at once.

Whole batches of multisets are counted together: every kind of step is one array operation, multisets of three come
from a table of all 1,373,701 of them. `Solver.prepare` counts every state that a puzzle of six numbers can lead to.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.split import HIGHEST, LOWEST
from tts_agent.pocket.countdown import LARGEST, Operator

Counts = npt.NDArray[np.unsignedinteger]
Rows = npt.NDArray[np.int64]
"""Multisets of one size, one a row, ascending."""
Index = npt.NDArray[np.intp]

CHUNK = 50_000
"""Rows counted at a time, to bound memory."""


class Move(NamedTuple):
    """One legal step on a multiset, the larger operand first."""

    a: int
    op: Operator
    b: int
    result: int
    rest: tuple[int, ...]
    """The multiset afterwards, ascending."""


def _operations(a: int, b: int) -> list[tuple[Operator, int]]:
    """Legal operations on ``a >= b``. The same rules as `countdown.result_of`, without exceptions, for speed."""
    found: list[tuple[Operator, int]] = []
    if a + b <= LARGEST:
        found.append(("+", a + b))
    found.append(("-", a - b))
    if a * b <= LARGEST:
        found.append(("*", a * b))
    if b and a % b == 0:
        found.append(("/", a // b))
    return found


def moves(numbers: tuple[int, ...]) -> list[Move]:
    """Every different legal step on the ascending multiset `numbers`."""
    found: list[Move] = []
    pairs = set()
    for j in range(len(numbers) - 1, 0, -1):
        for i in range(j):
            a, b = numbers[j], numbers[i]
            if (a, b) in pairs:
                continue
            pairs.add((a, b))
            kept = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for op, result in _operations(a, b):
                found.append(Move(a, op, b, result, tuple(sorted((*kept, result)))))
    return found


def _results(a: Rows, b: Rows) -> Iterator[tuple[Rows, npt.NDArray[np.bool_]]]:
    """The four operations on arrays ``a >= b``: results, and where they are legal."""
    yield a + b, a + b <= LARGEST
    yield a - b, np.ones(len(a), dtype=bool)
    yield a * b, a * b <= LARGEST
    divisor = np.maximum(b, 1)
    yield a // divisor, (b > 0) & (a % divisor == 0)


def _steps(rows: Rows) -> Iterator[tuple[Index, Rows]]:
    """Every different legal step of every row, some at a time: the rows that can take it, and what it leaves."""
    for j in range(rows.shape[1] - 1, 0, -1):
        for i in range(j):
            new = np.ones(len(rows), dtype=bool)  # of equal pairs only the first counts
            if i > 0:
                new &= rows[:, i - 1] != rows[:, i]
            if j - 1 > i:
                new &= rows[:, j - 1] != rows[:, j]
            kept = np.delete(rows, (i, j), axis=1)
            for result, legal in _results(rows[:, j], rows[:, i]):
                which = np.flatnonzero(new & legal)
                if len(which):
                    yield which, np.sort(np.column_stack((kept[which], result[which])), axis=1)


def _keys(rows: Rows) -> Rows:
    """One number for each row; ascending keys are rows in lexicographic order."""
    keys = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        keys = keys * (LARGEST + 1) + column
    return keys


def _rows(keys: Rows, size: int) -> Rows:
    return np.stack([keys // (LARGEST + 1) ** place % (LARGEST + 1) for place in range(size - 1, -1, -1)], axis=1)


def _rank(triples: Rows) -> Rows:
    """Place of an ascending triple in the table of all."""
    x, y, z = triples.T
    found: Rows = x + y * (y + 1) // 2 + z * (z + 1) * (z + 2) // 6
    return found


@cache
def _triples(largest: int) -> Counts:
    """Solutions of every multiset of three numbers, by rank; at most 48, so that a byte holds them."""
    size = LARGEST + 1
    y, z = np.tril_indices(size)[::-1]  # y <= z
    x = np.concatenate([np.arange(top + 1) for top in y])
    every = np.stack((x, np.repeat(y, y + 1), np.repeat(z, y + 1)), axis=1).astype(np.int64)
    every = every[np.argsort(_rank(every))]
    table = np.zeros((len(every), largest + 1), dtype=np.uint8)
    for which, rest in _steps(every):
        for result, legal in _results(rest[:, 1], rest[:, 0]):
            legal &= result <= largest
            table[which[legal], result[legal]] += 1
    return table


class _Table(NamedTuple):
    """Counts of many multisets of one size."""

    keys: Rows
    counts: Counts


class Solver:
    """Counts solutions for the targets from 0 to `largest`. A solution is a sequence of different steps."""

    def __init__(self, *, largest: int = 100) -> None:
        self.largest = largest
        self._memo: dict[tuple[int, ...], Counts] = {}
        self._tables: dict[int, _Table] = {}

    def counts(self, numbers: tuple[int, ...]) -> Counts:
        """For the ascending multiset, an array over targets of how many solutions each has."""
        return self._many([numbers])[0]

    def solutions(self, numbers: tuple[int, ...], target: int) -> int:
        """How many solutions the state has; `numbers` in any order. 0 means it is dead.

        Raises:
            ValueError: the target is above `largest`.
        """
        return self.tally([tuple(sorted(numbers))], target)[0]

    def tally(self, states: Sequence[tuple[int, ...]], target: int) -> list[int]:
        """How many solutions each of the ascending multisets of one size has.

        Raises:
            ValueError: the target is above `largest`.
        """
        if target > self.largest:
            raise ValueError(f"target {target!r} is above {self.largest}; make Solver(largest={target})")
        if states and len(states[0]) == 3:
            rows = np.array(states, dtype=np.int64)
            counts: list[int] = _triples(self.largest)[_rank(rows), target].tolist()
            return counts
        if states and len(states[0]) in self._tables:
            keys = _keys(np.array(states, dtype=np.int64))
            if (known := self._listed(keys, len(states[0]))) is not None:
                table, places = known
                found: list[int] = table.counts[places, target].tolist()
                return found
        return [int(row[target]) for row in self._many(states)]

    def prepare(self, size: int) -> None:
        """Count every state of four numbers and more that a puzzle of up to `size` numbers leads to, once and for all.

        For six numbers these are 390,000 states, 80 MB and a quarter of a minute.
        """
        for left in range(size - 1, 3, -1):
            starts = _starts(left)
            above = _rows(self._tables[left + 1].keys, left + 1) if left + 1 < size else _starts(size)
            led = [
                np.unique(np.concatenate([_keys(rest) for _, rest in _steps(above[first : first + CHUNK])]))
                for first in range(0, len(above), CHUNK)
            ]
            keys = np.unique(np.concatenate((_keys(starts), *led)))
            self._tables[left] = _Table(keys, np.zeros(0, dtype=np.uint16))
        for left in sorted(self._tables):
            keys = self._tables[left].keys
            counts = np.empty((len(keys), self.largest + 1), dtype=np.uint16)
            for first in range(0, len(keys), CHUNK):
                part = slice(first, first + CHUNK)
                counts[part] = self._count(_rows(keys[part], left))
            self._tables[left] = _Table(keys, counts)

    def _many(self, states: Sequence[tuple[int, ...]]) -> list[Counts]:
        new = sorted({state for state in states if state not in self._memo})
        if new:
            rows = np.array(new, dtype=np.int64)
            self._memo.update(zip(new, self._known(_keys(rows), rows.shape[1]), strict=True))
        return [self._memo[state] for state in states]

    def _count(self, rows: Rows) -> Counts:
        size = rows.shape[1]
        if size == 3:
            found: Counts = _triples(self.largest)[_rank(rows)]
            return found
        # Five numbers have at most 46,080 solutions, so the small type cannot overflow.
        total: Counts = np.zeros((len(rows), self.largest + 1), dtype=np.uint16 if size <= 5 else np.uint32)
        if size == 1:
            inside = np.flatnonzero(rows[:, 0] <= self.largest)
            total[inside, rows[inside, 0]] = 1
            return total
        if size == 4:
            for which, rest in _steps(rows):
                total[which] += _triples(self.largest)[_rank(rest)]
            return total
        steps = list(_steps(rows))
        keys = np.concatenate([_keys(rest) for _, rest in steps])
        below, place = np.unique(keys, return_inverse=True)
        counts = self._known(below, size - 1)
        first = 0
        for which, rest in steps:
            total[which] += counts[place[first : first + len(rest)]]
            first += len(rest)
        return total

    def _known(self, keys: Rows, size: int) -> Counts:
        """Counts of many multisets, from the table if it has them all."""
        known = self._listed(keys, size)
        return self._count(_rows(keys, size)) if known is None else known[0].counts[known[1]]

    def _listed(self, keys: Rows, size: int) -> tuple[_Table, Index] | None:
        """The table of this size and where in it the multisets stand, if it has them all."""
        table = self._tables.get(size)
        if table is None or not len(table.counts):
            return None
        places = np.minimum(np.searchsorted(table.keys, keys), len(table.keys) - 1)
        return (table, places) if bool((table.keys[places] == keys).all()) else None


def _starts(size: int) -> Rows:
    """Every multiset that a puzzle may start with."""
    every = combinations_with_replacement(range(LOWEST, HIGHEST + 1), size)
    return np.array(list(every), dtype=np.int64)
