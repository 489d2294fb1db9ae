"""Wrong lines made from right ones, in the ways a small model goes wrong."""

import random
from collections.abc import Callable

from training.solver import Solver
from tts_agent.pocket.countdown import LARGEST, OPERATORS, IllegalStep, Operator, Step, result_of

UNSAFE: tuple[Operator, ...] = ("-", "/")
"""Operators that do not allow their operands turned around."""


def _near(rng: random.Random, number: int) -> int:
    """A different number, mostly close by."""
    while True:
        other = number + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10)) if rng.random() < 0.8 else rng.randint(0, LARGEST)
        if other != number and 0 <= other <= LARGEST:
            return other


def _outcome(a: int, op: Operator, b: int) -> int:
    """What a careless writer might put: the result where there is one, else something like it."""
    try:
        return result_of(a, op, b)
    except IllegalStep:
        return min({"+": a + b, "*": a * b, "-": abs(a - b), "/": a // max(b, 1)}[op], LARGEST)


def _wrong_result(rng: random.Random, numbers: tuple[int, ...], step: Step) -> Step:
    """Wrong arithmetic, carried into ``left`` or not."""
    slip = rng.random() < 0.3
    result = _outcome(step.a, rng.choice(OPERATORS), step.b) if slip else _near(rng, step.result)
    first = result if rng.random() < 0.8 else step.left[0]
    return Step(step.a, step.op, step.b, result, (first, *step.left[1:]))


def _wrong_operand(rng: random.Random, numbers: tuple[int, ...], step: Step) -> Step:
    """A number that is not on the table, or one used twice."""
    b = step.a if rng.random() < 0.3 else _near(rng, step.b)
    a = step.a if rng.random() < 0.6 else _near(rng, step.a)
    result = _outcome(a, step.op, b)
    return Step(a, step.op, b, result, (result, *step.left[1:]))


def _wrong_operation(rng: random.Random, numbers: tuple[int, ...], step: Step) -> Step:
    """Numbers from the table, but an operation they do not allow, or the operands turned around."""
    turned = rng.random() < 0.5
    a, b = (step.b, step.a) if turned else (step.a, step.b)
    op = rng.choice(UNSAFE if turned else OPERATORS)
    result = _outcome(a, op, b)
    return Step(a, op, b, result, (result, *step.left[1:]))


def _wrong_left(rng: random.Random, numbers: tuple[int, ...], step: Step) -> Step:
    """A right sum, but one number left over is changed, or a used one is still there."""
    left = list(step.left)
    spot = rng.randrange(len(left))
    left[spot] = rng.choice(numbers) if rng.random() < 0.6 else _near(rng, left[spot])
    return Step(step.a, step.op, step.b, step.result, tuple(left))


def _wrong_length(rng: random.Random, numbers: tuple[int, ...], step: Step) -> Step:
    """One number lost, or one of the used ones kept as well."""
    left = list(step.left)
    if len(left) > 1 and rng.random() < 0.5:
        left.pop(rng.randrange(1, len(left)))
    else:
        left.insert(rng.randrange(1, len(left) + 1), rng.choice((step.a, step.b)))
    return Step(step.a, step.op, step.b, step.result, tuple(left))


_KINDS: tuple[Callable[[random.Random, tuple[int, ...], Step], Step], ...] = (
    _wrong_result,
    _wrong_operand,
    _wrong_operation,
    _wrong_left,
)


def corrupted(rng: random.Random, numbers: tuple[int, ...], step: Step, *, keep_length: bool) -> Step:
    """A line like the legal `step` on `numbers` that is probably illegal; the caller checks.

    With `keep_length` it has as many numbers left as a legal line.
    """
    kinds = _KINDS if keep_length else (*_KINDS, _wrong_length)
    return rng.choice(kinds)(rng, numbers, step)


def tempting(rng: random.Random, solver: Solver, numbers: tuple[int, ...], step: Step, target: int) -> Step:
    """A line that is probably illegal and leaves what is wished for; the caller checks.

    On the last line it leaves the target, before it numbers that can reach the target. The result is false, or it is
    right for an operand that is not on the table, or that is used twice. Only lines that leave up to three numbers are
    made tempting; most remainders of more numbers can be won anyway. Where none of 48 results tried would do, the line
    is merely wrong.
    """
    kept = step.left[1:]
    if len(kept) > 2:
        return _wrong_operand(rng, numbers, step)
    tried = rng.sample(range(LARGEST + 1), 48) if kept else [target]
    counts = solver.tally([tuple(sorted((number, *kept))) for number in tried], target)
    wished = [number for number, count in zip(tried, counts, strict=True) if count]
    if not wished:
        return _wrong_result(rng, numbers, step)
    result = rng.choice(wished)
    if rng.random() < 0.4:
        return Step(step.a, step.op, step.b, result, (result, *kept))
    a, op, b = operation_making(rng, result, rng.choice((step.a, step.b, rng.choice(numbers))))
    return Step(a, op, b, result, (result, *kept))


def operation_making(rng: random.Random, result: int, known: int) -> tuple[int, Operator, int]:
    """A right operation with that result in which `known` takes part, whatever the other number is."""
    ways: list[tuple[int, Operator, int]] = [(known, "-", known - result), (known, "+", result - known)]
    ways += [(result + known, "-", known), (result - known, "+", known), (result * known, "/", known)]
    if known and result % known == 0:
        ways += [(known, "*", result // known), (result // known, "*", known)]
    if result and known % result == 0:
        ways.append((known, "/", known // result))
    inside = [way for way in ways if 0 <= way[0] <= LARGEST and 0 <= way[2] <= LARGEST]
    return rng.choice(inside)
