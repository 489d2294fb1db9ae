"""The stream of training batches: first drawn traces, later also traces that the planner itself began."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from training.measure import Walk
from training.network import Planner
from training.packing import Layout
from training.rollouts import estimated
from training.sampling import sample
from training.solver import Solver
from training.traces import SIZE_WEIGHTS, SIZES, Mixture, Trace, TraceMaker
from tts_agent.pocket.countdown import Step

SIDES = 2
"""Side lines a trace; they cost as much time as a third of the path."""


class Feed:
    """Draws batches of equal layout. The same seeds, weights and calls give the same batches."""

    def __init__(self, *, seed: int, batch: int, solver: Solver, mixture: Mixture) -> None:
        self.batch = batch
        # Two streams, so that the drawn traces do not depend on the planner and can be made again without it.
        self._drawn_rng, self._own_rng = random.Random(seed), random.Random(f"own {seed}")
        self._drawn_maker = TraceMaker(self._drawn_rng, solver, mixture)
        self._own_maker = TraceMaker(self._own_rng, solver, mixture)
        self._generator = torch.Generator().manual_seed(seed)
        self._sampled: dict[Layout, list[Trace]] = defaultdict(list)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on drawing as if nothing had happened."""
        return {
            "drawn": self._drawn_rng.getstate(),
            "own": self._own_rng.getstate(),
            "generator": self._generator.get_state(),
            "sampled": dict(self._sampled),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._drawn_rng.setstate(state["drawn"])
        self._own_rng.setstate(state["own"])
        self._generator.set_state(state["generator"])
        self._sampled = defaultdict(list, state["sampled"])

    def drawn(self) -> tuple[Layout, list[Trace]]:
        """A batch that needs no planner."""
        rng, maker = self._drawn_rng, self._drawn_maker
        size = rng.choices(SIZES, SIZE_WEIGHTS)[0]
        layout = Layout(size, _asked(rng, size, None))
        return layout, [maker.trace(maker.puzzle(size), layout.asked) for _ in range(self.batch)]

    def sampled(self, planner: Planner) -> tuple[Layout, list[Trace]]:
        """A batch of what the planner writes at temperature 1, labelled by the solver.

        Its legal steps are walked; its illegal line is judged as a side line. Traces are grouped by the state where
        that line stands, so several calls may be served from one round of sampling.
        """
        while True:
            for layout, traces in self._sampled.items():
                if len(traces) >= self.batch:
                    self._sampled[layout] = traces[self.batch :]
                    return layout, traces[: self.batch]
            self._sample(planner)

    def estimated(self, planner: Planner, traces: Sequence[Trace], rollouts: int) -> list[list[float]]:
        """Monte-Carlo labels of the traces' questions, see `training.rollouts`."""
        return estimated(planner, traces, rollouts=rollouts, generator=self._generator)

    def _sample(self, planner: Planner) -> None:
        rng, maker = self._own_rng, self._own_maker
        size = rng.choices(SIZES, SIZE_WEIGHTS)[0]
        puzzles = [maker.puzzle(size) for _ in range(8 * self.batch)]
        written = sample(planner, puzzles, temperature=1, generator=self._generator)
        for puzzle, ids in zip(puzzles, written, strict=True):
            walk = Walk(puzzle, ids)
            tried: dict[int, Step] = dict(enumerate(walk.steps[: size - 1]))
            wrong = walk.illegal
            fault = None
            if wrong is not None and len(walk.steps) < size - 1 and len(wrong.left) <= size - len(walk.steps):
                fault = len(walk.steps)
                tried[fault] = wrong
            layout = Layout(size, _asked(rng, size, fault))
            self._sampled[layout].append(maker.trace(puzzle, layout.asked, tried))


def _asked(rng: random.Random, size: int, fault: int | None) -> tuple[int, ...]:
    """The states that get a side line: random ones, and the one where the planner went wrong."""
    states = [state for state in range(size - 1) if state != fault]
    own = () if fault is None else (fault,)
    others = rng.sample(states, min(SIDES - len(own), len(states)))
    return tuple(sorted((*own, *others)))
