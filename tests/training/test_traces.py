"""What the planner is trained on: labels are true, and nothing held out, dev or reserved is ever shown."""

import io
import random
from collections import Counter

import pytest

from training import record
from training.corruption import tempting
from training.feed import Feed
from training.network import load_folder
from training.solver import Solver
from training.split import forbidden, part_of
from training.traces import SIZES, Mixture, Trace, TraceMaker
from training.train import Recipe
from tts_agent.pocket import model_folder
from tts_agent.pocket.countdown import IllegalStep, Step, apply


@pytest.fixture(scope="module")
def solver() -> Solver:
    return Solver()


@pytest.fixture(scope="module")
def traces(solver: Solver) -> list[Trace]:
    """Small batches of the shipped model's recipe, so that every size and layout occurs."""
    feed = Feed(seed=Recipe().seed, batch=8, solver=solver, mixture=Recipe().mixture)
    return [trace for _ in range(240) for trace in feed.drawn()[1]]


def assert_nothing_forbidden(traces: list[Trace]) -> int:
    """Replay the text of the traces; the count of states seen."""
    file = io.StringIO()
    record.write(file, traces)
    file.seek(0)
    count = 0
    for numbers in record.states(file):
        count += 1
        assert not forbidden(numbers), f"{numbers} is no training state"
    return count


def is_legal(numbers: tuple[int, ...], step: Step) -> bool:
    try:
        apply(numbers, step)
    except IllegalStep:
        return False
    return True


def test_forbidden_is_every_start_of_four_or_more_outside_training() -> None:
    rng = random.Random(0)
    for size in (3, 4, 5, 6):
        for _ in range(300):
            numbers = tuple(rng.randint(1, 13) for _ in range(size))
            assert forbidden(numbers) == (size >= 4 and part_of(numbers) != "train")
    assert not forbidden((0, 1, 2, 3))
    assert not forbidden((14, 1, 2, 3))


def test_no_trace_shows_a_forbidden_state(traces: list[Trace]) -> None:
    assert assert_nothing_forbidden(traces) > 5 * len(traces)


def test_traces_have_every_size(traces: list[Trace]) -> None:
    counted = Counter(len(trace.puzzle.numbers) for trace in traces)
    assert set(counted) == set(SIZES)
    assert counted[6] > 300


def test_no_puzzle_starts_from_numbers_outside_training(traces: list[Trace]) -> None:
    for trace in traces:
        numbers = trace.puzzle.numbers
        if len(numbers) > 2 and min(numbers) >= 1 and max(numbers) <= 13:
            assert part_of(numbers) == "train"


def test_nor_do_traces_that_the_planner_began(solver: Solver) -> None:
    feed = Feed(seed=5, batch=8, solver=solver, mixture=Mixture(broken=0.3))
    planner = load_folder(model_folder())
    traces = [trace for _ in range(40) for trace in feed.sampled(planner)[1]]
    assert_nothing_forbidden(traces)
    assert_labels_are_true(traces, solver)
    assert any(not side.legal for trace in traces for side in trace.sides)


def assert_labels_are_true(traces: list[Trace], solver: Solver) -> None:
    for trace in traces:
        numbers, sound = trace.puzzle.numbers, True
        sides = {side.state: side for side in trace.sides}
        for state, step in enumerate(trace.steps):
            assert trace.winnable[state] == (sound and solver.solutions(numbers, trace.puzzle.target) > 0)
            if state in sides:
                side = sides[state]
                assert side.legal == (sound and is_legal(numbers, side.step))
                reachable = solver.solutions(side.step.left, trace.puzzle.target) > 0
                assert side.winnable == (side.legal and reachable)
            sound = sound and is_legal(numbers, step)
            assert trace.legal[state] == sound
            numbers = step.left
        assert trace.winnable[-1] == (sound and numbers == (trace.puzzle.target,))


def test_verdict_labels_are_the_solvers(traces: list[Trace], solver: Solver) -> None:
    assert_labels_are_true(traces, solver)


def test_advice_on_a_winnable_state_keeps_it_winnable(traces: list[Trace], solver: Solver) -> None:
    for trace in traces[:500]:
        states = [trace.puzzle.numbers, *(step.left for step in trace.steps)]
        for state, advice in enumerate(trace.advice):
            if not advice:
                continue
            assert sum(advice.values()) == pytest.approx(1)
            for a, op, b in advice:
                table = Counter(states[state])
                table.subtract((a, b))
                assert min(table.values()) >= 0
                assert op in "+-*/"


def test_every_kind_of_verdict_is_trained(traces: list[Trace]) -> None:
    kinds = Counter((side.legal, side.winnable) for trace in traces for side in trace.sides)
    assert min(kinds[True, True], kinds[True, False], kinds[False, False]) > 200
    assert kinds[False, True] == 0
    assert any(trace.winnable[0] is False for trace in traces)


def test_the_same_seed_gives_the_same_traces(solver: Solver) -> None:
    first, second = (TraceMaker(random.Random(9), solver, Mixture()) for _ in range(2))
    for size in SIZES:
        assert first.trace(first.puzzle(size), (0,)) == second.trace(second.puzzle(size), (0,))


def test_a_tempting_line_is_false_and_leaves_what_is_wished_for(solver: Solver) -> None:
    rng, last, earlier, winning = random.Random(3), 0, 0, 0
    for _ in range(400):
        step = tempting(rng, solver, (22, 2), Step(22, "-", 2, 20, (20,)), 24)
        if not is_legal((22, 2), step):
            assert step.left == (24,) and step.result == 24
            last += 1
        step = tempting(rng, solver, (9, 7, 3), Step(9, "-", 7, 2, (2, 3)), 24)
        if not is_legal((9, 7, 3), step):
            earlier += 1
            winning += solver.solutions(step.left, 24) > 0
    assert last > 200
    assert winning > 0.6 * earlier > 120


def test_false_lines_that_end_at_the_target_are_trained(traces: list[Trace]) -> None:
    ends = [(trace.puzzle.target,) == side.step.left for trace in traces for side in trace.sides if not side.legal]
    assert sum(ends) > 50


def test_without_illegal_lines_none_are_trained(solver: Solver) -> None:
    mixture = Mixture(wrong=0, broken=0)
    drawn = Feed(seed=1, batch=8, solver=solver, mixture=mixture)
    traces = [trace for _ in range(20) for trace in drawn.drawn()[1]]
    traces += [trace for _ in range(10) for trace in drawn.sampled(load_folder(model_folder()))[1]]
    assert all(all(trace.legal) and all(side.legal for side in trace.sides) for trace in traces)


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match="wander is 1.5; give a share from 0 to 1"):
        Mixture(wander=1.5)


def test_a_record_with_a_strange_line_is_refused() -> None:
    with pytest.raises(ValueError, match="no line of a training record"):
        list(record.states(["nums: 1 2 target: 3\n", "hello\n"]))


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_every_drawn_trace_of_the_shipped_model(solver: Solver) -> None:
    recipe = Recipe()
    solver.prepare(max(SIZES))
    feed = Feed(seed=recipe.seed, batch=recipe.batch, solver=solver, mixture=recipe.mixture)
    for step in range(recipe.steps):
        if not recipe.own_at(step):
            assert_nothing_forbidden(feed.drawn()[1])
