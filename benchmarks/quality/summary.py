"""What the tries of a task come to: curves, differences, ratios, as plain JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.quality.arms import ARMS, BASELINES, SEARCH, ArmName
from benchmarks.quality.attempt import Attempt, Reading
from benchmarks.quality.run import Plan
from benchmarks.quality.statistics import Bootstrap, Estimate, fits, pass_at_k, saturation, tokens_to
from benchmarks.quality.store import Store
from benchmarks.quality.tasks import Quest
from tts_agent.pocket import Puzzle

PASS_AT = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Curve:
    """One arm over all puzzles of a task: by budget, where each try stood."""

    arm: ArmName
    readings: dict[int, list[Reading]]
    attempts: dict[int, list[Attempt]]  # by the limit they were run with

    def solved(self, budget: int) -> list[float]:
        return [float(reading.solved) for reading in self.readings[budget]]

    @property
    def costs(self) -> list[int | None]:
        """Tokens at which each puzzle was solved, in the run with the largest limit."""
        return [one.found_at for one in self.attempts[max(self.attempts)]]


@dataclass(frozen=True, slots=True)
class Table:
    """All arms of a task that were run to the end, on the same puzzles."""

    quest: Quest
    split: str
    puzzles: Sequence[Puzzle]
    curves: dict[ArmName, Curve]
    bootstrap: Bootstrap

    @classmethod
    def of(cls, plans: Sequence[Plan], store: Store) -> "Table":
        """Read the plans of one task from the store."""
        first = plans[0]
        curves = {}
        for arm in ARMS:
            mine = {plan.limit: plan.attempts(store) for plan in plans if plan.arm == arm}
            readings: dict[int, list[Reading]] = {}
            for limit in sorted(mine, reverse=True):  # what a run of its own says of a budget counts first
                for budget in mine[limit][0].readings:
                    readings.setdefault(budget, [one.readings[budget] for one in mine[limit]])
            if mine:
                curves[arm] = Curve(arm, dict(sorted(readings.items())), mine)
        clusters = [tuple(sorted(puzzle.numbers)) for puzzle in first.puzzles]
        return cls(first.quest, first.split, first.puzzles, curves, Bootstrap(clusters))

    def accuracy(self, arm: ArmName, budget: int) -> Estimate:
        return self.bootstrap.mean(self.curves[arm].solved(budget))

    def baselines(self, budget: int) -> list[list[float]]:
        """What each form of best-of-N that was run to `budget` solved."""
        known = (self.curves[arm] for arm in BASELINES if arm in self.curves)
        return [curve.solved(budget) for curve in known if budget in curve.readings]

    def difference(self, arm: ArmName, other: ArmName | None, budget: int) -> Estimate | None:
        """`arm` minus `other` (None: the stronger best-of-N) at one budget; None where one of them was not run."""
        theirs = (
            self.baselines(budget)
            if other is None
            else [self.curves[other].solved(budget)]
            if other in self.curves and budget in self.curves[other].readings
            else []
        )
        if arm not in self.curves or budget not in self.curves[arm].readings or not theirs:
            return None
        return self.bootstrap.difference(self.curves[arm].solved(budget), *theirs)

    def token_ratio(self, budget: int) -> tuple[Estimate, float] | None:
        """Tokens at which tree search solves what the stronger best-of-N solves at `budget`, over `budget`.

        With it, that accuracy. None if one of them was not run, or nothing is checked.
        """
        theirs = self.baselines(budget)
        if not self.quest.checked or SEARCH not in self.curves or not theirs:
            return None
        costs = self.curves[SEARCH].costs
        target = max(float(np.mean(one)) for one in theirs)
        targets = np.max([self.bootstrap.means(one) for one in theirs], axis=0)
        resampled = self.bootstrap.tokens_to(costs, targets) / budget
        return self.bootstrap.estimate(tokens_to(costs, target) / budget, resampled), target


PAIRS: tuple[tuple[ArmName, ArmName | None], ...] = (
    ("best-first", None),
    ("best-first", "answers"),
    ("best-first", "steps"),
    ("best-first", "vote"),
    ("best-first", "beam"),
    ("best-first", "best-first-random"),
    ("best-first-oracle", "best-first"),
    ("beam", None),
    ("beam", "beam-random"),
    ("beam-oracle", "beam"),
)
"""Differences that are told; None is the stronger best-of-N. Oracle minus learned is what the verdict loses."""


def summary(table: Table) -> dict[str, Any]:
    """The task's part of the JSON."""
    told: dict[str, Any] = {
        "puzzles": len(table.puzzles),
        "multisets": table.bootstrap.clusters,
        "split": table.split,
    }
    if not table.bootstrap.enough:
        told["warning"] = f"{table.bootstrap.clusters} multisets are too few for an interval"
    for arm, curve in table.curves.items():
        told[arm] = _arm(table, curve)
    differences: dict[str, Any] = {}
    for arm, other in PAIRS:
        found = {
            str(budget): estimate.to_json()
            for budget in table.quest.budgets
            if (estimate := table.difference(arm, other, budget)) is not None
        }
        if found:
            differences[f"{arm} - {other or 'best-of-N'}"] = found
    told["differences"] = differences
    ratio = table.token_ratio(table.quest.budgets[-1])
    if ratio is not None:
        told["token_ratio_at_equal_accuracy"] = {
            **ratio[0].to_json(),
            "accuracy": round(ratio[1], 4),
            "budget": table.quest.budgets[-1],
        }
    if "vote" in table.curves:
        samples = [one.samples for one in table.curves["vote"].attempts[max(table.curves["vote"].attempts)]]
        most = min(map(len, samples))
        told["pass_at_k"] = {str(k): round(pass_at_k(samples, k), 4) for k in PASS_AT if k <= most}
    return told


def _arm(table: Table, curve: Curve) -> dict[str, Any]:
    rows = {}
    points: list[tuple[int, float]] = []
    for budget, readings in curve.readings.items():
        computed = float(np.mean([reading.computed for reading in readings]))
        accuracy = table.accuracy(curve.arm, budget)
        points.append((budget, accuracy.value))
        told = accuracy.to_json()
        rows[budget] = {
            "accuracy": told["value"],
            "low": told["low"],
            "high": told["high"],
            "computed_tokens": round(computed, 1),
            "generated_tokens": round(float(np.mean([reading.generated for reading in readings])), 1),
            "verifier_share": round(float(np.mean([r.verifier for r in readings])) / computed, 4) if computed else 0.0,
        }
    attempts = curve.attempts[max(curve.attempts)]
    thoughts = max(1, sum(one.thoughts for one in attempts))
    return {
        "budget": max(rows),
        **rows[max(rows)],
        "budgets": {str(budget): row for budget, row in rows.items()},
        "fits": [fit.to_json() for fit in fits(points)],
        "saturation": saturation(points),
        "duplicate_thoughts": round(sum(one.merged for one in attempts) / thoughts, 4),
        "illegal_thoughts": round(sum(one.invalid for one in attempts) / thoughts, 4),
        "dead_ends": round(sum(one.dead for one in attempts) / thoughts, 4),
    }
