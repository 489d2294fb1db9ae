"""Intervals, ratios, pass@k and fits against what they are defined as."""

from itertools import combinations
from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.statistics import FEWEST, Bootstrap, Estimate, fits, pass_at_k, saturation, tokens_to

COSTS = st.lists(st.none() | st.integers(1, 50), min_size=1, max_size=12)


def test_an_interval_needs_thirty_multisets() -> None:
    values = [float(n % 2) for n in range(4 * (FEWEST - 1))]
    few = Bootstrap([n % (FEWEST - 1) for n in range(len(values))])
    assert few.mean(values) == Estimate(0.5, None, None)
    enough = Bootstrap(range(FEWEST)).mean(values[:FEWEST])
    assert enough.low is not None and enough.high is not None and enough.low < 0.5 < enough.high


def test_puzzles_of_one_multiset_are_resampled_together() -> None:
    # 40 multisets of 10 equal results each say no more than 40 results: the interval is as wide.
    together = Bootstrap([n // 10 for n in range(400)]).mean([float(n // 10 % 2) for n in range(400)])
    alone = Bootstrap(range(40)).mean([float(n % 2) for n in range(40)])
    assert together.low == alone.low and together.high == alone.high


def test_differences_are_paired_and_the_best_of_others_is_found_anew() -> None:
    bootstrap = Bootstrap(range(60))
    ours = [float(n % 3 == 0) for n in range(60)]
    assert bootstrap.difference(ours, ours) == Estimate(0.0, 0.0, 0.0)
    halves = [[float(n < 30) for n in range(60)], [float(n >= 30) for n in range(60)]]
    against_both = bootstrap.difference([0.5] * 60, *halves)
    assert against_both.value == 0.0 and against_both.high == 0.0  # one of two halves is never below 0.5


@given(COSTS, st.floats(1e-6, 1))
def test_tokens_to_a_share_is_the_least_budget_that_reaches_it(costs: list[int | None], target: float) -> None:
    found = tokens_to(costs, target)

    def share(budget: float) -> float:
        return sum(cost is not None and cost <= budget for cost in costs) / len(costs)

    budgets = [0, *sorted(cost for cost in costs if cost is not None)]
    assert found == next((budget for budget in budgets if share(budget) >= target - 1e-9), inf)


def test_resampled_tokens_to_equal_accuracy_surround_the_ratio() -> None:
    costs = [10 * (n + 1) for n in range(60)]
    bootstrap = Bootstrap(range(60))
    solved = [float(cost <= 300) for cost in costs]
    resampled = bootstrap.tokens_to(costs, bootstrap.means(solved))
    assert set(resampled) <= {float(cost) for cost in costs if cost <= 300}
    nothing = bootstrap.tokens_to([None] * 60, bootstrap.means([1.0] * 60))
    assert bootstrap.estimate(inf, nothing) == Estimate(inf, inf, inf)
    assert bootstrap.estimate(inf, nothing).to_json() == {"value": None, "low": None, "high": None}


@given(st.lists(st.booleans(), min_size=3, max_size=7), st.integers(1, 3))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: list[bool], k: int) -> None:
    subsets = list(combinations(samples, k))
    assert pass_at_k([samples], k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_needs_k_samples() -> None:
    with pytest.raises(ValueError, match="pass@4"):
        pass_at_k([[True] * 5, [False] * 3], 4)


def test_the_curve_that_made_the_points_is_named_and_found() -> None:
    budgets = [100, 200, 400, 800, 1600]
    (line, other) = fits([(budget, 0.1 * log(budget) - 0.2) for budget in budgets])
    assert (line.kind, other.kind) == ("log", "power") and line.error < 1e-9
    assert line.a == pytest.approx(0.1) and line.b == pytest.approx(-0.2)
    power = fits([(budget, 1 - 5 * budget**-0.5) for budget in budgets])[0]
    assert power.kind == "power" and power.a == pytest.approx(5, rel=0.03) and power.b == pytest.approx(0.5, abs=0.01)
    assert power.at(400) == pytest.approx(0.75, abs=0.01)
    assert fits([(100, 0.1), (200, 0.2), (400, 0.3)]) == []


@pytest.mark.parametrize(
    ("accuracies", "point"),
    [
        ([0.1, 0.5, 0.8, 0.805], 400),
        ([0.8, 0.8, 0.8, 0.8], 100),
        ([0.1, 0.5, 0.8, 0.9], None),
        ([0.5, 0.5, 0.6, 0.6], 400),
    ],
)
def test_saturation_is_where_no_later_step_adds_a_point(accuracies: list[float], point: int | None) -> None:
    assert saturation(list(zip([100, 200, 400, 800], accuracies, strict=True))) == point
