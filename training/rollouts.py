"""Monte-Carlo labels: how often the planner itself, let go on from a state, solves the puzzle.

An alternative to the solver's labels for problems without a solver; the card compares them. A state is continued by
stating it as a puzzle of its own, which the planner knows from training. After an illegal line the value is 0.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from training.measure import Walk
from training.network import Planner
from training.sampling import sample
from training.traces import Trace
from tts_agent.pocket.countdown import Puzzle


def estimated(
    planner: Planner, traces: Sequence[Trace], *, rollouts: int, generator: torch.Generator
) -> list[list[float]]:
    """For each trace the value of every state of its path, then of every side line, from 0 to 1."""
    asked = [list(_states(trace)) for trace in traces]
    groups: dict[int, list[Puzzle]] = defaultdict(list)
    for trace, states in zip(traces, asked, strict=True):
        for numbers in states:
            if numbers is not None and len(numbers) > 1:
                groups[len(numbers)].append(Puzzle(numbers, trace.puzzle.target))
    solved: dict[Puzzle, float] = {}
    for puzzles in groups.values():
        different = list(dict.fromkeys(puzzles))
        many = [puzzle for puzzle in different for _ in range(rollouts)]
        won = [
            Walk(puzzle, ids).solved
            for puzzle, ids in zip(many, sample(planner, many, temperature=1, generator=generator), strict=True)
        ]
        solved |= {puzzle: sum(won[i * rollouts : (i + 1) * rollouts]) / rollouts for i, puzzle in enumerate(different)}
    return [
        [_value(numbers, trace.puzzle.target, solved) for numbers in states]
        for trace, states in zip(traces, asked, strict=True)
    ]


def _states(trace: Trace) -> Iterator[tuple[int, ...] | None]:
    """The numbers left wherever a verdict is asked; None after an illegal line."""
    yield trace.puzzle.numbers
    for step, legal in zip(trace.steps, trace.legal, strict=True):
        yield step.left if legal else None
    for side in trace.sides:
        yield side.step.left if side.legal else None


def _value(numbers: tuple[int, ...] | None, target: int, solved: dict[Puzzle, float]) -> float:
    if numbers is None:
        return 0.0
    return float(numbers == (target,)) if len(numbers) == 1 else solved[Puzzle(numbers, target)]
