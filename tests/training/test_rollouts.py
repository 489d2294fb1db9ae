"""Monte-Carlo labels: shares of the planner's own completions, nothing after an illegal line."""

import random

import torch

from training.network import load_folder
from training.rollouts import estimated
from training.solver import Solver
from training.traces import Mixture, TraceMaker
from tts_agent.pocket import model_folder


def test_values_are_shares_of_rollouts_and_agree_with_the_rules_where_those_decide() -> None:
    solver = Solver()
    maker = TraceMaker(random.Random(4), solver, Mixture(broken=0.3))
    traces = [maker.trace(maker.puzzle(3), (0, 1)) for _ in range(60)]
    planner = load_folder(model_folder())
    found = estimated(planner, traces, rollouts=4, generator=torch.Generator().manual_seed(0))
    sure: list[float] = []
    lost: list[float] = []
    for trace, values in zip(traces, found, strict=True):
        assert len(values) == 3 + len(trace.sides)
        assert all(value * 4 == int(value * 4) for value in values)
        truths = [*trace.winnable, *(side.winnable for side in trace.sides)]
        for truth, value in zip(truths, values, strict=True):
            (sure if truth else lost).append(value)
        assert values[2] == trace.winnable[2]  # one number is left: the rules decide
    assert max(lost) == 0  # no completion solves what cannot be solved
    assert sum(sure) / len(sure) > 0.5


def test_the_same_seed_gives_the_same_values() -> None:
    maker = TraceMaker(random.Random(4), Solver(), Mixture())
    traces = [maker.trace(maker.puzzle(4), (0,)) for _ in range(4)]
    planner = load_folder(model_folder())
    first, second = (
        estimated(planner, traces, rollouts=2, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert first == second
