"""The rules of Countdown: numbers, one arithmetic operation a step, a target.

A puzzle gives a few numbers and a target. Each step takes two of the numbers at hand, replaces them by the
result of one operation, and leaves one number fewer. The puzzle is solved when one number is left and it is the
target, so every number is used exactly once. Game of 24 is the case of four numbers and the target 24.

All numbers are integers from 0 to 200. Division must be exact and subtraction may not go below zero.

Text form, one line a step, the new number first in ``left:`` and the untouched ones after it as they stood::

    nums: 8 5 3 1 target: 24
    8*3=24 left: 24 5 1
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from tts_agent.errors import TTSError

Operator = Literal["+", "-", "*", "/"]
"""One of the four operations of a step."""

OPERATORS: tuple[Operator, ...] = get_args(Operator)
LARGEST = 200
"""No number on the table is ever larger."""

_PROMPT = re.compile(r"\s*nums:((?:\s*\d+)+)\s*target:\s*(\d+)\s*")
_STEP = re.compile(r"\s*(\d+)\s*([-+*/])\s*(\d+)\s*=\s*(\d+)\s*left:\s*(\d+(?:\s+\d+)*)\s*")


class IllegalStep(TTSError, ValueError):
    """A step breaks the rules on the numbers it was tried on; ``reason`` says which rule."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Numbers in the order they are shown, and the target to make from all of them."""

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        if not self.numbers:
            raise ValueError("a puzzle needs at least one number, got none; pass numbers=(8, 5, 3, 1)")
        for number in (*self.numbers, self.target):
            if not 0 <= number <= LARGEST:
                raise ValueError(f"{number!r} is outside 0..{LARGEST}; use integers in that range")


@dataclass(frozen=True, slots=True)
class Step:
    """One written line: ``a op b = result``, and the numbers claimed to be left after it."""

    a: int
    op: Operator
    b: int
    result: int
    left: tuple[int, ...]

    def text(self) -> str:
        """The line as the planner writes it, with its newline."""
        return f"{self.a}{self.op}{self.b}={self.result} left: {_joined(self.left)}\n"


def prompt_text(puzzle: Puzzle) -> str:
    """The first line of a trace, which states the puzzle."""
    return f"nums: {_joined(puzzle.numbers)} target: {puzzle.target}\n"


def parse_prompt(text: str) -> Puzzle | None:
    """Read a prompt line back; None where the text is no such line or a number is out of range."""
    found = _PROMPT.fullmatch(text)
    if found is None:
        return None
    numbers, target = tuple(map(int, found[1].split())), int(found[2])
    if max(*numbers, target) > LARGEST:
        return None
    return Puzzle(numbers, target)


def parse_step(line: str) -> Step | None:
    """Read one step line; None where it has not the form of a step. Whether it is legal is `apply`'s question.

    Spaces around the signs are allowed, since decoding token ids may put them there.
    """
    found = _STEP.fullmatch(line)
    if found is None:
        return None
    op = next(op for op in OPERATORS if op == found[2])
    return Step(int(found[1]), op, int(found[3]), int(found[4]), tuple(map(int, found[5].split())))


def result_of(a: int, op: Operator, b: int) -> int:
    """The integer that ``a op b`` makes.

    Raises:
        IllegalStep: below zero, not exact, above `LARGEST`, or a division by zero.
    """
    if op == "+":
        result = a + b
    elif op == "*":
        result = a * b
    elif op == "-":
        if b > a:
            raise IllegalStep(f"{a}-{b} is below zero")
        result = a - b
    else:
        if b == 0:
            raise IllegalStep(f"{a}/{b} divides by zero")
        if a % b:
            raise IllegalStep(f"{a}/{b} is not exact")
        result = a // b
    if result > LARGEST:
        raise IllegalStep(f"{a}{op}{b} is {result}, above {LARGEST}")
    return result


def apply(numbers: tuple[int, ...], step: Step) -> tuple[int, ...]:
    """The numbers on the table after `step`, in the order the step wrote them.

    ``left`` is compared as a multiset, so its order is free.

    Raises:
        IllegalStep: a number is not on the table, the arithmetic is wrong or out of range, or ``left`` is wrong.
    """
    table = Counter(numbers)
    table.subtract((step.a, step.b))
    for number in (step.a, step.b):
        if table[number] < 0:
            raise IllegalStep(f"{number} is not available in {_joined(numbers)}")
    result = result_of(step.a, step.op, step.b)
    if step.result != result:
        raise IllegalStep(f"{step.a}{step.op}{step.b} is {result}, not {step.result}")
    table[result] += 1
    if +table != Counter(step.left):
        raise IllegalStep(f"left should be {_joined(table.elements())}, not {_joined(step.left)}")
    return step.left


def legal_steps(numbers: tuple[int, ...]) -> list[Step]:
    """Every different legal step, the larger operand first, in a fixed order.

    ``3+5`` and ``5+3`` are one step here (written ``5+3``); `apply` accepts both.
    """
    found: dict[tuple[int, Operator, int], Step] = {}
    for i, first in enumerate(numbers):
        for j in range(i + 1, len(numbers)):
            a, b = max(first, numbers[j]), min(first, numbers[j])
            untouched = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for op in OPERATORS:
                if (a, op, b) in found:
                    continue
                try:
                    result = result_of(a, op, b)
                except IllegalStep:
                    continue
                found[a, op, b] = Step(a, op, b, result, (result, *untouched))
    return list(found.values())


def _joined(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))
