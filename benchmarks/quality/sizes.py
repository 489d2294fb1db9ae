"""The small planner with search beside the large one without, at equal FLOPs.

    python -m benchmarks.quality.sizes [--json] [--split heldout] [--tasks countdown5] [--out build/quality]

FLOPs of C computed tokens = C (2 P + 4 l d t): P weights of matrix products, the output matrix once and the input
embedding not, l layers of width d, and t tokens attended to on average, half of the task's longest branch. Tries are
kept in OUT/rows.jsonl beside those of `python -m benchmarks.quality` and shared with it.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.quality.__main__ import play
from benchmarks.quality.arms import ArmName
from benchmarks.quality.bars import spread
from benchmarks.quality.run import Model, Plan, model, plans
from benchmarks.quality.show import rows_of
from benchmarks.quality.statistics import Bootstrap, Estimate
from benchmarks.quality.store import Store
from benchmarks.quality.tasks import Quest, quests
from training.solver import Solver
from tts_agent.errors import TTSError
from tts_agent.pocket.puzzles import Split

TASKS = "countdown5,countdown6,game24"
SMALL: tuple[ArmName, ...] = ("steps", "best-first", "vote")
LARGE: tuple[ArmName, ...] = ("greedy", "answers", "steps", "vote")
"""The arms of each planner; `vote` samples whole answers that nothing checks, for pass@1."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a computed token costs a planner."""

    weights: int  # of matrix products, a token
    layers: int
    width: int

    @classmethod
    def of(cls, planner: Model) -> "Cost":
        config = json.loads((planner.folder / "config.json").read_text(encoding="utf-8"))
        width, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        head = config.get("head_dim") or width // heads
        attention = 2 * width * head * (heads + config["num_key_value_heads"])
        inner = 3 * width * config["intermediate_size"]
        return cls(layers * (attention + inner) + width * config["vocab_size"], layers, heads * head)

    def flops(self, tokens: float, quest: Quest) -> float:
        """FLOPs of `tokens` computed on the task."""
        return tokens * (2 * self.weights + 4 * self.layers * self.width * attended(quest))


def attended(quest: Quest) -> float:
    """Tokens attended to on average: half of a prompt and of the lines that solve it."""
    size = len(quest.draw("dev", 1)[0].numbers)
    return (size + 4 + sum(left + 7 for left in range(1, size))) / 2


def solved_within(plan: Plan, store: Store, tokens: float) -> list[float]:
    """Which puzzles the plan's run has solved by then; it must have been run so far."""
    costs = (one.found_at for one in plan.attempts(store))
    return [float(cost is not None and cost <= tokens) for cost in costs]


def compare(quest: Quest, small: Sequence[Plan], large: Sequence[Plan], store: Store) -> dict[str, Any]:
    """Accuracies at equal FLOPs for each budget of the large planner that the small one was run to as well."""
    first, costs = small[0], (Cost.of(small[0].model), Cost.of(large[0].model))
    bootstrap = Bootstrap([tuple(sorted(puzzle.numbers)) for puzzle in first.puzzles])
    by_arm = [{plan.arm: plan for plan in plans} for plans in (small, large)]
    ratio = costs[1].flops(1, quest) / costs[0].flops(1, quest)
    rows: dict[str, Any] = {}
    for budget in quest.budgets:
        if budget * ratio > quest.budgets[-1]:
            break
        mine = {arm: solved_within(by_arm[0][arm], store, budget * ratio) for arm in SMALL if arm != "vote"}
        theirs = {arm: solved_within(by_arm[1][arm], store, budget) for arm in LARGE if arm != "vote"}
        rows[str(budget)] = {
            "gigaflops": round(costs[1].flops(budget, quest) / 1e9, 4),
            "small": {arm: bootstrap.mean(solved).to_json() for arm, solved in mine.items()},
            "large": {arm: bootstrap.mean(solved).to_json() for arm, solved in theirs.items()},
            "small best-first - large greedy": bootstrap.difference(mine["best-first"], theirs["greedy"]).to_json(),
            "small best-first - large best-of-N": bootstrap.difference(
                mine["best-first"], theirs["answers"], theirs["steps"]
            ).to_json(),
        }
    pass_at_1 = [
        bootstrap.mean([float(np.mean(one.samples)) for one in plans["vote"].attempts(store)]) for plans in by_arm
    ]
    return {
        "weights": [cost.weights for cost in costs],
        "token_cost_ratio": round(ratio, 3),
        "pass@1": {"small": pass_at_1[0].to_json(), "large": pass_at_1[1].to_json()},
        "larger_is_better": _apart(*pass_at_1),
        "budgets": rows,
    }


def _apart(small: Estimate, large: Estimate) -> bool:
    return small.high is not None and large.low is not None and small.high < large.low


def markdown(quest: Quest, told: dict[str, Any]) -> str:
    """The comparison as a table: a column for each of the large planner's budgets."""

    def cell(found: dict[str, Any], sign: str = "") -> str:
        return spread(Estimate(*(None if n is None else 100 * n for n in found.values())), f"{sign}.1f")  # type: ignore[arg-type]

    rows = told["budgets"].values()
    table = [[f"small, {arm}", *(cell(row["small"][arm]) for row in rows)] for arm in SMALL if arm != "vote"]
    table += [[f"large, {arm}", *(cell(row["large"][arm]) for row in rows)] for arm in LARGE if arm != "vote"]
    names = ("small best-first - large greedy", "small best-first - large best-of-N")
    table += [[name, *(cell(row[name], "+") for row in rows)] for name in names]
    heads = [f"{int(budget):,} ({row['gigaflops']:.2f})" for budget, row in told["budgets"].items()]
    pass_at_1 = ", ".join(f"{size} {cell(found)} %" for size, found in told["pass@1"].items())
    return (
        f"### {quest.title}: small with search, large without\n\n"
        "Columns are computed tokens of the large planner (GFLOPs); for the same FLOPs the small one computes "
        f"{told['token_cost_ratio']:.2f} times as many. pass@1, nothing checked: {pass_at_1}.\n\n"
        f"{rows_of(['solved, %', *heads], table)}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.sizes", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tasks", default=TASKS, help=f"comma-separated ({TASKS})")
    parser.add_argument("--split", choices=("heldout", "dev"), default="heldout")
    parser.add_argument("--puzzles", type=int, help="the first so many of each set; by default as the protocol says")
    parser.add_argument("--small", default="small", help="the small planner: a name or a folder (small)")
    parser.add_argument("--large", default="large", help="the large planner (large)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/quality"), help="folder of the results (build/quality)")
    options = parser.parse_args(argv)
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else 200)
    split: Split = options.split
    try:
        store, told, text = Store.open(options.out / "rows.jsonl"), {}, []
        for quest in quests(options.tasks):
            puzzles = quest.draw(split, options.puzzles)
            both = [
                plans(quest, names, split, puzzles, options.seed, model(name))
                for name, names in ((options.small, SMALL), (options.large, LARGE))
            ]
            asyncio.run(play([*both[0], *both[1]], store, Solver(), console))
            told[quest.name] = compare(quest, both[0], both[1], store)
            text.append(markdown(quest, told[quest.name]))
    except TTSError as error:
        print(f"python -m benchmarks.quality.sizes: {error}", file=sys.stderr)
        return 2
    (options.out / "sizes.md").write_text("\n".join(text), encoding="utf-8")
    (options.out / "sizes.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    console.print("\n".join(text), markup=False, highlight=False, soft_wrap=True)
    if options.json:
        print(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
