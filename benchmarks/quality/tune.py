"""Trials of settings on dev puzzles, as the protocol says: what is chosen goes into `benchmarks/quality/arms.py`.

    python -m benchmarks.quality.tune [--families long,short,verdict] [--arms steps,best-first] [--out build/tune]
    python -m benchmarks.quality.tune --changes [--puzzles 400]

Each trial is a row: what it solves within smaller budgets, mean tokens with unsolved puzzles counted at the limit, and
how that differs from the first trial of the arm, puzzle by puzzle. Tries are kept in OUT/rows.jsonl: an interrupted run
goes on where it was. With `--changes` the trials are what best-first search became, one change after the other, on the
long tasks' dev puzzles with twice their limit.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.quality.__main__ import play
from benchmarks.quality.arms import IN_VERDICT, SEARCH, ArmName, Judge, Setting, beam_width, setting
from benchmarks.quality.bars import spread
from benchmarks.quality.run import Model, Plan, model
from benchmarks.quality.show import rows_of
from benchmarks.quality.statistics import Bootstrap
from benchmarks.quality.store import Store
from benchmarks.quality.tasks import QUESTS, Family, Quest
from training.solver import Solver
from tts_agent import Beam, BestFirst, BestOfN
from tts_agent.errors import ConfigError, TTSError
from tts_agent.search import Strategy

TEMPERATURES = (0.5, 0.7, 0.85, 1.0)
TUNED: tuple[ArmName, ...] = ("answers", "steps", "vote", "beam", "best-first")


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a family of tasks is tuned: so many dev puzzles of these tasks, under this limit."""

    tasks: tuple[str, ...]
    puzzles: int
    limit: int


GROUNDS: dict[Family, Ground] = {
    "long": Ground(("countdown5",), 100, 2000),
    "short": Ground(("game24", "countdown4"), 100, 800),
    "verdict": Ground(("game24-verdict",), 100, 800),
}


def trials(quest: Quest, arm: ArmName, limit: int) -> list[Setting]:
    """The settings of `arm` that are tried: every temperature, and the strategy's own settings beside it."""
    known = setting(quest, arm, limit)
    strategies: list[Strategy[Any]] = [known.strategy]
    if isinstance(known.strategy, Beam):
        # A beam is judged at half the limit, which its width is made for.
        strategies = [Beam(k=k, keep=beam_width(quest, limit // 2, k)) for k in (4, 8)]
    elif isinstance(known.strategy, BestFirst) and quest.checked:
        strategies = [replace(known.strategy, k=k, greedy_first=first) for k in (1, 2) for first in (True, False)]
        strategies.append(replace(known.strategy, reheat=0.0))
    elif isinstance(known.strategy, BestFirst | BestOfN) and not quest.checked and not known.votes:
        strategies = [replace(known.strategy, enough=enough) for enough in (0.9, 0.98, None)]
    return [replace(known, strategy=one, temperature=heat) for one in strategies for heat in TEMPERATURES]


def changes() -> list[Setting]:
    """Best-first search as it was at first, then one change after the other; in the end the solver's verdicts."""
    first = BestFirst(k=2, discount=0.8, unseen=False)
    unseen = replace(first, unseen=True)
    single = replace(unseen, k=1, discount=0.9)
    greedy = replace(single, greedy_first=True)
    reheated = replace(greedy, reheat=1.0)
    steps: list[tuple[BestFirst, Judge]] = [
        *((strategy, "planner") for strategy in (first, unseen, single, greedy, reheated)),
        (reheated, "oracle"),
    ]
    return [Setting(strategy, 0.7, judge) for strategy, judge in steps]


def planned(quest: Quest, arm: ArmName, ground: Ground, planner: Model, tried: Sequence[Setting]) -> list[Plan]:
    """A plan for every trial of one arm on one task."""
    cut = replace(quest, budgets=tuple(b for b in quest.budgets if b <= ground.limit), caps={})
    puzzles = quest.draw("dev", ground.puzzles)
    return [Plan.of(cut, arm, "dev", ground.limit, puzzles, 0, planner, chosen) for chosen in tried]


def rows(todo: Sequence[Plan], store: Store) -> Iterator[list[str]]:
    """A row for each trial; the difference in tokens is to the first."""
    bootstrap = Bootstrap([tuple(sorted(puzzle.numbers)) for puzzle in todo[0].puzzles])
    first: list[float] = []
    for plan in todo:
        tried = plan.attempts(store)
        costs = [float(one.found_at if one.found_at is not None else plan.limit) for one in tried]
        if not plan.quest.checked or plan.chosen.votes:  # nothing says that an answer is right: all that was computed
            costs = [float(one.readings[plan.limit].computed) for one in tried]
        first = first or costs
        solved = [
            f"{100 * np.mean([one.readings[budget].solved for one in tried]):.1f}"
            if budget in tried[0].readings
            else ""
            for budget in plan.quest.budgets
        ]
        beside = "" if plan is todo[0] else spread(bootstrap.difference(costs, first), "+.0f")
        yield [_named(plan.chosen), *solved, f"{np.mean(costs):.0f}", beside]


def _named(chosen: Setting) -> str:
    """The strategy's settings that are not the default ones, the temperature, and who judged if not the planner."""
    strategy = chosen.strategy
    changed = [
        f"{field.name}={value!r}"
        for field in fields(strategy)  # type: ignore[arg-type]
        if (value := getattr(strategy, field.name)) != field.default
    ]
    judge = [] if chosen.judge in (None, "planner") else [f"verdicts: {chosen.judge}"]
    return ", ".join([*changed, f"temperature {chosen.temperature}", *judge])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.tune", description=__doc__.partition("\n")[0])
    parser.add_argument("--families", default=",".join(GROUNDS), help=f"comma-separated ({','.join(GROUNDS)})")
    parser.add_argument("--arms", default=",".join(TUNED), help=f"comma-separated ({','.join(TUNED)})")
    parser.add_argument("--changes", action="store_true", help="what best-first search became, on the long tasks")
    parser.add_argument("--puzzles", type=int, help="the first so many of each set; by default as the protocol says")
    parser.add_argument("--model", default="large", help="large, small or a planner's folder (large)")
    parser.add_argument("--out", type=Path, default=Path("build/tune"), help="folder of the results (build/tune)")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 240)
    families, arms = options.families.split(","), options.arms.split(",")
    try:
        if unknown := [name for name in families if name not in GROUNDS]:
            raise ConfigError(f"unknown families {unknown!r}; known: {', '.join(GROUNDS)}")
        if unknown := [name for name in arms if name not in TUNED]:
            raise ConfigError(f"unknown arms {unknown!r}; known: {', '.join(TUNED)}")
        store, planner, text = Store.open(options.out / "rows.jsonl"), model(options.model), []
        if options.changes:
            families, arms = ["long"], [SEARCH]
        for family in families:
            ground = GROUNDS[family]
            if options.changes:
                ground = replace(ground, tasks=("countdown5", "countdown6"), limit=2 * ground.limit)
            if options.puzzles is not None:
                ground = replace(ground, puzzles=options.puzzles)
            for quest in (QUESTS[name] for name in ground.tasks):
                for arm in (a for a in arms if quest.checked or (a in IN_VERDICT)):
                    tried = changes() if options.changes else trials(quest, arm, ground.limit)
                    todo = planned(quest, arm, ground, planner, tried)
                    asyncio.run(play(todo, store, Solver(), console))
                    heads = [f"{quest.name}, {arm}", *map(str, todo[0].quest.budgets), "tokens", "beside the first"]
                    text.append(rows_of(heads, rows(todo, store)))
                    console.print(text[-1], markup=False, highlight=False, soft_wrap=True)
    except TTSError as error:
        print(f"python -m benchmarks.quality.tune: {error}", file=sys.stderr)
        return 2
    (options.out / "trials.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
