"""What each part of the recipe is worth: short runs of the small planner that differ in one setting.

``python -m training.ablate --out DIR [NAME ...]`` runs them one after the other, each for as many steps, and prints one
line of JSON each with its dev numbers. Runs that are finished in DIR are not repeated. Labels are compared in the last
quarter of a run whose verdicts had no labels before, since rollouts make every step many times dearer.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training.finals import report
from training.machine import this_machine
from training.measure import measure
from training.network import Planner, load_folder, save_folder
from training.solver import Solver
from training.traces import LARGEST_SIZE, Mixture
from training.train import RECIPES, Recipe, Run
from tts_agent.pocket.puzzles import Name, load

STEPS = 1000
BASE = replace(RECIPES["small"], steps=STEPS, own_from=400)


@dataclass(frozen=True, slots=True)
class Ablation:
    """A recipe, and whether verdicts are learned only from where the rate falls."""

    recipe: Recipe
    late: bool = False


def _mixed(**shares: float) -> Ablation:
    return Ablation(replace(BASE, mixture=replace(Mixture(), **shares)))


ABLATIONS = {
    "base": Ablation(BASE),
    "no illegal lines": _mixed(wrong=0.0, broken=0.0),
    "no tempting lines": _mixed(tempting=0.0),
    "no wandering": _mixed(wander=0.0),
    "twice the wandering": _mixed(wander=0.6),
    "values discounted by 0.8": Ablation(replace(BASE, discount=0.8)),
    "whole distribution (focus 0)": Ablation(replace(BASE, focus=0.0)),
    "one winning step (focus 1)": Ablation(replace(BASE, focus=1.0)),
    "no own traces": Ablation(replace(BASE, own_share=0.0)),
    "late labels: solver": Ablation(BASE, late=True),
    "late labels: 8 rollouts": Ablation(replace(BASE, rollouts=8), late=True),
}
KINDS: tuple[Name, ...] = ("countdown4", "countdown5", "game24")


def trained(ablation: Ablation, folder: Path, solver: Solver, *, compiled: bool) -> Planner:
    """The planner of an ablation; read from `folder` if it is there."""
    if (folder / "config.json").exists():
        return load_folder(folder)
    recipe = ablation.recipe
    run = Run(recipe, solver, machine=this_machine(), compiled=compiled)
    if ablation.late:
        run.load(_trunk(recipe, folder.parent, solver, compiled))
    while run.step < recipe.steps:
        run.advance(None)
    save_folder(run.planner, folder)
    return run.planner


def _trunk(recipe: Recipe, folder: Path, solver: Solver, compiled: bool) -> Path:
    """The checkpoint where the rate begins to fall, without verdicts until there; one for all labels."""
    file = folder / "without-verdicts.pt"
    if not file.exists():
        blind = replace(recipe, verdict_weight=0.0, rollouts=0)
        run = Run(blind, solver, machine=this_machine(), compiled=compiled)
        while run.step < (1 - blind.cooldown) * blind.steps:
            run.advance(None)
        folder.mkdir(parents=True, exist_ok=True)
        run.save(file)
    return file


def measured(planner: Planner, solver: Solver, *, puzzles: int) -> dict[str, Any]:
    """Dev numbers of one planner."""
    found: dict[str, Any] = {}
    for name in KINDS:
        chosen = load(name, "dev")[:puzzles]
        numbers = measure(planner, chosen, solver, samples=8)
        alone = report(planner, chosen, samples=16)
        found[name] = {key: round(value, 4) for key, value in numbers.items()} | alone
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the small planner with one setting changed at a time.")
    parser.add_argument("names", nargs="*", choices=[*ABLATIONS, []], help="all of them if none is named")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--puzzles", type=int, default=400, help="dev puzzles of each kind, at most")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    solver = Solver()
    solver.prepare(LARGEST_SIZE)
    for name in options.names or ABLATIONS:
        planner = trained(ABLATIONS[name], options.out / name.replace(" ", "-"), solver, compiled=not options.eager)
        print(json.dumps({"name": name, **measured(planner, solver, puzzles=options.puzzles)}), flush=True)


if __name__ == "__main__":
    main()
