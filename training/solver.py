"""Exact Countdown solver: for a multiset of numbers, the number of solutions for every target at once."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tts_agent.pocket.countdown import LARGEST, Operator

Counts = npt.NDArray[np.unsignedinteger]


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


class Solver:
    """Counts solutions with a memo per multiset. A solution is a sequence of different steps to the target."""

    def __init__(self) -> None:
        self._memo: dict[tuple[int, ...], Counts] = {}

    def counts(self, numbers: tuple[int, ...]) -> Counts:
        """For the ascending multiset, an array over targets 0..200 of how many solutions each has."""
        known = self._memo.get(numbers)
        if known is None:
            known = self._memo[numbers] = self._count(numbers)
        return known

    def solutions(self, numbers: tuple[int, ...], target: int) -> int:
        """How many solutions the state has; `numbers` in any order. 0 means it is dead."""
        return int(self.counts(tuple(sorted(numbers)))[target])

    def _count(self, numbers: tuple[int, ...]) -> Counts:
        # Three numbers have at most 48 solutions and five at most 46,080, so the small types cannot overflow.
        total: Counts = np.zeros(LARGEST + 1, dtype=np.uint8 if len(numbers) <= 3 else np.uint16)
        if len(numbers) == 1:
            total[numbers[0]] = 1
        elif len(numbers) == 2:
            for _, result in _operations(numbers[1], numbers[0]):
                total[result] += 1
        else:
            for move in moves(numbers):
                np.add(total, self.counts(move.rest), out=total)
        return total
