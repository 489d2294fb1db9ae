"""Traces packed into tensors: path, verdict questions and side lines in one sequence each.

Every sequence of a batch has the same layout, so one attention mask and one list of positions serve them all::

    prompt, lines, <eos> | ? ? ? ... one for each state | side line, ? | side line, ?

A question sees the path up to its line end and itself; nothing sees a question. A side line sees the path up to its
state and itself. Positions count as if each stood directly after what it sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.network import Shape, rotation
from training.traces import Choice, Side, Trace
from training.vocabulary import (
    EOS,
    EQUALS,
    ID,
    IMPOSSIBLE,
    LEFT,
    NEWLINE,
    NUMBER,
    NUMS,
    PAD,
    QUESTION,
    SURE,
    TARGET,
)
from tts_agent.pocket.countdown import Puzzle, Step

ALTERNATIVES = 6
"""At most this many different tokens are right at one position: six numbers, four operators."""
DEAD_WEIGHT = 0.1
"""Weight of the step choice where no step wins: enough to stay legal, too little to cost skill."""


def prompt_ids(puzzle: Puzzle) -> list[int]:
    """Ids of the prompt line."""
    return [NUMS, *(NUMBER + number for number in puzzle.numbers), TARGET, NUMBER + puzzle.target, NEWLINE]


def line_ids(step: Step) -> list[int]:
    """Ids of one step line."""
    head = [NUMBER + step.a, ID[step.op], NUMBER + step.b, EQUALS, NUMBER + step.result, LEFT]
    return [*head, *(NUMBER + number for number in step.left), NEWLINE]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything stands, for puzzles of `size` numbers with side lines at the states `asked`."""

    size: int
    asked: tuple[int, ...]

    @property
    def ends(self) -> list[int]:
        """Index of the newline that ends each state's line."""
        found = [self.size + 3]
        for left in range(self.size - 1, 0, -1):
            found.append(found[-1] + left + 7)
        return found

    @property
    def questions(self) -> int:
        """Index of the first question."""
        return self.ends[-1] + 2

    @property
    def slot(self) -> int:
        """Length of the room for a side line with its question; one more than a legal line needs."""
        return self.size + 8

    def side(self, rank: int) -> int:
        """Index of the first token of a side line."""
        return self.questions + self.size + rank * self.slot

    @property
    def length(self) -> int:
        return self.side(len(self.asked))

    def geometry(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Rotation and additive mask of a sequence."""
        ends, length = self.ends, self.length
        positions = torch.arange(length)
        seen = torch.zeros(length, length, dtype=torch.bool)
        path = self.questions
        seen[:path, :path] = torch.ones(path, path).tril().bool()
        for state, end in enumerate(ends):
            index = path + state
            positions[index] = end + 1
            seen[index, : end + 1] = True
            seen[index, index] = True
        for rank, state in enumerate(self.asked):
            start, stop = self.side(rank), self.side(rank + 1)
            positions[start:stop] = ends[state] + 1 + torch.arange(stop - start)
            seen[start:stop, : ends[state] + 1] = True
            seen[start:stop, start:stop] = torch.ones(self.slot, self.slot).tril().bool()
        mask = torch.zeros(length, length).masked_fill(~seen, float("-inf"))
        return rotation(shape, positions), mask


class Batch(NamedTuple):
    """Tensors of one training step. Targets are distributions over up to `ALTERNATIVES` tokens a position."""

    ids: Tensor
    right: Tensor
    """``[batch, length, alternatives]`` token ids."""
    share: Tensor
    """``[batch, length, alternatives]`` their probabilities."""
    weight: Tensor
    """``[batch, length]``: language weights sum to one, verdict weights to the verdict weight."""


class _Row:
    """One sequence in the making."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.ids = [PAD] * layout.length
        self.targets: list[tuple[int, int, int, float]] = []
        self.language: list[tuple[int, float]] = []
        self.verdicts: list[int] = []

    def expect(self, index: int, shares: dict[int, float], weight: float) -> None:
        for slot, (token, share) in enumerate(shares.items()):
            self.targets.append((index, slot, token, share))
        self.language.append((index, weight))

    def verdict(self, index: int, value: float) -> None:
        """The answer to a question: sure with this probability."""
        self.ids[index] = QUESTION
        self.targets.append((index, 0, SURE, value))
        self.targets.append((index, 1, IMPOSSIBLE, 1.0 - value))
        self.verdicts.append(index)

    def path(self, trace: Trace, values: Sequence[float]) -> None:
        ids = prompt_ids(trace.puzzle)
        for state, step in enumerate(trace.steps):
            end = len(ids) - 1
            line = line_ids(step)
            self._choice(end, step, trace.advice[state], 1.0 if trace.winnable[state] else DEAD_WEIGHT)
            if trace.legal[state]:
                for offset in range(3, len(line)):
                    self.expect(end + offset, {line[offset]: 1.0}, 1.0)
            ids += line
        self.expect(len(ids) - 1, {EOS: 1.0}, 1.0)
        ids.append(EOS)
        self.ids[: len(ids)] = ids
        for state, value in enumerate(values):
            self.verdict(self.layout.questions + state, value)

    def _choice(self, end: int, step: Step, advice: dict[Choice, float], weight: float) -> None:
        """Targets of the first number, the operator and the second number of a line."""
        support = advice
        for place in range(3):
            if not support:
                return
            shares: dict[int, float] = {}
            total = sum(support.values())
            for choice, share in support.items():
                token = (NUMBER + choice[0], ID[choice[1]], NUMBER + choice[2])[place]
                shares[token] = shares.get(token, 0.0) + share / total
            self.expect(end + place, shares, weight)
            taken = (step.a, step.op, step.b)[place]
            support = {choice: share for choice, share in support.items() if choice[place] == taken}

    def side(self, rank: int, side: Side, value: float) -> None:
        start = self.layout.side(rank)
        line = line_ids(side.step)
        self.ids[start : start + len(line)] = line
        if side.legal:
            for offset in range(3, len(line)):
                self.expect(start + offset - 1, {line[offset]: 1.0}, 1.0)
        self.verdict(start + len(line), value)


def labels(trace: Trace, discount: float = 1.0) -> list[float]:
    """The solver's value of every state of the path, then of every side line.

    It is `discount` to the power of the lines to come where the target can be reached, else 0.
    """
    size = len(trace.puzzle.numbers)
    path = [discount ** (size - 1 - state) if sure else 0.0 for state, sure in enumerate(trace.winnable)]
    return path + [discount ** (size - 2 - side.state) if side.winnable else 0.0 for side in trace.sides]


def pack(
    layout: Layout, traces: Sequence[Trace], *, verdict_weight: float, values: Sequence[Sequence[float]] | None = None
) -> Batch:
    """The batch of `traces`, which must all have the layout's size and ask at its states.

    `values` are the answers to the questions of each trace, in the order of `labels`, which they are by default.
    """
    shape = (len(traces), layout.length)
    ids = np.full(shape, PAD, dtype=np.int64)
    right = np.zeros((*shape, ALTERNATIVES), dtype=np.int64)
    share = np.zeros((*shape, ALTERNATIVES), dtype=np.float32)
    language = np.zeros(shape, dtype=np.float32)
    verdict = np.zeros(shape, dtype=np.float32)
    for number, trace in enumerate(traces):
        answers = labels(trace) if values is None else values[number]
        row = _Row(layout)
        row.path(trace, answers[: layout.size])
        for rank, side in enumerate(trace.sides):
            row.side(rank, side, answers[layout.size + rank])
        ids[number] = row.ids
        index, slot, token, part = zip(*row.targets, strict=True)
        right[number, index, slot] = token
        share[number, index, slot] = part
        index, weight = zip(*row.language, strict=True)
        language[number, index] = weight
        verdict[number, row.verdicts] = 1.0
    weight = language / language.sum() + verdict_weight * verdict / verdict.sum()
    return Batch(*map(torch.from_numpy, (ids, right, share, weight)))
