"""Easy puzzles past the search: one greedy answer first, and the search only if the rules refuse it."""

from typing import Any

import numpy as np

from benchmarks.quality.arms import SEARCH
from benchmarks.quality.summary import Table


def routing(table: Table) -> dict[str, Any] | None:
    """What the route solves and computes, beside the search alone, read off the runs of both; None without them.

    The greedy answer's tokens are paid whether it helps or not. With checks in a task it is known whether it is right.
    """
    greedy, searched = table.curves.get("greedy"), table.curves.get(SEARCH)
    if greedy is None or searched is None or not table.quest.checked:
        return None
    rows = {}
    for budget in table.quest.budgets:
        easy = greedy.readings[budget]
        # The greedy try ends by itself: what it computes is the same under every budget that it fits into.
        first = [one.readings[max(one.readings)].computed for one in greedy.attempts[max(greedy.attempts)]]
        routed, computed = [], []
        for cheap, spent, cost, alone in zip(easy, first, searched.costs, searched.readings[budget], strict=True):
            routed.append(float(cheap.solved or (cost is not None and spent + cost <= budget)))
            computed.append(float(spent if cheap.solved else min(spent + alone.computed, budget)))
        before = [float(reading.computed) for reading in searched.readings[budget]]
        rows[str(budget)] = {
            "accuracy": table.bootstrap.mean(routed).to_json(),
            "computed_tokens": round(float(np.mean(computed)), 1),
            "accuracy_difference": table.bootstrap.difference(routed, searched.solved(budget)).to_json(),
            "computed_difference": table.bootstrap.difference(computed, before).to_json(),
        }
    return rows
