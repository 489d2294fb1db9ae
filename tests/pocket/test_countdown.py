"""The rules of Countdown: what is written can be read, what is legal is accepted, nothing else is."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_agent.errors import TTSError
from tts_agent.pocket.countdown import (
    LARGEST,
    IllegalStep,
    Puzzle,
    Step,
    apply,
    legal_steps,
    parse_prompt,
    parse_step,
    prompt_text,
    result_of,
)

tables = st.lists(st.integers(0, LARGEST), min_size=2, max_size=5).map(tuple)


def spaced(line: str) -> str:
    """The line as a decoder without rules would print it."""
    for sign in ("+", "-", "*", "/", "="):
        line = line.replace(sign, f" {sign} ")
    return " " + line.replace("\n", " \n")


@given(tables)
def test_every_legal_step_is_read_back_and_accepted(numbers: tuple[int, ...]) -> None:
    for step in legal_steps(numbers):
        assert parse_step(step.text()) == step
        assert parse_step(spaced(step.text())) == step
        assert apply(numbers, step) == step.left
        assert len(step.left) == len(numbers) - 1
        assert step.left[0] == step.result
        assert all(0 <= number <= LARGEST for number in step.left)


@given(tables)
def test_legal_steps_are_different_and_put_the_larger_operand_first(numbers: tuple[int, ...]) -> None:
    steps = legal_steps(numbers)
    assert steps
    assert len({(step.a, step.op, step.b) for step in steps}) == len(steps)
    assert all(step.a >= step.b for step in steps)


@given(tables, st.integers(0, LARGEST), st.data())
def test_a_wrong_result_is_refused(numbers: tuple[int, ...], wrong: int, data: st.DataObject) -> None:
    step = data.draw(st.sampled_from(legal_steps(numbers)))
    if wrong != step.result:
        with pytest.raises(IllegalStep, match="not"):
            apply(numbers, replace(step, result=wrong, left=(wrong, *step.left[1:])))


@given(tables, st.integers(0, LARGEST), st.data())
def test_a_wrong_left_is_refused(numbers: tuple[int, ...], extra: int, data: st.DataObject) -> None:
    step = data.draw(st.sampled_from(legal_steps(numbers)))
    for left in ((*step.left, extra), step.left[1:]):
        with pytest.raises(IllegalStep, match="left should be"):
            apply(numbers, replace(step, left=left))


@given(tables, st.data())
def test_left_may_stand_in_any_order(numbers: tuple[int, ...], data: st.DataObject) -> None:
    step = data.draw(st.sampled_from(legal_steps(numbers)))
    left = tuple(data.draw(st.permutations(step.left)))
    assert apply(numbers, replace(step, left=left)) == left


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3-8=5 left: 5 5 1\n", "3-8 is below zero"),
        ("8/3=2 left: 2 5 1\n", "8/3 is not exact"),
        ("8/0=0 left: 0 5 3 1\n", "0 is not available"),
        ("5*5=25 left: 25 8 3 1\n", "5 is not available"),
        ("9*3=27 left: 27 5 1\n", "9 is not available"),
        ("8*3=25 left: 25 5 1\n", "8*3 is 24, not 25"),
        ("8*3=24 left: 24 5 5\n", "left should be"),
    ],
)
def test_illegal_steps_say_why(line: str, reason: str) -> None:
    step = parse_step(line)
    assert step is not None
    with pytest.raises(IllegalStep) as raised:
        apply((8, 5, 3, 1), step)
    assert reason in raised.value.reason
    assert isinstance(raised.value, TTSError)


def test_results_stay_in_range() -> None:
    assert result_of(100, "+", 100) == LARGEST
    with pytest.raises(IllegalStep, match="above 200"):
        result_of(101, "*", 2)
    with pytest.raises(IllegalStep, match="divides by zero"):
        result_of(7, "/", 0)


@pytest.mark.parametrize(
    "line", ["", "8*3=24\n", "8*3=24 left:\n", "8^3=24 left: 24\n", "-8*3=24 left: 24\n", "8*3=24 left: 24 x\n", "?"]
)
def test_what_is_no_step_is_none(line: str) -> None:
    assert parse_step(line) is None


@given(st.lists(st.integers(0, LARGEST), min_size=1, max_size=6), st.integers(0, LARGEST))
def test_prompts_are_read_back(numbers: list[int], target: int) -> None:
    puzzle = Puzzle(tuple(numbers), target)
    assert parse_prompt(prompt_text(puzzle)) == puzzle


@pytest.mark.parametrize("text", ["", "nums: target: 24\n", "nums: 8 5 target:\n", "nums: 8 201 target: 24\n"])
def test_what_is_no_prompt_is_none(text: str) -> None:
    assert parse_prompt(text) is None


def test_a_puzzle_out_of_range_names_the_number() -> None:
    with pytest.raises(ValueError, match="201 is outside"):
        Puzzle((8, 201), 24)
    with pytest.raises(ValueError, match="at least one number"):
        Puzzle((), 24)


def test_a_whole_solution() -> None:
    numbers: tuple[int, ...] = (8, 5, 3, 1)
    for line in ("8*3=24 left: 24 5 1\n", "5-1=4 left: 4 24\n", "24-4=20 left: 20\n"):
        step = parse_step(line)
        assert isinstance(step, Step)
        numbers = apply(numbers, step)
    assert numbers == (20,)
