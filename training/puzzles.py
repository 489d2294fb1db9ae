"""Draws the puzzles that ship with the package: ``python -m training.puzzles [--out FILE]``.

A first set of held-out puzzles was looked at while the package was written. It is drawn here again only to be left
out: what ships as ``heldout`` comes after it in the same random order. With five numbers no multiset of the first set
comes again, and with five and six every puzzle has a multiset of its own. With four there are too few held-out
multisets for that: those puzzles are new, their multisets are not. Of three numbers only 231 new puzzles exist; seen
ones fill up the set, at its end. Every held-out Game of 24 was in the first set, and all of them ship. ``shown`` is
what was looked at, for the demonstration to show again.
"""

import argparse
import json
import random
from itertools import combinations_with_replacement
from pathlib import Path

from training.solver import Solver
from training.split import HIGHEST, LOWEST, part_of
from training.traces import TARGETS
from tts_agent.pocket.puzzles import Split

SEED = 24
COUNT = 400
"""Puzzles of each kind and split, but for Game of 24. There are only 218 dev puzzles of three numbers."""
SHOWN_GAMES = 120
"""Held-out Games of 24 that were looked at: those that the demonstration drew with seed 0."""
SEEN = {3: 400, 4: 400, 5: 600}
"""How many of the held-out puzzles of each size, in the drawn order, were looked at during development."""
DEV_GAME24 = 200
"""At most so many dev Games of 24; there are 52."""

Listed = list[int]
"""The numbers of a puzzle, then its target."""


def draw(split: Split, size: int, targets: list[int], solver: Solver, rng: random.Random) -> list[Listed]:
    """Every solvable puzzle of the split, in random order."""
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


def draw_multisets(split: Split, size: int, solver: Solver, rng: random.Random) -> list[Listed]:
    """`COUNT` solvable puzzles of the split with different multisets; each target a multiset has is as likely."""
    multisets = [
        numbers
        for numbers in combinations_with_replacement(range(LOWEST, HIGHEST + 1), size)
        if part_of(numbers) == split
    ]
    rng.shuffle(multisets)
    found = []
    for numbers in multisets:
        counts = solver.counts(numbers)
        if targets := [target for target in TARGETS if counts[target]]:
            found.append([*rng.sample(numbers, size), rng.choice(targets)])
        if len(found) == COUNT:
            break
    return found


def unseen(found: list[Listed], size: int, games: list[Listed]) -> list[Listed]:
    """The first held-out puzzles in the order of `found` that nobody has looked at, nor as a Game of 24.

    If there are fewer than `COUNT`, seen ones follow.
    """
    seen = SEEN[size]
    used = {tuple(sorted(puzzle[:-1])) for puzzle in found[:seen]} if size == 5 else set()
    shown = {tuple(sorted(puzzle[:-1])) for puzzle in games}
    kept = []
    for puzzle in found[seen:]:
        multiset = tuple(sorted(puzzle[:-1]))
        if multiset in used or (puzzle[-1] == 24 and multiset in shown):
            continue
        if size == 5:
            used.add(multiset)
        kept.append(puzzle)
    return [*kept, *found[:seen]][:COUNT]


def every_set(solver: Solver) -> dict[Split, dict[str, list[Listed]]]:
    """All sets of all splits."""
    rng = random.Random(SEED)
    drawn: dict[Split, dict[str, list[Listed]]] = {}
    splits: tuple[Split, ...] = ("heldout", "dev")
    for split in splits:
        found = {size: draw(split, size, list(TARGETS), solver, rng) for size in (3, 4, 5)}
        games = draw(split, 4, [24], solver, rng)
        if split == "heldout":
            chosen = {size: unseen(puzzles, size, games) for size, puzzles in found.items()}
            shown = random.Random(0).sample(games, len(games))[:SHOWN_GAMES]
            drawn["shown"] = {"countdown5": found[5][:COUNT], "game24": shown}
        else:
            chosen, games = {size: puzzles[:COUNT] for size, puzzles in found.items()}, games[:DEV_GAME24]
        drawn[split] = {f"countdown{size}": puzzles for size, puzzles in chosen.items()}
        drawn[split]["countdown6"] = draw_multisets(split, 6, solver, random.Random(f"{SEED} {split}"))
        drawn[split]["game24"] = games
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
