"""Accuracy against computed tokens, with bands."""

from pathlib import Path

import numpy as np

from benchmarks.quality.arms import ArmName
from benchmarks.quality.summary import Table
from tts_agent.errors import ConfigError

# Blue leads, warm colours are baselines, greys are controls; lines differ as well, for those who see no colours.
STYLES: dict[ArmName, tuple[str, str, str]] = {
    "best-first": ("#0b5fa5", "-", "o"),
    "beam": ("#3fa34d", "-", "s"),
    "steps": ("#d1495b", "--", "^"),
    "answers": ("#ed8b00", "--", "v"),
    "vote": ("#8d6a9f", ":", "D"),
    "best-first-oracle": ("#7fb2e5", "-.", ""),
    "beam-oracle": ("#a9d8b0", "-.", ""),
    "best-first-random": ("#7a7a7a", ":", ""),
    "beam-random": ("#b5b5b5", ":", ""),
}


def plot(table: Table, path: Path) -> None:
    """Write one PNG: an arm's accuracy by budget with its 95 % band. Raises `ConfigError` without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ModuleNotFoundError as missing:
        raise ConfigError("plots need matplotlib; pip install 'tts-agent[bench]'") from missing
    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), dpi=130)
    for arm, curve in table.curves.items():
        if arm == "greedy":
            share = 100 * float(np.mean(curve.solved(table.quest.budgets[-1])))
            axes.axhline(share, color="#444444", linewidth=1, linestyle=(0, (1, 3)), label="greedy")
            continue
        colour, line, marker = STYLES[arm]
        budgets = list(curve.readings)
        found = [table.accuracy(arm, budget) for budget in budgets]
        axes.plot(
            budgets,
            [100 * one.value for one in found],
            color=colour,
            linestyle=line,
            marker=marker,
            markersize=4.5,
            linewidth=1.8,
            label=arm,
        )
        if table.bootstrap.enough:
            lows, highs = [100 * (one.low or 0.0) for one in found], [100 * (one.high or 0.0) for one in found]
            axes.fill_between(budgets, lows, highs, color=colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(table.quest.budgets)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 101)
    axes.set_xlabel("tokens computed a puzzle, verdicts included")
    axes.set_ylabel("solved, %")
    axes.set_title(f"{table.quest.title} ({len(table.puzzles)} {table.split} puzzles)", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
