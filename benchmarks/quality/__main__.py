"""How much each search solves for its tokens, beside the baselines, by `benchmarks/protocol.md`.

    python -m benchmarks.quality [--json] [--quick] [--split heldout] [--tasks countdown6,game24] [--arms best-first]

Every try is appended to OUT/rows.jsonl when it ends: interrupted and started again, the benchmark goes on where it
was, and tries with other settings or another model are made anew. What was found is written to OUT/tables.md and
OUT/quality.json, with `--plots FOLDER` also as pictures; with `--json` the last line is the JSON.

`--split dev` is for choosing settings. `--quick` is a smoke test of a few dev puzzles with small budgets in under three
minutes. `--hard BUDGET,...` gives arms that are read off one long run these limits in earnest, and prints both.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.quality.arms import arms
from benchmarks.quality.bars import bars
from benchmarks.quality.limits import limit_table, limited
from benchmarks.quality.plots import plot
from benchmarks.quality.routing import routing
from benchmarks.quality.run import Model, Plan, model, plans, run
from benchmarks.quality.show import bar_table, markdown
from benchmarks.quality.store import Store
from benchmarks.quality.summary import Table, summary
from benchmarks.quality.tasks import QUESTS, Quest, quests
from training.solver import Solver
from tts_agent.errors import TTSError

QUICK_PUZZLES = 32
QUICK_ARMS = "greedy,answers,steps,vote,beam,best-first,best-first-random,best-first-oracle"


def quick_quests() -> list[Quest]:
    """Two short tasks and the one that verdicts judge, at small budgets."""
    return [replace(QUESTS[name], budgets=(50, 100, 200, 400), caps={}) for name in ("countdown4", "game24-verdict")]


async def play(todo: Sequence[Plan], store: Store, solver: Solver, console: Console) -> None:
    """Run all plans, one after the other, with a bar for the puzzles."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for plan in todo:
            title = f"{plan.quest.name} {plan.arm} {plan.limit:,}"
            missing = sum(key not in store.rows for key in plan.keys.values())
            line = progress.add_task(title, total=missing)
            begun, cpu = time.monotonic(), time.process_time()
            await run(plan, store, solver, on_attempt=lambda line=line: progress.advance(line))  # type: ignore[misc]
            if missing and not console.is_terminal:
                seconds, spent = time.monotonic() - begun, time.process_time() - cpu
                console.print(f"{title}: {missing} puzzles, {spent:.0f} s of CPU in {seconds:.0f} s", highlight=False)


def report(todo: Sequence[Plan], store: Store, folder: Path | None) -> tuple[dict[str, Any], str]:
    """The JSON and the Markdown of everything that was run; pictures into `folder`."""
    tables = {
        name: Table.of([plan for plan in todo if plan.quest.name == name], store)
        for name in dict.fromkeys(plan.quest.name for plan in todo)
    }
    told: dict[str, Any] = {name: summary(table) for name, table in tables.items()}
    parts = []
    for name, table in tables.items():
        routed = routing(table)
        if routed is not None:
            told[name]["routing"] = routed
        parts.append(markdown(table, told[name]))
    found = bars(tables)
    if found:
        parts.append("### Claims\n\n" + bar_table(found) + "\n")
    told["bars"] = [bar.to_json() for bar in found]
    if folder is not None:
        for name, table in tables.items():
            plot(table, folder / f"{name}-{table.split}.png")
    return told, "\n".join(parts)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="a few dev puzzles and small budgets, under 3 minutes")
    parser.add_argument("--tasks", help="comma-separated; all by default")
    parser.add_argument("--arms", help="comma-separated; all by default")
    parser.add_argument("--split", choices=("heldout", "dev"), default="heldout")
    parser.add_argument("--puzzles", type=int, help="the first so many of each set; by default as the protocol says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="large", help="large, small or a planner's folder (large)")
    parser.add_argument("--out", type=Path, default=Path("build/quality"), help="folder of the results (build/quality)")
    parser.add_argument("--plots", type=Path, help="folder for pictures")
    parser.add_argument("--hard", default="", help="budgets that are also run as limits, comma-separated")
    return parser.parse_args(argv)


def prepare(options: argparse.Namespace) -> tuple[list[Plan], Model]:
    """What the options ask for. `ConfigError` for unknown tasks and arms, `ModelError` for a bad model."""
    chosen = model(options.model)
    split, count, names = options.split, options.puzzles, options.arms
    todo = quick_quests() if options.quick else quests(options.tasks)
    if options.quick:
        split, count, names = "dev", count or QUICK_PUZZLES, names or QUICK_ARMS
    planned = [
        plan
        for quest in todo
        for plan in plans(quest, arms(quest, names), split, quest.draw(split, count), options.seed, chosen)
    ]
    return planned, chosen


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else 200)
    try:
        todo, chosen = prepare(options)
        store = Store.open(options.out / "rows.jsonl")
        limits = [int(limit) for limit in options.hard.split(",") if limit]
        begun = time.process_time()
        asyncio.run(play([*todo, *limited(todo, limits)], store, Solver(), console))
        told, text = report(todo, store, options.plots)
        text += limit_table(todo, limits, store)
    except TTSError as error:
        print(f"python -m benchmarks.quality: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with what {options.out} has", file=sys.stderr)
        return 130
    told |= {"model": {"name": chosen.name, "hash": chosen.digest()}, "cpu_seconds": round(time.process_time() - begun)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tables.md").write_text(text, encoding="utf-8")
    (options.out / "quality.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        print(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
