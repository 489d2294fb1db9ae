"""Training traces: puzzles, the steps taken, the verdict at every line end, and lines beside the path.

A trace walks from a puzzle to one number left. At each state the exact solver says how to go on (a distribution over
winning steps, each weighted by how many solutions it keeps) and whether the state can still be solved. Beside the
path stand *side lines*: other legal steps, and illegal ones, each asked for a verdict only.
"""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from training.corruption import corrupted
from training.solver import Solver, moves
from training.split import HIGHEST, LOWEST, forbidden, part_of
from tts_agent.pocket.countdown import IllegalStep, Operator, Puzzle, Step, apply

Choice = tuple[int, Operator, int]

SIZES = (2, 3, 4, 5)
SIZE_WEIGHTS = (0.02, 0.08, 0.40, 0.50)
LARGEST_SIZE = max(SIZES)
TARGETS = range(10, 101)
RESTATED_SHARE = 0.12
"""Share of prompts, below the largest size, that state what is left of a larger puzzle: numbers up to 200."""
GAME24_SHARE = {2: 0.2, 3: 0.2, 4: 0.4, 5: 0.1}
"""Share of puzzles of each size whose target is 24."""
UNSOLVABLE_SHARE = 0.08
WANDER_SHARE, WANDER_RATE = 0.3, 0.4
"""Share of traces that leave the winning path, and how often they do at each step."""
BROKEN_SHARE = 0.08
"""Share of traces with an illegal line in mid-path: everything after it is impossible."""


class Side(NamedTuple):
    """One line tried at state `state` of the path, and whether the puzzle can be solved after it."""

    state: int
    step: Step
    legal: bool
    winnable: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """A path through one puzzle with everything that the losses need."""

    puzzle: Puzzle
    steps: tuple[Step, ...]
    legal: tuple[bool, ...]
    """For each step, whether it and all before it are legal."""
    winnable: tuple[bool, ...]
    """For each of the ``len(numbers)`` states, whether the target can still be reached."""
    advice: tuple[dict[Choice, float], ...]
    """For each state but the last, the distribution over next steps to learn; empty where there is none."""
    sides: tuple[Side, ...]

    def states(self) -> list[tuple[int, ...]]:
        """Every set of numbers that the text of this trace shows, side lines included."""
        return [self.puzzle.numbers, *(step.left for step in self.steps), *(side.step.left for side in self.sides)]


@dataclass(slots=True)
class _Path:
    """A trace in the making."""

    puzzle: Puzzle
    steps: list[Step] = field(default_factory=list)
    legal: list[bool] = field(default_factory=list)
    winnable: list[bool] = field(default_factory=list)
    advice: list[dict[Choice, float]] = field(default_factory=list)
    sides: list[Side] = field(default_factory=list)


def written(numbers: tuple[int, ...], a: int, op: Operator, b: int, result: int) -> Step:
    """The step with its ``left``: the result first, the untouched numbers as they stood."""
    kept = list(numbers)
    kept.remove(a)
    kept.remove(b)
    return Step(a, op, b, result, (result, *kept))


class TraceMaker:
    """Draws traces. The same seed gives the same traces."""

    def __init__(self, rng: random.Random, solver: Solver) -> None:
        self._rng = rng
        self._solver = solver

    def puzzle(self, size: int) -> Puzzle:
        """A training puzzle with `size` numbers in random order."""
        rng = self._rng
        while True:
            numbers = self._numbers(size)
            counts = self._solver.counts(tuple(sorted(numbers)))
            wanted = rng.random() >= UNSOLVABLE_SHARE
            targets = [24] if rng.random() < GAME24_SHARE[size] else TARGETS
            targets = [target for target in targets if (counts[target] > 0) == wanted]
            if targets:
                return Puzzle(numbers, rng.choice(targets))

    def _numbers(self, size: int) -> tuple[int, ...]:
        rng = self._rng
        restated = size == 2 or (size < LARGEST_SIZE and rng.random() < RESTATED_SHARE)
        while True:
            numbers = tuple(rng.randint(LOWEST, HIGHEST) for _ in range(size + restated))
            if part_of(tuple(sorted(numbers))) != "train":
                continue
            if not restated:
                return numbers
            left = list(rng.choice(self._options(numbers)).left)
            rng.shuffle(left)
            if size == 2 or min(left) < LOWEST or max(left) > HIGHEST or part_of(tuple(sorted(left))) == "train":
                return tuple(left)

    def trace(self, puzzle: Puzzle, asked: tuple[int, ...], tried: dict[int, Step] | None = None) -> Trace:
        """One trace with a side line at each state of `asked`.

        `tried` are lines that a model wrote at some states. A legal one is walked; an illegal one becomes the side
        line of its state, and the walk goes on without it.
        """
        rng = self._rng
        wander = WANDER_RATE if rng.random() < WANDER_SHARE else 0.0
        size = len(puzzle.numbers)
        broken_at = rng.randrange(size - 1) if tried is None and rng.random() < BROKEN_SHARE else size
        path = _Path(puzzle)
        numbers = puzzle.numbers
        for state in range(size - 1):
            self._judge(path, numbers)
            options = self._options(numbers)
            sound = all(path.legal)
            winning = self._advise(path, numbers, options, sound)
            proposal = None if tried is None else tried.get(state)
            step = self._walk(numbers, options, winning, wander, proposal)
            if state == broken_at:
                step = self._corrupt(numbers, step, keep_length=True)
            if state in asked:
                path.sides.append(self._side(state, numbers, options, puzzle.target, sound, proposal))
            path.legal.append(sound and _is_legal(numbers, step))
            path.steps.append(step)
            numbers = step.left
        self._judge(path, numbers)
        return Trace(
            puzzle, tuple(path.steps), tuple(path.legal), tuple(path.winnable), tuple(path.advice), tuple(path.sides)
        )

    def _judge(self, path: _Path, numbers: tuple[int, ...]) -> None:
        sound = all(path.legal)
        path.winnable.append(sound and self._solver.solutions(numbers, path.puzzle.target) > 0)

    def _options(self, numbers: tuple[int, ...]) -> list[Step]:
        """Legal steps that do not show a forbidden state."""
        return [
            written(numbers, move.a, move.op, move.b, move.result)
            for move in moves(tuple(sorted(numbers)))
            if not forbidden(move.rest)
        ]

    def _advise(self, path: _Path, numbers: tuple[int, ...], options: list[Step], sound: bool) -> dict[Choice, float]:
        """Record what to learn at this state, and give back the winning part of it."""
        weights = [self._solver.solutions(step.left, path.puzzle.target) for step in options]
        total = sum(weights)
        winning = {
            (step.a, step.op, step.b): weight / total for step, weight in zip(options, weights, strict=True) if weight
        }
        if not sound:
            path.advice.append({})
        elif winning:
            path.advice.append(winning)
        else:
            path.advice.append({(step.a, step.op, step.b): 1 / len(options) for step in options})
        return winning

    def _walk(
        self,
        numbers: tuple[int, ...],
        options: list[Step],
        winning: dict[Choice, float],
        wander: float,
        proposal: Step | None,
    ) -> Step:
        rng = self._rng
        if proposal is not None and _is_legal(numbers, proposal) and not forbidden(proposal.left):
            return proposal
        if winning and rng.random() >= wander:
            choice = rng.choices(list(winning), list(winning.values()))[0]
            return next(step for step in options if (step.a, step.op, step.b) == choice)
        return rng.choice(options)

    def _side(
        self,
        state: int,
        numbers: tuple[int, ...],
        options: list[Step],
        target: int,
        sound: bool,
        proposal: Step | None,
    ) -> Side:
        """A line to judge: the model's own illegal one if there is one, else a legal or a corrupted one."""
        rng = self._rng
        step = rng.choice(options)
        if proposal is not None and not _is_legal(numbers, proposal) and not forbidden(proposal.left):
            step = proposal
        elif rng.random() < 0.4:
            step = self._corrupt(numbers, step, keep_length=False)
        legal = sound and _is_legal(numbers, step)
        return Side(state, step, legal, legal and self._solver.solutions(step.left, target) > 0)

    def _corrupt(self, numbers: tuple[int, ...], step: Step, *, keep_length: bool) -> Step:
        while True:
            wrong = corrupted(self._rng, numbers, step, keep_length=keep_length)
            if not forbidden(wrong.left):
                return wrong


def _is_legal(numbers: tuple[int, ...], step: Step) -> bool:
    try:
        apply(numbers, step)
    except IllegalStep:
        return False
    return True
