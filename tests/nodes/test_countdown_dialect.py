"""Countdown as a conversation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from tests.nodes.table import make_engine
from tests.scripts import make_engine as make_letters
from tts_agent import Prefix, Thought
from tts_agent.dialect import Answer, Decided, Request
from tts_agent.errors import ConfigError
from tts_agent.pocket.countdown import LARGEST, Puzzle, apply, legal_steps, prompt_text
from tts_agent.pocket.dialect import CountdownDialect, parse_puzzle

ENGINE = make_engine()
DIALECT = CountdownDialect(ENGINE)
PUZZLE = "nums: 8 5 3 1 target: 24"


def thought(line: str, *, number: int = 1) -> Thought:
    """The thought that says `line`, as a search would read it."""
    task = DIALECT.request([HumanMessage(PUZZLE)], None)
    assert isinstance(task, Request)
    reading = task.task.read(None, line)
    return Thought(number, 0, 0, ENGINE.encode(line), line, status=reading.status, action=reading.action)


def request(messages: list[AnyMessage], last: Decided | None = None) -> Request:
    found = DIALECT.request(messages, last)
    assert isinstance(found, Request)
    return found


def root_text(found: Request) -> str:
    return ENGINE.decode(found.task.root.ids)


def after(decision: Thought, result: str, status: str = "success") -> tuple[list[AnyMessage], Decided]:
    """The conversation in which the calculator has answered `decision` with `result`."""
    message = DIALECT.decide(decision)
    answer = ToolMessage(result, tool_call_id=str(message.tool_calls[0]["id"]), status=status)
    prefix = Prefix(ENGINE.encode(prompt_text(Puzzle((8, 5, 3, 1), 24)))).extend(decision.ids)
    return [HumanMessage(PUZZLE), message, answer], Decided(prefix, decision)


@pytest.mark.parametrize(
    "text",
    [
        "nums: 8 5 3 1 target: 24",
        "Make 24 from 8 5 3 1",
        "make 24 with 8, 5, 3 and 1!",
        "Please use 8, 5, 3, 1 to reach 24.",
        "Can you get 24 out of 8 5 3 1?",
        "Use the numbers 8 5 3 1. Target: 24",
    ],
)
def test_a_puzzle_is_read_from_a_line_or_a_sentence(text: str) -> None:
    assert parse_puzzle(text) == Puzzle((8, 5, 3, 1), 24)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello", "states no puzzle"),
        ("Make 24 from 999 1", "cannot be played"),
        ("nums: 7 target: 7", "one number only"),
    ],
)
def test_what_is_no_puzzle_is_refused_with_the_form_to_write(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_puzzle(text)


def test_a_conversation_without_a_human_is_refused() -> None:
    with pytest.raises(ConfigError, match="no human message"):
        DIALECT.request([AIMessage("hi")], None)


def test_an_engine_with_another_vocabulary_is_refused_at_once() -> None:
    CountdownDialect(make_letters())  # a newline is one token there, too
    with pytest.raises(ConfigError, match="pocket planner"):
        CountdownDialect(_Bytes(lambda prefix, seed: ""))


class _Bytes(type(ENGINE)):  # type: ignore[misc]
    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(token for character in text for token in (0, ord(character)))


def test_the_first_request_states_the_puzzle() -> None:
    found = request([HumanMessage("Make 24 from 8 5 3 1")])
    assert root_text(found) == "nums: 8 5 3 1 target: 24\n"
    assert found.observations == ()


def test_a_decision_calls_the_calculator_with_one_operation() -> None:
    message = DIALECT.decide(thought("8*3=24 left: 24 5 1\n"))
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("calculator", {"expression": "8*3"})]


def test_an_answer_thought_decides_its_first_operation_only() -> None:
    whole = thought("8*3=24 left: 24 5 1\n5-1=4 left: 4 24\n")
    assert DIALECT.decide(whole).tool_calls[0]["args"] == {"expression": "8*3"}
    messages, last = after(whole, "24")
    found = request(messages, last)
    assert not found.continues(last)
    assert root_text(found) == "nums: 24 5 1 target: 24\n"


def test_what_was_predicted_continues_the_exact_prefix() -> None:
    messages, last = after(thought("8*3=24 left: 24 5 1\n"), "24")
    found = request(messages, last)
    assert found.observations[0].predicted
    assert found.task.root == last.prefix
    assert found.continues(last)


def test_another_result_begins_at_a_new_root_with_the_numbers_really_left() -> None:
    messages, last = after(thought("8*3=24 left: 24 5 1\n"), "25")
    found = request(messages, last)
    assert not found.observations[0].predicted
    assert root_text(found) == "nums: 25 5 1 target: 24\n"
    assert not found.continues(last)


@pytest.mark.parametrize(
    ("result", "status"), [("divides by zero", "error"), ("24", "error"), ("perhaps 3", "success")]
)
def test_an_operation_that_failed_leaves_the_table_as_it_was(result: str, status: str) -> None:
    messages, _ = after(thought("8*3=24 left: 24 5 1\n"), result, status)
    assert root_text(request(messages)) == "nums: 8 5 3 1 target: 24\n"


def test_a_failed_call_that_repeats_the_prediction_does_not_continue() -> None:
    messages, last = after(thought("8*3=24 left: 24 5 1\n"), "24", "error")
    assert not request(messages, last).continues(last)
    assert not request(messages, last).observations[0].predicted


def test_a_result_out_of_range_ends_the_run() -> None:
    messages, _ = after(thought("8*3=24 left: 24 5 1\n"), "-3")
    found = DIALECT.request(messages, None)
    assert isinstance(found, Answer)
    assert found.solved is False and "-3" in found.text


def test_a_new_human_message_states_a_new_puzzle() -> None:
    messages, last = after(thought("8*3=24 left: 24 5 1\n"), "24")
    assert root_text(request([*messages, HumanMessage("Make 10 from 4 6")], None)) == "nums: 4 6 target: 10\n"


@given(st.lists(st.integers(0, 20), min_size=2, max_size=5), st.integers(0, LARGEST), st.data())
def test_playing_to_the_end_gives_an_expression_of_the_value_it_claims(
    numbers: list[int], target: int, data: st.DataObject
) -> None:
    table = tuple(numbers)
    messages: list[AnyMessage] = [HumanMessage(prompt_text(Puzzle(table, target)))]
    while len(table) > 1:
        found = request(messages)
        assert found.task.root.ids == ENGINE.encode(prompt_text(Puzzle(table, target)))
        step = data.draw(st.sampled_from(legal_steps(table)))
        message = DIALECT.decide(Thought(1, 0, 0, (), step.text()))
        messages += [message, ToolMessage(str(step.result), tool_call_id=str(message.tool_calls[0]["id"]))]
        # The dialect puts the result first and keeps the order of the rest; which of equal numbers is used is open.
        assert sorted(apply(table, step)) == sorted(step.left)
        table = _table(messages)
    answer = DIALECT.request(messages, None)
    assert isinstance(answer, Answer)
    expression = answer.text.split(" = ")[0]
    assert eval(expression) == table[0]
    assert answer.solved is (table[0] == target)
    assert sorted(map(int, "".join(c if c.isdigit() else " " for c in expression).split())) == sorted(numbers)


def _table(messages: list[AnyMessage]) -> tuple[int, ...]:
    found = DIALECT.request(messages, None)
    if isinstance(found, Answer):
        return (int(eval(found.text.split(" = ")[0])),)
    return tuple(map(int, root_text(found).split("target")[0].split()[1:]))
