"""Forged answers are false, claim the target, and differ from what the planner wrote in their last line alone."""

import random

import pytest

from training.finals import forged, judged_answers, report, whole_answers
from training.interval import interval
from training.network import load_folder
from tts_agent.pocket import model_folder
from tts_agent.pocket.countdown import IllegalStep, Puzzle, apply
from tts_agent.pocket.puzzles import load


def test_forged_answers_claim_the_target_and_are_false() -> None:
    puzzles = load("countdown4", "dev")[:30]
    written = whole_answers(load_folder(model_folder()), puzzles, samples=4)
    everything = [answer for group in written for answer in group]
    made = forged(everything, random.Random(0))
    assert len(made) > 20
    for answer in made:
        assert answer.lines[-1].left == (answer.puzzle.target,)
        assert not answer.solved
        assert any(answer.lines[:-1] == one.lines[:-1] for one in everything)
        with pytest.raises(IllegalStep):
            apply(answer.lines[-2].left, answer.lines[-1])


def test_solved_answers_are_replayed_by_the_rules_and_each_gets_its_own_score() -> None:
    planner, puzzles = load_folder(model_folder()), load("game24", "dev")[:20]
    written = whole_answers(planner, puzzles, samples=4)
    everything = [answer for group in written for answer in group]
    judged = judged_answers(planner, everything)
    alone = [judged_answers(planner, [answer])[0] for answer in everything[:10]]
    assert [one.score for one in alone] == pytest.approx([one.score for one in judged[:10]], abs=1e-3)
    for answer in everything:
        numbers = answer.puzzle.numbers
        try:
            for step in answer.lines:
                numbers = apply(numbers, step)
        except IllegalStep:
            assert not answer.solved
        else:
            assert answer.solved == (numbers == (answer.puzzle.target,))
    assert "of" in report(planner, puzzles, samples=4)["forged that are believed"]


def test_an_interval_resamples_multisets() -> None:
    alike = [Puzzle((1, 2, 3), target) for target in range(10, 20)]
    same = interval(alike, [0, 1] * 5)
    assert same.mean == same.low == same.high == 0.5
    apart = interval([Puzzle((1, 2, number), 10) for number in range(100)], [1.0] * 30 + [0.0] * 70)
    assert apart.low < apart.mean < apart.high
    assert str(same) == "50.0% (50.0 to 50.0)"
    with pytest.raises(ValueError, match="0 values for 10 puzzles"):
        interval(alike, [])
