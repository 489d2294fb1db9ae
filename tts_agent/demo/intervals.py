"""Paired differences with bootstrap intervals."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def ahead(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    @property
    def behind(self) -> bool:
        return self.high < 0


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0
) -> Difference:
    """The mean of `ours - theirs`, puzzle by puzzle, with its percentile bootstrap interval.

    Puzzles of one cluster (the same numbers with other targets) are not independent, so whole clusters are resampled
    (Efron and Tibshirani 1993). Raises `ValueError` for sequences of different lengths, or empty ones.
    """
    sums: dict[Hashable, tuple[float, int]] = {}
    for mine, other, cluster in zip(ours, theirs, clusters, strict=True):
        total, count = sums.get(cluster, (0.0, 0))
        sums[cluster] = (total + mine - other, count + 1)
    if not sums:
        raise ValueError("a difference needs at least one pair, got none")
    rng, groups = Random(seed), list(sums.values())
    means = sorted(_mean(rng.choices(groups, k=len(groups))) for _ in range(RESAMPLES))
    edge = round(0.025 * RESAMPLES)
    return Difference(_mean(groups), means[edge], means[-edge - 1])


def _mean(groups: Sequence[tuple[float, int]]) -> float:
    return sum(total for total, _ in groups) / sum(count for _, count in groups)
