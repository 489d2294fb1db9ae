"""The solver against plain search over the rules."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.solver import Solver, moves
from training.split import part_of
from tts_agent.pocket.countdown import legal_steps


def searched(numbers: tuple[int, ...], target: int) -> int:
    """Solutions counted one by one."""
    if len(numbers) == 1:
        return int(numbers[0] == target)
    return sum(searched(step.left, target) for step in legal_steps(numbers))


@given(st.lists(st.integers(0, 200), min_size=2, max_size=6).map(lambda numbers: tuple(sorted(numbers))))
def test_moves_are_the_legal_steps(numbers: tuple[int, ...]) -> None:
    written = {(step.a, step.op, step.b, step.result, tuple(sorted(step.left))) for step in legal_steps(numbers)}
    found = moves(numbers)
    assert {tuple(move) for move in found} == written
    assert len(found) == len(written)


@pytest.fixture(scope="module")
def complete() -> Solver:
    """A solver for every target, its table of triples made."""
    solver = Solver(largest=200)
    solver.counts((1, 2, 3, 4))
    return solver


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4).map(tuple), st.integers(0, 200))
def test_counts_are_those_of_plain_search(complete: Solver, numbers: tuple[int, ...], target: int) -> None:
    assert complete.solutions(numbers, target) == searched(numbers, target)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 13), min_size=5, max_size=6).map(sorted), st.integers(10, 100))
def test_a_state_has_the_solutions_of_what_its_moves_leave(complete: Solver, numbers: list[int], target: int) -> None:
    rests = [move.rest for move in moves(tuple(numbers))]
    assert complete.solutions(tuple(numbers), target) == sum(complete.tally(rests, target))
    assert complete.tally(rests, target) == [int(complete.counts(rest)[target]) for rest in rests]


def test_what_was_prepared_is_what_is_counted_on_demand() -> None:
    prepared, lazy = Solver(), Solver()
    prepared.prepare(5)
    rng = random.Random(0)
    for _ in range(40):
        numbers = tuple(sorted(rng.randint(1, 13) for _ in range(5)))
        rests = [move.rest for move in moves(numbers)]
        for target in (10, 24, 100):
            assert prepared.tally(rests, target) == lazy.tally(rests, target)
    strange = [(3, 150, 160, 170)]  # not reached by any puzzle
    assert prepared.tally(strange, 30) == lazy.tally(strange, 30)


def test_a_target_beyond_the_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target 101 is above 100; make Solver\(largest=101\)"):
        Solver().solutions((1, 2), 101)


def test_how_many_multisets_make_24() -> None:
    solver = Solver()
    quads = [(a, b, c, d) for a in range(1, 14) for b in range(a, 14) for c in range(b, 14) for d in range(c, 14)]
    assert len(quads) == 1820
    assert sum(solver.solutions(quad, 24) > 0 for quad in quads) == 1346


def test_the_split_has_its_shares_and_takes_any_order() -> None:
    quads = [(a, b, c, d) for a in range(1, 14) for b in range(a, 14) for c in range(b, 14) for d in range(c, 14)]
    parts = [part_of(quad) for quad in quads]
    assert parts.count("reserved") == 100
    assert 0.12 < parts.count("heldout") / 1720 < 0.18
    assert 0.03 < parts.count("dev") / 1720 < 0.07
    assert [part_of(quad[::-1]) for quad in quads] == parts
