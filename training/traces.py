"""Training traces: puzzles, the steps taken, the verdict at every line end, and lines beside the path.

A trace walks from a puzzle to one number left. At each state the exact solver says how to go on (a distribution over
winning steps, each weighted by how many solutions it keeps) and whether the state can still be solved. Beside the
path stand *side lines*: other legal steps, and illegal ones, each asked for a verdict only.
"""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from training.corruption import corrupted, tempting
from training.solver import Move, Solver, moves
from training.split import HIGHEST, LOWEST, forbidden, part_of
from tts_agent.pocket.countdown import IllegalStep, Operator, Puzzle, Step, apply

Choice = tuple[int, Operator, int]

SIZES = (2, 3, 4, 5, 6)
SIZE_WEIGHTS = (0.02, 0.06, 0.30, 0.34, 0.28)
LARGEST_SIZE = max(SIZES)
TARGETS = range(10, 101)
RESTATED_SHARE = 0.12
"""Share of prompts, below the largest size, that state what is left of a larger puzzle: numbers up to 200."""
GAME24_SHARE = {2: 0.2, 3: 0.2, 4: 0.4, 5: 0.1, 6: 0.05}
"""Share of puzzles of each size whose target is 24."""
UNSOLVABLE_SHARE = 0.08
WANDER_RATE = 0.4
"""How often a wandering trace leaves the winning path, at each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How much of the traces is not a winning path. Shares from 0 to 1."""

    wander: float = 0.3
    """Share of traces that leave the winning path."""
    broken: float = 0.1
    """Share of traces with an illegal line in mid-path: everything after it is impossible."""
    wrong: float = 0.45
    """Share of side lines that are made illegal; with 0 the planner's own illegal lines are left out too."""
    tempting: float = 0.5
    """Share of the illegal lines near the end that leave exactly what is wished for."""

    def __post_init__(self) -> None:
        for name in ("wander", "broken", "wrong", "tempting"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {value!r}; give a share from 0 to 1")


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

    def __init__(self, rng: random.Random, solver: Solver, mixture: Mixture) -> None:
        self._rng = rng
        self._solver = solver
        self._mixture = mixture

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
            left = list(rng.choice(self._options(numbers)).rest)
            rng.shuffle(left)
            if size == 2 or min(left) < LOWEST or max(left) > HIGHEST or part_of(tuple(sorted(left))) == "train":
                return tuple(left)

    def trace(self, puzzle: Puzzle, asked: tuple[int, ...], tried: dict[int, Step] | None = None) -> Trace:
        """One trace with a side line at each state of `asked`.

        `tried` are lines that a model wrote at some states. A legal one is walked; an illegal one becomes the side
        line of its state, or, as often as other traces are broken, the path goes on after it.
        """
        rng = self._rng
        wander = WANDER_RATE if rng.random() < self._mixture.wander else 0.0
        size = len(puzzle.numbers)
        broken = rng.random() < self._mixture.broken
        broken_at = rng.randrange(size - 1) if broken and tried is None else size
        path = _Path(puzzle)
        numbers = puzzle.numbers
        for state in range(size - 1):
            self._judge(path, numbers)
            options = self._options(numbers)
            sound = all(path.legal)
            winning = self._advise(path, options, sound)
            proposal = None if tried is None else tried.get(state)
            if proposal is not None and forbidden(proposal.left):
                proposal = None
            fault = None if proposal is None or _is_legal(numbers, proposal) else proposal
            step = proposal if fault is None else None
            if step is None:
                step = self._walk(numbers, options, winning, wander)
            if state == broken_at:
                step = self._corrupt(numbers, step, puzzle.target, keep_length=True)
            if state in asked:
                path.sides.append(self._side(state, numbers, options, puzzle.target, sound, fault))
            if fault is not None and broken and len(fault.left) == size - state - 1:
                step = fault
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

    def _options(self, numbers: tuple[int, ...]) -> list[Move]:
        """Legal moves that do not show a forbidden state."""
        found = moves(tuple(sorted(numbers)))
        return found if len(numbers) <= 4 else [move for move in found if not forbidden(move.rest)]

    def _advise(self, path: _Path, options: list[Move], sound: bool) -> dict[Choice, float]:
        """Record what to learn at this state, and give back the winning part of it."""
        weights = self._solver.tally([move.rest for move in options], path.puzzle.target)
        total = sum(weights)
        winning = {
            (move.a, move.op, move.b): weight / total for move, weight in zip(options, weights, strict=True) if weight
        }
        if not sound:
            path.advice.append({})
        elif winning:
            path.advice.append(winning)
        else:
            path.advice.append({(move.a, move.op, move.b): 1 / len(options) for move in options})
        return winning

    def _walk(self, numbers: tuple[int, ...], options: list[Move], winning: dict[Choice, float], wander: float) -> Step:
        rng = self._rng
        if winning and rng.random() >= wander:
            choice = rng.choices(list(winning), list(winning.values()))[0]
            return _carried_out(numbers, next(move for move in options if (move.a, move.op, move.b) == choice))
        return _carried_out(numbers, rng.choice(options))

    def _side(
        self,
        state: int,
        numbers: tuple[int, ...],
        options: list[Move],
        target: int,
        sound: bool,
        fault: Step | None,
    ) -> Side:
        """A line to judge: the model's own illegal one if there is one, else a legal or a corrupted one."""
        rng = self._rng
        step = _carried_out(numbers, rng.choice(options))
        if fault is not None and self._mixture.wrong:
            step = fault
        elif rng.random() < self._mixture.wrong:
            step = self._corrupt(numbers, step, target, keep_length=False)
        legal = sound and _is_legal(numbers, step)
        return Side(state, step, legal, legal and self._solver.solutions(step.left, target) > 0)

    def _corrupt(self, numbers: tuple[int, ...], step: Step, target: int, *, keep_length: bool) -> Step:
        rng = self._rng
        tempt = len(numbers) <= 4 and rng.random() < self._mixture.tempting
        while True:
            if tempt:
                wrong = tempting(rng, self._solver, numbers, step, target)
            else:
                wrong = corrupted(rng, numbers, step, keep_length=keep_length)
            if not forbidden(wrong.left):
                return wrong


def _carried_out(numbers: tuple[int, ...], move: Move) -> Step:
    return written(numbers, move.a, move.op, move.b, move.result)


def _is_legal(numbers: tuple[int, ...], step: Step) -> bool:
    try:
        apply(numbers, step)
    except IllegalStep:
        return False
    return True
