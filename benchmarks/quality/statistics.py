"""Intervals by multiset, fits, pass@k and tokens to equal accuracy."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb, inf, isfinite
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
FEWEST = 30
"""Fewer multisets than this give no interval."""
EDGE = 0.025


class Estimate(NamedTuple):
    """A mean, or a ratio, with its 95 % interval; None where there are too few multisets for one."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        return {name: _plain(number) for name, number in zip(self._fields, self, strict=True)}


def _plain(number: float | None) -> float | None:
    """JSON has no infinity: None there, too."""
    return None if number is None or not isfinite(number) else round(number, 4)


class Bootstrap:
    """Resamples of whole clusters, the same for everything that is computed from them, so that all are paired.

    Puzzles of one cluster (the same numbers with other targets) are not independent (Efron and Tibshirani 1993).
    """

    def __init__(self, clusters: Sequence[Hashable], *, seed: int = 0, resamples: int = RESAMPLES) -> None:
        if not clusters:
            raise ValueError("a bootstrap needs at least one puzzle, got none")
        places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
        self.clusters = len(places)
        self._of = np.array([places[cluster] for cluster in clusters])
        rng = np.random.default_rng(seed)
        even = np.full(self.clusters, 1 / self.clusters)
        self._counts: Floats = rng.multinomial(self.clusters, even, size=resamples).astype(np.float64)
        self._sizes = self._counts @ np.bincount(self._of, minlength=self.clusters)

    @property
    def enough(self) -> bool:
        """Whether there are enough clusters for an interval."""
        return self.clusters >= FEWEST

    def means(self, values: Sequence[float] | Floats) -> Floats:
        """The mean in every resample."""
        sums = np.bincount(self._of, weights=np.asarray(values, dtype=np.float64), minlength=self.clusters)
        return np.asarray(self._counts @ sums / self._sizes)

    def estimate(self, value: float, resampled: Floats) -> Estimate:
        """`value` with the percentile interval of its resamples, which may be infinite."""
        if not self.enough:
            return Estimate(value, None, None)
        ranked = np.sort(resampled)
        edge = round(EDGE * len(ranked))
        return Estimate(value, float(ranked[edge]), float(ranked[-edge - 1]))

    def mean(self, values: Sequence[float]) -> Estimate:
        return self.estimate(float(np.mean(values)), self.means(values))

    def difference(self, ours: Sequence[float], *others: Sequence[float]) -> Estimate:
        """How far the mean of `ours` is above the best mean of `others`, which is found anew in each resample."""
        best = max(float(np.mean(other)) for other in others)
        resampled = self.means(ours) - np.max([self.means(other) for other in others], axis=0)
        return self.estimate(float(np.mean(ours)) - best, resampled)

    def tokens_to(self, costs: Sequence[float | None], targets: Floats) -> Floats:
        """For each resample, the least budget within which a share `targets` of the puzzles is solved.

        `costs` are the tokens at which a puzzle was solved, None if it was not. Infinite where it is not reached.
        """
        spent = np.array([inf if cost is None else cost for cost in costs])
        order = np.argsort(spent, kind="stable")
        order = order[np.isfinite(spent[order])]
        shares = np.cumsum(self._counts[:, self._of[order]], axis=1) / self._sizes[:, None]
        return _first(shares, targets, spent[order])


def tokens_to(costs: Sequence[float | None], target: float) -> float:
    """The least budget within which a share `target` of the puzzles is solved; infinite if none is."""
    spent = np.sort(np.array([cost for cost in costs if cost is not None], dtype=np.float64))
    shares = np.arange(1, len(spent) + 1)[None, :] / len(costs)
    return float(_first(shares, np.array([target]), spent)[0])


def _first(shares: Floats, targets: Floats, costs: Floats) -> Floats:
    """The cost at the first place of each row where the share reaches the row's target."""
    reached = shares >= targets[:, None] - 1e-9
    found = np.full(len(targets), inf)
    some = reached.any(axis=1)
    if some.any():
        found[some] = costs[reached[some].argmax(axis=1)]
    found[targets <= 1e-9] = 0.0
    return found


def pass_at_k(samples: Sequence[Sequence[bool]], k: int) -> float:
    """Mean chance that one of `k` samples of a puzzle is right, without bias (Chen et al. 2021).

    Raises `ValueError` if a puzzle has fewer than `k` samples.
    """
    if k < 1 or min(map(len, samples)) < k:
        raise ValueError(f"pass@{k} needs at least {k} samples a puzzle, got {min(map(len, samples))}")
    return float(np.mean([1 - comb(len(one) - sum(one), k) / comb(len(one), k) for one in samples]))


@dataclass(frozen=True, slots=True)
class Fit:
    """A curve through accuracies: `accuracy = a log C + b`, or `accuracy = 1 - c C^-p`.

    `error` is the root mean square of what each point is missed by when the curve is fitted to the others.
    """

    kind: str
    a: float
    b: float
    error: float

    def at(self, budget: float) -> float:
        if self.kind == "log":
            return float(self.a * np.log(budget) + self.b)
        return float(1 - self.a * budget**-self.b)

    def to_json(self) -> dict[str, float | str]:
        names = ("a", "b") if self.kind == "log" else ("c", "p")
        return {
            "kind": self.kind,
            names[0]: round(self.a, 5),
            names[1]: round(self.b, 5),
            "error": round(self.error, 5),
        }


def fits(points: Sequence[tuple[float, float]]) -> list[Fit]:
    """Both curves through (budget, accuracy), the better first; none with fewer than four points."""
    if len(points) < 4:
        return []
    budgets, values = np.array(points, dtype=np.float64).T
    found = []
    for kind in ("log", "power"):
        missed = [
            _fit(kind, np.delete(budgets, i), np.delete(values, i), 0.0).at(budgets[i]) - values[i]
            for i in range(len(points))
        ]
        found.append(_fit(kind, budgets, values, float(np.sqrt(np.mean(np.square(missed))))))
    return sorted(found, key=lambda fit: fit.error)


def _fit(kind: str, budgets: Floats, values: Floats, error: float) -> Fit:
    if kind == "log":
        a, b = np.polyfit(np.log(budgets), values, 1)
        return Fit(kind, float(a), float(b), error)
    # For a given power the best factor is linear least squares; the power is found on a grid.
    powers = np.linspace(0.01, 3.0, 600)
    shapes = (budgets[None, :] / budgets[0]) ** -powers[:, None]
    factors = (shapes @ (1 - values)) / np.square(shapes).sum(axis=1)
    best = int(np.square(1 - values - factors[:, None] * shapes).sum(axis=1).argmin())
    return Fit(kind, float(factors[best] * budgets[0] ** powers[best]), float(powers[best]), error)


def saturation(points: Sequence[tuple[int, float]], gain: float = 0.01) -> int | None:
    """The smallest budget from which on no step of the sweep adds as much as `gain`; None if the last one does."""
    last = None
    for (budget, value), (_, following) in zip(points[-2::-1], points[:0:-1], strict=True):
        if following - value >= gain:
            break
        last = budget
    return last
