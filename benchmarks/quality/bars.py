"""The claims of the protocol, each with its test."""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.quality.arms import SEARCH
from benchmarks.quality.statistics import Estimate
from benchmarks.quality.summary import Table
from benchmarks.quality.tasks import QUESTS


class Bar(NamedTuple):
    """One claim: what was asked, what was found, whether it holds."""

    name: str
    asked: str
    found: str
    met: bool

    def to_json(self) -> dict[str, str | bool]:
        return self._asdict()


def bars(tables: Mapping[str, Table]) -> list[Bar]:
    """Every claim that the tables can answer: those of the protocol's tasks with the arms it needs,
    and enough puzzles for an interval."""
    tests = {
        "countdown6": _equal_accuracy,
        "countdown5": _above,
        "game24": _game24,
        "game24-verdict": _verdict,
    }
    ready = {
        name: table
        for name, table in tables.items()
        if table.quest is QUESTS.get(name) and table.bootstrap.enough and SEARCH in table.curves
    }
    found = [bar for name, test in tests.items() if name in ready and (bar := test(ready[name])) is not None]
    learned = (_learned(table) for table in ready.values() if table.quest.name not in ("countdown3", "game24-verdict"))
    return [*found, *(bar for bar in learned if bar is not None)]


def _equal_accuracy(table: Table) -> Bar | None:
    budget = table.quest.budgets[-1]
    ratio = table.token_ratio(budget)
    if ratio is None:
        return None
    estimate, accuracy = ratio
    assert estimate.high is not None
    return Bar(
        "countdown6: tokens to equal accuracy",
        f"what best-of-N solves with {budget:,} tokens, with at most half (aim: a quarter)",
        f"{accuracy:.1%} with {spread(estimate, '.2f')} of the tokens",
        estimate.high <= 0.5,
    )


def _above(table: Table) -> Bar | None:
    said, met = [], True
    for budget in (b for b in table.quest.budgets if 1000 <= b <= 8000):
        difference = table.difference(SEARCH, None, budget)
        if difference is None:
            return None
        assert difference.low is not None
        theirs = max(sum(one) / len(one) for one in table.baselines(budget))
        met &= difference.low > 0 if theirs < 0.9 else difference.value >= -0.02
        said.append(f"{budget:,}: {spread(difference, '+.1%')} against {theirs:.1%}")
    return Bar(
        "countdown5: above best-of-N",
        "above where best-of-N is below 90%, else its mean at most 2 points below, at 1,000 to 8,000",
        "; ".join(said),
        met,
    )


def _game24(table: Table) -> Bar:
    budget = table.quest.budgets[-1]
    accuracy = table.accuracy(SEARCH, budget)
    readings = table.curves[SEARCH].readings[budget]
    computed = sum(reading.computed for reading in readings) / len(readings)
    return Bar(
        "game24: accuracy",
        ">= 95% within 600 mean computed tokens",
        f"{spread(accuracy, '.1%')} with {computed:.0f}",
        accuracy.value >= 0.95 and computed <= 600,
    )


def _verdict(table: Table) -> Bar | None:
    budget = 200
    accuracy, difference = table.accuracy(SEARCH, budget), table.difference(SEARCH, "answers", budget)
    if difference is None:
        return None
    assert difference.low is not None
    return Bar(
        "game24-verdict: nothing checked",
        ">= 65% at <= 800 computed tokens, and not below best-of-N chosen by the same verdict",
        f"at {budget}: {spread(accuracy, '.1%')}; {spread(difference, '+.1%')} beside best-of-N",
        accuracy.value >= 0.65 and difference.low >= 0,
    )


def _learned(table: Table) -> Bar | None:
    control = table.curves.get("best-first-random")
    if control is None:
        return None
    shared = [budget for budget in control.readings if budget in table.curves[SEARCH].readings]
    budget = min(shared, key=lambda b: abs(table.accuracy(SEARCH, b).value - 0.5))
    ours, theirs = table.accuracy(SEARCH, budget), table.accuracy("best-first-random", budget)
    assert ours.low is not None and theirs.high is not None
    return Bar(
        f"{table.quest.name}: learned above random value",
        "intervals apart at the budget where the learned one is nearest 50%",
        f"{budget:,}: {spread(ours, '.1%')} against {spread(theirs, '.1%')}",
        ours.low > theirs.high,
    )


def spread(estimate: Estimate, form: str) -> str:
    """An estimate with its interval, if it has one."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"
