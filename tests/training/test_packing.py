"""Packing: a question or a side line sees exactly what it would see alone, in Hugging Face's own class."""

import random

import pytest
import torch

from training.feed import Feed
from training.measure import EXACT
from training.network import Planner, Shape, llama
from training.packing import Layout, labels, line_ids, pack, prompt_ids
from training.sampling import steps_of
from training.solver import Solver
from training.traces import Mixture, TraceMaker
from training.train import losses
from training.vocabulary import EOS, IMPOSSIBLE, PAD, QUESTION, SURE, tokenizer
from tts_agent.pocket.countdown import prompt_text


@pytest.fixture(scope="module")
def maker() -> TraceMaker:
    return TraceMaker(random.Random(2), Solver(), Mixture())


@pytest.fixture(scope="module")
def planner() -> Planner:
    torch.manual_seed(0)
    return Planner(Shape(width=64, layers=2, heads=2, inner=96))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_packed_logits_are_those_of_each_branch_alone(maker: TraceMaker, planner: Planner, size: int) -> None:
    layout = Layout(size, (0,) if size == 2 else (0, size - 2))
    traces = [maker.trace(maker.puzzle(size), layout.asked) for _ in range(6)]
    batch = pack(layout, traces, verdict_weight=0.4)
    reference = llama(planner).eval()
    with torch.no_grad():
        packed = planner(batch.ids, *layout.geometry(planner.shape))
        for row, trace in enumerate(traces):
            ids = prompt_ids(trace.puzzle)
            prefixes = [ids]
            for step in trace.steps:
                prefixes.append([*prefixes[-1], *line_ids(step)])
            path = reference(torch.tensor([[*prefixes[-1], EOS]])).logits[0]
            torch.testing.assert_close(packed[row, : layout.questions], path, rtol=0, atol=1e-4)
            for state, prefix in enumerate(prefixes):
                alone = reference(torch.tensor([[*prefix, QUESTION]])).logits[0, -1]
                torch.testing.assert_close(packed[row, layout.questions + state], alone, rtol=0, atol=1e-4)
            for rank, side in enumerate(trace.sides):
                line = line_ids(side.step)
                alone = reference(torch.tensor([[*prefixes[side.state], *line, QUESTION]])).logits[0, -1]
                torch.testing.assert_close(packed[row, layout.side(rank) + len(line)], alone, rtol=0, atol=1e-4)


def test_targets_are_distributions_and_questions_have_the_two_answers(maker: TraceMaker) -> None:
    layout = Layout(5, (1, 3))
    batch = pack(layout, [maker.trace(maker.puzzle(5), layout.asked) for _ in range(32)], verdict_weight=0.4)
    trained = batch.weight > 0
    torch.testing.assert_close(batch.share.sum(-1)[trained], torch.ones(int(trained.sum())))
    asked = batch.ids == QUESTION
    assert bool(torch.isin(batch.right[asked][:, 0], torch.tensor([SURE, IMPOSSIBLE])).all())
    assert bool((batch.weight[batch.ids == PAD] == 0).all())
    assert batch.weight[asked].sum().item() == pytest.approx(0.4, abs=1e-5)
    assert batch.weight[~asked].sum().item() == pytest.approx(1.0, abs=1e-5)


def test_discounted_answers_fall_with_the_lines_to_come(maker: TraceMaker) -> None:
    layout = Layout(4, (0,))
    traces = [maker.trace(maker.puzzle(4), layout.asked) for _ in range(16)]
    batch = pack(layout, traces, verdict_weight=0.4, values=[labels(trace, 0.8) for trace in traces])
    for row, trace in enumerate(traces):
        for state, sure in enumerate(trace.winnable):
            expected = 0.8 ** (3 - state) if sure else 0.0
            assert batch.share[row, layout.questions + state, 0].item() == pytest.approx(expected)
        side = trace.sides[0]
        place = layout.side(0) + len(line_ids(side.step))
        assert batch.share[row, place, 0].item() == pytest.approx(0.64 if side.winnable else 0.0)


@pytest.mark.parametrize("focus", [0.0, 0.5, 1.0])
def test_the_loss_is_the_solvers_distribution_sharpened_by_the_planners(
    maker: TraceMaker, planner: Planner, focus: float
) -> None:
    layout = Layout(5, ())
    batch = pack(layout, [maker.trace(maker.puzzle(5), ()) for _ in range(4)], verdict_weight=0.4)
    geometry = layout.geometry(planner.shape)
    with torch.no_grad():
        likely = planner(batch.ids, *geometry).log_softmax(-1).gather(-1, batch.right)
    wanted = batch.share * torch.where((batch.ids == QUESTION)[..., None], 1.0, likely.exp() ** focus)
    wanted = wanted / wanted.sum(-1, keepdim=True).clamp_min(1e-30)
    expected = -((wanted * likely).sum(-1) * batch.weight).sum()
    torch.testing.assert_close(losses(planner, batch, *geometry, focus, EXACT).detach(), expected, rtol=1e-4, atol=1e-5)


def test_text_and_ids_of_a_trace_agree(maker: TraceMaker) -> None:
    codec = tokenizer()
    for _ in range(50):
        trace = maker.trace(maker.puzzle(5), ())
        ids = prompt_ids(trace.puzzle)
        for step in trace.steps:
            ids += line_ids(step)
        text = prompt_text(trace.puzzle) + "".join(step.text() for step in trace.steps)
        assert codec.encode(text).ids == ids
        assert codec.decode(ids) == text
        assert steps_of(ids[len(prompt_ids(trace.puzzle)) :]) == list(trace.steps)


def test_a_few_updates_lower_the_loss(planner: Planner) -> None:
    feed = Feed(seed=1, batch=16, solver=Solver(), mixture=Mixture())
    layout, traces = feed.drawn()
    batch, geometry = pack(layout, traces, verdict_weight=0.4), layout.geometry(planner.shape)
    optimizer = torch.optim.AdamW(planner.parameters(), lr=3e-3)
    seen = []
    for _ in range(12):
        loss = losses(planner, batch, *geometry, 0.5, EXACT)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    assert seen[-1] < 0.8 * seen[0]
