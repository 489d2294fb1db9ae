"""What a budget costs as a search's own limit, beside what is read off a longer run."""

from collections.abc import Sequence

from benchmarks.quality.arms import setting
from benchmarks.quality.run import Plan
from benchmarks.quality.show import rows_of
from benchmarks.quality.statistics import Bootstrap
from benchmarks.quality.store import Store


def limited(todo: Sequence[Plan], limits: Sequence[int]) -> list[Plan]:
    """The plans that give the anytime arms of `todo` their smaller budgets, of those in `limits`, in earnest."""
    return [
        Plan.of(plan.quest, plan.arm, plan.split, limit, plan.puzzles, plan.seed, plan.model)
        for plan in todo
        for limit in limits
        if limit in plan.quest.budgets_of(plan.arm)[:-1] and not setting(plan.quest, plan.arm, plan.limit).sized
    ]


def limit_table(todo: Sequence[Plan], limits: Sequence[int], store: Store) -> str:
    """Both, with the paired difference; empty without limits."""
    rows = []
    for plan in limited(todo, limits):
        whole = next(one for one in todo if (one.quest, one.arm) == (plan.quest, plan.arm))
        under = [float(one.readings[plan.limit].solved) for one in plan.attempts(store)]
        read = [float(one.readings[plan.limit].solved) for one in whole.attempts(store)]
        cost = Bootstrap([tuple(sorted(puzzle.numbers)) for puzzle in plan.puzzles]).difference(under, read)
        interval = (
            "" if cost.low is None or cost.high is None else f" ({100 * cost.low:+.1f} to {100 * cost.high:+.1f})"
        )
        shares = [f"{100 * sum(one) / len(one):.1f}" for one in (read, under)]
        rows.append([plan.quest.name, plan.arm, f"{plan.limit:,}", *shares, f"{100 * cost.value:+.1f}{interval}"])
    if not rows:
        return ""
    heads = ["task", "arm", "budget", "read off, %", "as the limit, %", "difference, points"]
    return f"\n### A budget as the limit\n\n{rows_of(heads, rows)}\n"
