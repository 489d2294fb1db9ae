"""What a planner can do, measured on puzzles it has not seen.

``python -m training.measure [FOLDER]`` prints the dev numbers of the card. The held-out split is for the benchmarks.
"""

import argparse
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from training.interval import interval
from training.machine import Machine
from training.network import Planner, load_folder, rotation
from training.packing import line_ids, prompt_ids
from training.sampling import sample, steps_of
from training.solver import Solver
from training.vocabulary import IMPOSSIBLE, QUESTION, SURE
from tts_agent.pocket.countdown import IllegalStep, Puzzle, Step, apply
from tts_agent.pocket.puzzles import NAMES, load

EXACT = Machine("cpu", bf16=False)
"""Measures are taken in fp32 on the CPU, unless said otherwise."""


class Walk:
    """A completion replayed by the rules: the legal steps before the first fault."""

    def __init__(self, puzzle: Puzzle, ids: Sequence[int]) -> None:
        self.puzzle = puzzle
        self.steps: list[Step] = []
        self.illegal: Step | None = None
        self.faulty = False
        numbers = puzzle.numbers
        for step in steps_of(ids):
            if step is None:
                self.faulty = True
                break
            try:
                numbers = apply(numbers, step)
            except IllegalStep:
                self.illegal, self.faulty = step, True
                break
            self.steps.append(step)
        self.solved = not self.faulty and numbers == (puzzle.target,)


@torch.no_grad()
def verdicts(planner: Planner, prefixes: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
    """Log-probabilities of (sure, impossible) after a question at the end of each prefix; equal lengths only."""
    device = planner.embedding.device
    ids = torch.tensor([[*prefix, QUESTION] for prefix in prefixes], device=device)
    length = ids.shape[1]
    causal = torch.full((length, length), float("-inf")).triu(1)
    logits = planner(ids, rotation(planner.shape, torch.arange(length)).to(device), causal.to(device))[:, -1]
    found = logits.float().log_softmax(-1)[:, [SURE, IMPOSSIBLE]]
    return [(sure, impossible) for sure, impossible in found.tolist()]


def judged(planner: Planner, solver: Solver, walks: Sequence[Walk]) -> list[tuple[int, str, bool, float]]:
    """(numbers left, legal or illegal, truth, log-odds of sure) for every line of the walks."""
    asked: dict[int, list[tuple[list[int], int, str, bool]]] = {}
    for walk in walks:
        ids = prompt_ids(walk.puzzle)
        for step in walk.steps:
            ids = [*ids, *line_ids(step)]
            truth = solver.solutions(step.left, walk.puzzle.target) > 0
            asked.setdefault(len(ids), []).append((ids, len(step.left), "legal", truth))
        if walk.illegal is not None:
            ids = [*ids, *line_ids(walk.illegal)]
            asked.setdefault(len(ids), []).append((ids, len(walk.illegal.left), "illegal", False))
    found = []
    for group in asked.values():
        answers = verdicts(planner, [prefix for prefix, *_ in group])
        for (_, left, kind, truth), (sure, impossible) in zip(group, answers, strict=True):
            found.append((left, kind, truth, sure - impossible))
    return found


def area(scores: Sequence[tuple[bool, float]]) -> float:
    """Area under the ROC curve: how often a winnable line scores above a lost one. nan with one class only."""
    ranked = sorted(scores, key=lambda pair: pair[1])
    lost = won = 0
    better = 0
    for truth, _ in ranked:
        if truth:
            won += 1
            better += lost
        else:
            lost += 1
    return better / (won * lost) if won and lost else float("nan")


def measure(
    planner: Planner, puzzles: Sequence[Puzzle], solver: Solver, *, samples: int = 8, machine: Machine = EXACT
) -> dict[str, float]:
    """Solve rates, legality and verdict quality on puzzles of one size; pass@1 with its 95 % interval."""
    with machine.products():
        return _measured(planner, puzzles, solver, samples)


def _measured(planner: Planner, puzzles: Sequence[Puzzle], solver: Solver, samples: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    greedy = [
        Walk(puzzle, ids)
        for puzzle, ids in zip(puzzles, sample(planner, puzzles, temperature=0, generator=generator), strict=True)
    ]
    many = [puzzle for puzzle in puzzles for _ in range(samples)]
    drawn = [
        Walk(puzzle, ids)
        for puzzle, ids in zip(many, sample(planner, many, temperature=1, generator=generator), strict=True)
    ]
    lines = judged(planner, solver, drawn)
    legal = [(truth, score) for _, kind, truth, score in lines if kind == "legal"]
    illegal = [score for _, kind, _, score in lines if kind == "illegal"]
    everything = [(truth, score) for _, _, truth, score in lines]
    groups = [drawn[start : start + samples] for start in range(0, len(drawn), samples)]
    once = interval(puzzles, [share(walk.solved for walk in group) for group in groups])
    return {
        "greedy": share(walk.solved for walk in greedy),
        "pass@1": once.mean,
        "pass@1 low": once.low,
        "pass@1 high": once.high,
        f"pass@{samples}": share(any(walk.solved for walk in group) for group in groups),
        "legal steps": len(legal) / sum(len(walk.steps) + walk.faulty for walk in drawn),
        "legal traces": share(not walk.faulty for walk in drawn),
        "verdict accuracy": share((score > 0) == truth for truth, score in everything),
        "verdict accuracy, legal": share((score > 0) == truth for truth, score in legal),
        "verdict accuracy, illegal": share(score <= 0 for score in illegal),
        "verdict area, legal": area(legal),
        "verdict area": area(everything),
        "winnable lines": share(truth for truth, _ in everything),
    }


def share(answers: Iterable[bool]) -> float:
    """How many of the answers are yes, from 0 to 1; nan if there are none."""
    found = list(answers)
    return sum(found) / len(found) if found else float("nan")


def main() -> None:
    """Print the dev numbers of a model folder."""
    parser = argparse.ArgumentParser(description="Measure a pocket planner on dev puzzles.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("tts_agent/pocket/model"))
    parser.add_argument("--puzzles", type=int, default=400, help="puzzles of each kind, at most")
    parser.add_argument("--samples", type=int, default=8, help="samples of each puzzle")
    options = parser.parse_args()
    torch.set_num_threads(1)
    planner, solver = load_folder(options.folder), Solver()
    for name in NAMES:
        puzzles = load(name, "dev")
        chosen = random.Random(0).sample(puzzles, min(options.puzzles, len(puzzles)))
        report = measure(planner, chosen, solver, samples=options.samples)
        print(name, len(chosen), " ".join(f"{key}={value:.3f}" for key, value in report.items()), flush=True)


if __name__ == "__main__":
    main()
