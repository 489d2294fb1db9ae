"""The tables of a run, as Markdown: readable in a terminal, ready for a page."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.quality.bars import Bar
from benchmarks.quality.summary import PAIRS, Table


def markdown(table: Table, told: dict[str, Any]) -> str:
    """Accuracy by budget, tokens, differences, and what the curves say. `told` is the task's summary."""
    quest = table.quest
    heads = [f"{budget:,}" for budget in quest.budgets]
    parts = [
        f"### {quest.title}",
        f"{told['puzzles']} {table.split} puzzles, {told['multisets']} multisets; solved, in %, within so many "
        "computed tokens a puzzle. "
        + (f"No intervals: {told['warning']}." if "warning" in told else "95 % intervals by multiset."),
        rows_of(["arm", *heads], _accuracies(table, told)),
        rows_of(["difference, points", *heads], _differences(table, told)),
        rows_of(["arm", *_USE], _use(table, told)),
        rows_of(["one greedy answer, then tree search", *heads], _routing(told)),
    ]
    if "token_ratio_at_equal_accuracy" in told:
        ratio = told["token_ratio_at_equal_accuracy"]
        parts.append(
            f"Tokens to equal accuracy: what the stronger best-of-N solves with {ratio['budget']:,} tokens "
            f"({ratio['accuracy']:.1%}), tree search solves with {_share(ratio)} of them."
        )
    if told.get("pass_at_k"):
        shares = ", ".join(f"pass@{k} {share:.1%}" for k, share in told["pass_at_k"].items())
        parts.append(f"Whole samples, nothing checked: {shares}.")
    return "\n\n".join(part for part in parts if part) + "\n"


_USE = (
    "computed",
    "generated",
    "verifier's share",
    "duplicates",
    "illegal",
    "dead ends",
    "saturates at",
    "better fit",
)


def _accuracies(table: Table, told: dict[str, Any]) -> Iterator[list[str]]:
    for arm in table.curves:
        rows = told[arm]["budgets"]
        yield [arm, *(_cell(rows.get(str(budget)), "accuracy", 100) for budget in table.quest.budgets)]


def _differences(table: Table, told: dict[str, Any]) -> Iterator[list[str]]:
    for arm, other in PAIRS:
        name = f"{arm} - {other or 'best-of-N'}"
        if name in told["differences"]:
            rows = told["differences"][name]
            yield [name, *(_cell(rows.get(str(budget)), "value", 100, "+") for budget in table.quest.budgets)]


def _use(table: Table, told: dict[str, Any]) -> Iterator[list[str]]:
    for arm in table.curves:
        row = told[arm]
        fit = next(iter(row["fits"]), None)
        yield [
            f"{arm} at {row['budget']:,}",
            f"{row['computed_tokens']:,.0f}",
            f"{row['generated_tokens']:,.0f}",
            *(f"{row[name]:.0%}" for name in ("verifier_share", "duplicate_thoughts", "illegal_thoughts", "dead_ends")),
            f"{row['saturation']:,}" if row["saturation"] else "-",
            "-" if fit is None else f"{_FORMS[fit['kind']].format(**fit)} (± {100 * fit['error']:.1f})",
        ]


def _routing(told: dict[str, Any]) -> Iterator[list[str]]:
    rows = told.get("routing", {}).values()
    if rows:
        yield ["solved, %", *(_cell(row["accuracy"], "value", 100) for row in rows)]
        yield ["- search alone, points", *(_cell(row["accuracy_difference"], "value", 100, "+") for row in rows)]
        yield ["- search alone, tokens", *(_cell(row["computed_difference"], "value", 1, "+") for row in rows)]


_FORMS = {"log": "{a:.3f} log C {b:+.3f}", "power": "1 - {c:.2f} C^-{p:.2f}"}


def _cell(row: dict[str, Any] | None, name: str, scale: float, sign: str = "") -> str:
    if row is None or row[name] is None:
        return ""
    said = f"{scale * row[name]:{sign}.1f}"
    if row["low"] is None or row["high"] is None:
        return said
    return f"{said} ({scale * row['low']:{sign}.1f} to {scale * row['high']:{sign}.1f})"


def _share(ratio: dict[str, Any]) -> str:
    """A ratio that may not have been reached."""
    value = "more than any" if ratio["value"] is None else f"{ratio['value']:.2f}"
    if ratio["low"] is None:
        return value
    return f"{value} ({ratio['low']:.2f} to {'not reached' if ratio['high'] is None else format(ratio['high'], '.2f')})"


def rows_of(heads: Sequence[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; empty without rows."""
    found = [f"| {' | '.join(row)} |" for row in rows]
    if not found:
        return ""
    return "\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *found])


def bar_table(found: Sequence[Bar]) -> str:
    """The claims as a table."""
    return rows_of(["claim", "asked", "found", "met"], ([*bar[:3], "yes" if bar.met else "no"] for bar in found))
