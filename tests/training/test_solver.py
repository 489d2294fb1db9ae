"""The solver against plain search over the rules."""

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


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4).map(tuple), st.integers(0, 200))
def test_counts_are_those_of_plain_search(numbers: tuple[int, ...], target: int) -> None:
    assert Solver().solutions(numbers, target) == searched(numbers, target)


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
