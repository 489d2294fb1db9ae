"""Bootstrap intervals of shares, by multiset: puzzles with the same numbers are not independent."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tts_agent.pocket.countdown import Puzzle

RESAMPLES = 2000


class Interval(NamedTuple):
    """A share with its 95 % interval, from 0 to 1."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}% ({100 * self.low:.1f} to {100 * self.high:.1f})"


def interval(puzzles: Sequence[Puzzle], values: Sequence[float]) -> Interval:
    """The mean of `values`, one for each puzzle, and its percentile interval over resampled multisets.

    Raises:
        ValueError: no puzzles, or not one value for each.
    """
    if not puzzles or len(puzzles) != len(values):
        raise ValueError(f"{len(values)} values for {len(puzzles)} puzzles; give one for each of at least one")
    groups: dict[tuple[int, ...], list[float]] = {}
    for puzzle, value in zip(puzzles, values, strict=True):
        groups.setdefault(tuple(sorted(puzzle.numbers)), []).append(float(value))
    sums = np.array([sum(group) for group in groups.values()])
    sizes = np.array([len(group) for group in groups.values()])
    drawn = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))
