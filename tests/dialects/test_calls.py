"""Tool calls in three formats."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_agent.dialects.calls import OPEN, Call, CallFormat, Spoken, find_format, read_calls, whole_json
from tts_agent.dialects.turn import Turn

SUM = Call("add", {"a": 1, "b": 2})
READ: list[tuple[CallFormat, str, Spoken]] = [
    ("hermes", "Just text.", Spoken("Just text.")),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>', Spoken("", (SUM,))),
    (
        "hermes",
        'First\n<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>\n'
        '<tool_call>{"name": "now"}</tool_call>',
        Spoken("First", (SUM, Call("now", {}))),
    ),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}</tool_call>', Spoken("", (SUM,))),
    ("hermes", 'Hm <tool_call>{"name": "ad', Spoken('Hm <tool_call>{"name": "ad', (), OPEN)),
    ("hermes", '<tool_call>{"name": "now"}</tool', Spoken('<tool_call>{"name": "now"}</tool', (), OPEN)),
    ("hermes", "The tag </tool_call> closes.", Spoken("The tag </tool_call> closes.")),
    (
        "hermes",
        '<tool_call>{"name": "say", "arguments": {"text": "</tool_call><tool_call>"}}</tool_call>',
        Spoken("", (Call("say", {"text": "</tool_call><tool_call>"}),)),
    ),
    ("llama", '{"name": "add", "parameters": {"a": 1, "b": 2}}', Spoken("", (SUM,))),
    ("llama", '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}', Spoken("", (SUM,))),
    ("llama", '{"name": "add", "parameters": {"a": 1, "b": 2}}; {"name": "now"}', Spoken("", (SUM, Call("now", {})))),
    ("llama", '{"answer": 42}', Spoken('{"answer": 42}')),
    ("llama", "{this} is prose", Spoken("{this} is prose")),
    ("llama", '{"name": "Paris", "population": 3}', Spoken('{"name": "Paris", "population": 3}')),
    ("llama", '{"name": "now"} is a call', Spoken('{"name": "now"} is a call')),
    ("llama", '{"name": "add", "parameters": {"a"', Spoken('{"name": "add", "parameters": {"a"', (), OPEN)),
    ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}}]', Spoken("", (SUM,))),
    ("mistral", 'So: [TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}', Spoken("So:", (SUM,))),
    (
        "mistral",
        '[TOOL_CALLS]add[CALL_ID]Ab3[ARGS]{"a": 1, "b": 2}[TOOL_CALLS]now{}',
        Spoken("", (SUM, Call("now", {}))),
    ),
    (
        "mistral",
        '[TOOL_CALLS]say{"text": "[TOOL_CALLS]"}[TOOL_CALLS] {"name": "now", "arguments": {}}',
        Spoken("", (Call("say", {"text": "[TOOL_CALLS]"}), Call("now", {}))),
    ),
    ("mistral", '[TOOL_CALLS] [{"name": "add"', Spoken('[TOOL_CALLS] [{"name": "add"', (), OPEN)),
    ("mistral", "[TOOL_CALLS]ad", Spoken("[TOOL_CALLS]ad", (), OPEN)),
]


@pytest.mark.parametrize(("form", "text", "spoken"), READ)
def test_calls_are_read(form: CallFormat, text: str, spoken: Spoken) -> None:
    assert read_calls(text, form) == spoken


@pytest.mark.parametrize(
    ("form", "text", "problem"),
    [
        ("hermes", "<tool_call>add(1, 2)</tool_call>", "not JSON"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "names no tool"),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>', "no JSON object"),
        ("hermes", '<tool_call>{"name": "add", "arguments": "{1"}</tool_call>', "no JSON object: '{1'"),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "not JSON: NaN"),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": "\\ud83d"}}</tool_call>', "not JSON"),
        ("hermes", f'<tool_call>{{"name": "add", "arguments": {{"a": {"9" * 5000}}}}}</tool_call>', "not JSON"),
        ("hermes", f'<tool_call>{{"name": "add", "arguments": {"[" * 99999}</tool_call>', "not JSON"),
        ("hermes", f'<tool_call>{{"name": "add", "arguments": {{"a": {2**64}}}}}</tool_call>', "more than 64 bits"),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": -1e999}}</tool_call>', "-1e999 is out of range"),
        ("hermes", '<tool_call>{"name": "now"} {"name": "now"}</tool_call>', "goes on with"),
        ("mistral", '[TOOL_CALLS] [{"name": "now"}] and more', "goes on with 'and more'"),
        ("llama", '{"name": "add", "parameters": 3}', "no JSON object"),
        ("llama", '{"name": "add" "parameters": {}}', "not JSON"),
        ("mistral", "[TOOL_CALLS] [add]", "not JSON"),
        ("mistral", "[TOOL_CALLS]add[ARGS]{1}", "not JSON"),
    ],
)
def test_a_call_that_cannot_be_carried_out_is_a_problem(form: CallFormat, text: str, problem: str) -> None:
    assert problem in read_calls(text, form).problem


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TAGS = st.sampled_from(["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]{", '"}', "\\"])
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOATS | st.text() | TAGS
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(st.text(), JSON, max_size=4), st.integers(1, 3), st.sampled_from(["hermes", "llama", "mistral"]))
def test_what_is_written_is_read(args: dict[str, Any], count: int, form: CallFormat) -> None:
    one = json.dumps({"name": "f", "arguments": args})
    text = {
        "hermes": "\n".join(f"<tool_call>\n{one}\n</tool_call>" for _ in range(count)),
        "llama": "; ".join([one] * count),
        "mistral": f"[TOOL_CALLS] [{', '.join([one] * count)}]",
    }[form]
    assert read_calls(text, form) == Spoken("", (Call("f", args),) * count)


@given(st.dictionaries(st.text(), JSON, max_size=3), st.sampled_from(["hermes", "llama", "mistral"]), st.data())
def test_a_call_that_is_cut_anywhere_may_go_on(args: dict[str, Any], form: CallFormat, data: st.DataObject) -> None:
    one = json.dumps({"name": "f", "arguments": {"x": [1.5e-3, True, None], **args}})
    text = {"hermes": f"<tool_call>{one}</tool_call>", "llama": one, "mistral": f"[TOOL_CALLS] [{one}]"}[form]
    begun = {"hermes": len("<tool_call>"), "llama": len('{"name"'), "mistral": len("[TOOL_CALLS]")}[form]
    cut = text[: data.draw(st.integers(begun, len(text) - 1))]
    assert read_calls(cut, form).problem == OPEN, cut
    assert not read_calls(text, form).problem


@given(JSON, st.sampled_from(["", " ", "\n"]))
def test_json_is_read_whole(value: Any, space: str) -> None:
    assert whole_json(f"{space}{json.dumps(value)}{space}") == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1', "Expecting"),
        ("", "Expecting"),
        ("{} {}", "goes on with '{}'"),
        (f"[{2**64}]", "more than 64 bits"),
        ("[NaN]", "NaN is no JSON"),
        ("[1e999]", "out of range"),
        ('"\\ud83d"', "surrogates"),
        ("[" * 99999, "recursion"),
    ],
)
def test_json_that_no_checkpoint_holds_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        whole_json(text)


@given(st.text(), st.sampled_from(["hermes", "llama", "mistral"]))
def test_no_text_breaks_the_reader(text: str, form: CallFormat) -> None:
    for beginning in ("", "<tool_call>", '{"name": ', "[TOOL_CALLS]", "[TOOL_CALLS]["):
        read_calls(beginning + text, form)


@pytest.mark.parametrize(
    ("rendered", "form"),
    [
        ('x<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "hermes"),
        ('x{"name": "f", "parameters": {"a": 1}}', "llama"),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {}}]', "mistral"),
        ("[TOOL_CALLS]f[ARGS]{}", "mistral"),
        ("<function=f><parameter=a>1</parameter></function>", None),
    ],
)
def test_the_format_is_found_in_what_the_template_writes(rendered: str, form: CallFormat | None) -> None:
    assert find_format(rendered, "f") == form


@pytest.mark.parametrize(
    ("text", "thinking", "turn"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, Turn("Yes.", "Hm.")),
        ("Hm.\n</think>\n\nYes.", True, Turn("Yes.", "Hm.")),
        ("Yes.", False, Turn("Yes.")),
        ("<think>\nHm", False, Turn("", "Hm")),
        ("Hm", True, Turn("", "Hm")),
        ("[THINK]Hm[/THINK]Yes.", False, Turn("Yes.", "Hm")),
        ("", False, Turn("")),
        ("The tag </think> closes.", False, Turn("The tag </think> closes.")),
        ("So </think> it is. </think>", True, Turn("it is. </think>", "So")),
        (
            '<think>\n<tool_call>{"name": "x"}</tool_call></think>Yes.',
            False,
            Turn("Yes.", '<tool_call>{"name": "x"}</tool_call>'),
        ),
    ],
)
def test_reasoning_is_told_from_the_answer(text: str, thinking: bool, turn: Turn) -> None:
    assert Turn.read(text, form="hermes", thinking=thinking, tools=["add"]) == turn
    assert Turn.from_json(turn.to_json()) == turn


def test_a_tool_that_is_not_there_is_a_problem() -> None:
    turn = Turn.read('<tool_call>{"name": "sub"}</tool_call>', form="hermes", thinking=False, tools=["add", "now"])
    assert turn.problem == "there is no tool 'sub'; known: add, now"
