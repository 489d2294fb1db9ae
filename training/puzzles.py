"""Draws the puzzles that ship with the package: ``python -m training.puzzles [--out FILE]``."""

import argparse
import json
import random
from itertools import combinations_with_replacement
from pathlib import Path

from training.solver import Solver
from training.split import HIGHEST, LOWEST, part_of
from training.traces import TARGETS
from tts_agent.pocket.puzzles import SPLITS, Split

SEED = 24
COUNTS: dict[Split, dict[str, int]] = {
    "heldout": {"countdown3": 400, "countdown4": 400, "countdown5": 600},
    "dev": {"countdown3": 200, "countdown4": 200, "countdown5": 200},
}
GAME24_LIMIT: dict[Split, int | None] = {"heldout": None, "dev": 200}
"""All solvable held-out Games of 24 ship."""


def draw(split: Split, size: int, targets: list[int], solver: Solver, rng: random.Random) -> list[list[int]]:
    """Every solvable puzzle of the split, numbers and then the target, in random order."""
    found = []
    for numbers in combinations_with_replacement(range(LOWEST, HIGHEST + 1), size):
        if part_of(numbers) != split:
            continue
        counts = solver.counts(numbers)
        for target in targets:
            if counts[target]:
                found.append([*rng.sample(numbers, size), target])
    rng.shuffle(found)
    return found


def every_set(solver: Solver) -> dict[Split, dict[str, list[list[int]]]]:
    """All sets of both splits."""
    rng = random.Random(SEED)
    drawn: dict[Split, dict[str, list[list[int]]]] = {}
    for split in SPLITS:
        sets = {
            f"countdown{size}": draw(split, size, list(TARGETS), solver, rng)[: COUNTS[split][f"countdown{size}"]]
            for size in (3, 4, 5)
        }
        sets["game24"] = draw(split, 4, [24], solver, rng)[: GAME24_LIMIT[split]]
        drawn[split] = sets
    return drawn


def main() -> None:
    """Write the puzzle file."""
    parser = argparse.ArgumentParser(description="Draw the puzzles that ship with the package.")
    parser.add_argument("--out", type=Path, default=Path("tts_agent/pocket/puzzles.json"))
    options = parser.parse_args()
    sets = every_set(Solver())
    options.out.write_text(json.dumps(sets, separators=(",", ":")) + "\n", encoding="utf-8")
    for split, named in sets.items():
        print(split, {name: len(puzzles) for name, puzzles in named.items()})


if __name__ == "__main__":
    main()
