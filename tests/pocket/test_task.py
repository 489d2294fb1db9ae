"""Countdown as a task: what a line means after which numbers."""

import pytest

from tts_agent import Reading, ScriptedEngine, Thought
from tts_agent.errors import ConfigError
from tts_agent.pocket import Puzzle, countdown_task

PUZZLE = Puzzle((8, 5, 3, 1), 24)


def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda prefix, seed: "8*3=24 left: 24 5 1\n", judge=lambda text: 0.5, end_ids=(ord("$"),))


def after(*lines: str) -> Reading:
    """What the last line means after the ones before it."""
    task, parent, reading = countdown_task(engine(), PUZZLE), None, Reading()
    for number, line in enumerate(lines, 1):
        reading = task.read(parent, line)
        parent = Thought(number, number - 1, 0, (), line, action=reading.action)
    return reading


def test_a_legal_operation_is_open_and_its_action_says_what_to_do_and_what_is_left() -> None:
    reading = after("8*3=24 left: 24 5 1\n")
    assert reading.status == "open"
    assert reading.action == {"expression": "8*3", "result": 24, "left": [24, 5, 1]}


def test_operations_that_leave_the_same_numbers_are_the_same_thought() -> None:
    assert after("8*3=24 left: 24 5 1\n").key == after("3*8=24 left: 5 24 1\n").key


@pytest.mark.parametrize(
    ("lines", "status", "reason"),
    [
        (["8*3=25 left: 25 5 1\n"], "invalid", "8*3 is 24, not 25"),
        (["9*3=27 left: 27 5 1\n"], "invalid", "9 is not available in 8 5 3 1"),
        (["8*3=24 left: 24 5 5\n"], "invalid", "left should be"),
        (["let me think\n"], "invalid", "not an operation: 'let me think'"),
        ([""], "invalid", "no operation"),
        (["8*3=24 left: 24 5 1\n", "5-1=4 left: 4 24\n", "24+4=28 left: 28\n"], "dead", "ends at 28, not 24"),
        (["8-5=3 left: 3 3 1\n", "3*1=3 left: 3 3\n", "3*3=9 left: 9\n"], "dead", "ends at 9, not 24"),
        (["8*3=24 left: 24 5 1\n", "5*1=5 left: 5 24\n", "24-5=19 left: 19\n"], "dead", "ends at 19"),
        (["5-1=4 left: 4 8 3\n", "4-3=1 left: 1 8\n", "8*1=8 left: 8\n"], "dead", "ends at 8"),
        (["3-1=2 left: 2 8 5\n", "8*2=16 left: 16 5\n"], "open", ""),
        (["5-3=2 left: 2 8 1\n", "2+1=3 left: 3 8\n", "8*3=24 left: 24\n"], "solved", "reaches 24"),
        (["5-3=2 left: 2 8 1\n2+1=3 left: 3 8\n8*3=24 left: 24\n"], "solved", "reaches 24"),
        (["5-3=2 left: 2 8 1\n2+2=4 left: 4 8\n"], "invalid", "2 is not available"),
    ],
)
def test_lines_are_read_after_the_numbers_their_parent_left(lines: list[str], status: str, reason: str) -> None:
    reading = after(*lines)
    assert reading.status == status and reason in reading.reason


def test_one_operation_fits_a_thought_and_all_of_them_an_answer() -> None:
    task = countdown_task(engine(), Puzzle((13, 12, 11, 10, 9), 100))
    # a op b = result left: four numbers newline
    assert task.thought.max_tokens == 11
    assert task.answer is not None and task.answer.max_tokens == 11 + 10 + 9 + 8 + 1
    assert task.end_ids == {ord("$")} and ord("$") in task.thought.stop_ids


def test_another_model_is_refused() -> None:
    class Wordy(ScriptedEngine):
        def encode(self, text: str) -> tuple[int, ...]:
            return super().encode(text + " ")

    with pytest.raises(ConfigError, match=r"encodes a newline to 2 tokens; Countdown needs the pocket planner"):
        countdown_task(Wordy(lambda prefix, seed: ""), PUZZLE)
