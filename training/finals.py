"""How well the verdict alone tells true answers from false ones: no rules, no solver, only what the planner wrote.

``python -m training.finals [FOLDER]`` prints it for dev puzzles. This is what an open-ended task has: the planner
samples whole answers and says itself which one it believes. Most false answers give themselves away, since their last
number is not the target. The hard ones are forged: the last line of an answer that missed is written again so that it
claims the target, with a false result or with a right sum of numbers that are not there.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from training.corruption import operation_making
from training.interval import interval
from training.measure import Walk, area, share, verdicts
from training.network import Planner, load_folder
from training.packing import line_ids, prompt_ids
from training.sampling import sample, steps_of
from tts_agent.pocket.countdown import IllegalStep, Puzzle, Step, apply
from tts_agent.pocket.puzzles import NAMES, load


@dataclass(frozen=True, slots=True)
class Final:
    """A whole answer: as many lines as the puzzle needs, the last with one number left."""

    solved: bool
    score: float
    """Log-odds of sure after the last line."""
    claims: bool = True
    """The last line says that the target is left, truly or not."""


@dataclass(frozen=True, slots=True)
class _Written:
    puzzle: Puzzle
    lines: tuple[Step, ...]
    solved: bool

    @property
    def claims(self) -> bool:
        return self.lines[-1].left == (self.puzzle.target,)

    def ids(self) -> list[int]:
        return prompt_ids(self.puzzle) + [token for step in self.lines for token in line_ids(step)]


def whole_answers(planner: Planner, puzzles: Sequence[Puzzle], *, samples: int, seed: int = 0) -> list[list[_Written]]:
    """For each puzzle the whole answers among `samples` drawn at temperature 1; puzzles of one size only."""
    many = [puzzle for puzzle in puzzles for _ in range(samples)]
    written = sample(planner, many, temperature=1, generator=torch.Generator().manual_seed(seed))
    found: list[list[_Written]] = [[] for _ in puzzles]
    for index, (puzzle, ids) in enumerate(zip(many, written, strict=True)):
        lines = steps_of(ids)
        whole = tuple(step for step in lines if step is not None)
        if len(lines) == len(whole) == len(puzzle.numbers) - 1 and len(whole[-1].left) == 1:
            found[index // samples].append(_Written(puzzle, whole, Walk(puzzle, ids).solved))
    return found


def forged(answers: Sequence[_Written], rng: random.Random) -> list[_Written]:
    """Answers that missed the target, with a last line that claims it; none of them is right."""
    made = []
    for answer in answers:
        *before, last = answer.lines
        target = answer.puzzle.target
        if answer.claims or not before or len(before[-1].left) != 2:
            continue
        a, op, b = last.a, last.op, last.b
        if rng.random() < 0.5:
            a, op, b = operation_making(rng, target, rng.choice(before[-1].left))
        line = Step(a, op, b, target, (target,))
        try:
            apply(before[-1].left, line)
        except IllegalStep:
            made.append(_Written(answer.puzzle, (*before, line), solved=False))
    return made


def judged_answers(planner: Planner, answers: Sequence[_Written]) -> list[Final]:
    """The verdict after the last line of each answer."""
    lengths: dict[int, list[int]] = {}
    every = [answer.ids() for answer in answers]
    for index, ids in enumerate(every):
        lengths.setdefault(len(ids), []).append(index)
    scores = [0.0] * len(answers)
    for group in lengths.values():
        for index, (sure, impossible) in zip(group, verdicts(planner, [every[i] for i in group]), strict=True):
            scores[index] = sure - impossible
    return [Final(answer.solved, score, answer.claims) for answer, score in zip(answers, scores, strict=True)]


def report(planner: Planner, puzzles: Sequence[Puzzle], *, samples: int) -> dict[str, str]:
    """What the verdict chooses and how it orders, as text; puzzles of one size only."""
    written = whole_answers(planner, puzzles, samples=samples)
    everything = [answer for group in written for answer in group]
    judged = judged_answers(planner, everything)
    found, first = [], 0
    for group in written:
        found.append(judged[first : first + len(group)])
        first += len(group)
    false = judged_answers(planner, forged(everything, random.Random(0)))
    chosen = [max(group, key=lambda final: final.score).solved if group else False for group in found]
    believed = sorted(judged, key=lambda final: -final.score)[: max(1, len(judged) // 10)]
    claimed = [final for final in judged if final.claims]
    right = [(True, final.score) for final in judged if final.solved]
    return {
        "one of them is right": str(interval(puzzles, [any(final.solved for final in group) for group in found])),
        "the one chosen by the verdict is right": str(interval(puzzles, chosen)),
        "right among the tenth believed most": f"{share(final.solved for final in believed):.3f} of {len(believed)}",
        "area": f"{area([(final.solved, final.score) for final in judged]):.4f}",
        "area, right against forged": f"{area(right + [(False, final.score) for final in false]):.4f}",
        "forged that are believed": f"{share(final.score > 0 for final in false):.3f} of {len(false)}",
        "right that are believed": f"{share(score > 0 for _, score in right):.3f} of {len(right)}",
        "claims of the target that are false": f"{share(not one.solved for one in claimed):.3f} of {len(claimed)}",
    }


def main() -> None:
    """Print the report of a model folder on dev puzzles."""
    parser = argparse.ArgumentParser(description="Measure the verdict as the only judge, on dev puzzles.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("tts_agent/pocket/model"))
    parser.add_argument("--puzzles", type=int, default=200, help="puzzles of each kind")
    parser.add_argument("--samples", type=int, default=16, help="answers drawn for each puzzle")
    options = parser.parse_args()
    torch.set_num_threads(1)
    planner = load_folder(options.folder)
    for name in NAMES:
        puzzles = load(name, "dev")
        chosen = random.Random(0).sample(puzzles, min(options.puzzles, len(puzzles)))
        print(name, len(chosen), report(planner, chosen, samples=options.samples), flush=True)


if __name__ == "__main__":
    main()
