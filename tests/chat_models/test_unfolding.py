"""A turn that is shown while it is said comes out as what it says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_agent.chat_models.unfolding import Unfolding, before
from tts_agent.chat_models.voice import ANY_FORM, WRITTEN
from tts_agent.dialects.calls import CallFormat
from tts_agent.dialects.turn import Turn

CALL = {"name": "look", "arguments": {"city": "Zürich"}}
PIECES = ["Hello", " ", "\n", "x < y", "[1]", '{"a": 1}', "<tool", "</thi", "stop", "sto", "ö", "🦊", "a.b", "<", "["]
THOUGHTS = ["", "<think>\nSo it is.\n</think>\n\n", "<think>unfinished <", "<think>", "<thinner"]
CALLS: dict[CallFormat | None, list[str]] = {
    None: [""],
    "hermes": ["", f"\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>", "<tool_call>{oops", "<tool_call>"],
    "mistral": ["", f"[TOOL_CALLS][{json.dumps(CALL)}]", '[TOOL_CALLS]look{"city": "Bern"}', "[TOOL_CALLS"],
    "llama": ["", json.dumps({"name": "look", "parameters": {}}), "<|python_tag|>" + json.dumps(CALL), '{"name": '],
}


@st.composite
def said(draw: st.DrawFn) -> tuple[str, CallFormat | None, bool]:
    form = draw(st.sampled_from(list(CALLS)))
    words = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=5)))
    call = draw(st.sampled_from(CALLS[form]))
    text = draw(st.sampled_from([words + call, call + words if form != "llama" else call]))
    thinking = draw(st.booleans())
    thought = draw(st.sampled_from(["", "So\n</think>\n\n", "unfinished </"] if thinking else THOUGHTS))
    return thought + text, form, thinking


@given(said(), st.lists(st.integers(1, 9), min_size=1, max_size=60), st.sampled_from([(), ("stop",), ("top", "\n\n")]))
def test_the_parts_are_the_whole(
    turn: tuple[str, CallFormat | None, bool], steps: list[int], stops: tuple[str, ...]
) -> None:
    text, form, thinking = turn
    for openers in (WRITTEN, ANY_FORM) if form else ((),):
        shown = Unfolding(thinking=thinking, openers=openers, stops=stops)
        parts, heard = [], 0
        for step in steps:
            heard += step
            # A token in which a stop text ends is the last.
            parts.append(shown.show(text[:heard]))
            if before(text[:heard], stops) != text[:heard]:
                break
        whole = Turn.read(before(text, stops), form=form, thinking=thinking, tools=("look",))
        parts.append(shown.rest(whole))
        reasoning, content = ("".join(part) for part in zip(*parts, strict=True))
        assert (reasoning, content) == (whole.reasoning.strip(), whole.content)


def test_words_are_shown_as_they_come() -> None:
    shown = Unfolding(openers=WRITTEN, stops=("END",))
    assert shown.show("Hel") == ("", "Hel")
    assert shown.show("Hello <") == ("", "lo")
    assert shown.show("Hello <b> E") == ("", " <b>")
    assert shown.show("Hello <b> Earth <tool_call>{") == ("", " Earth")


@pytest.mark.parametrize("end", ["\ufffd", "\ufffd\ufffd"])
def test_half_a_character_waits(end: str) -> None:
    shown = Unfolding()
    assert shown.show("Gr" + end) == ("", "Gr")
    assert shown.show("Größe") == ("", "öße")


def test_reasoning_is_told_apart() -> None:
    shown = Unfolding()
    assert shown.show("<thi") == ("", "")
    assert shown.show("<think>\nAs 6") == ("As 6", "")
    assert shown.show("<think>\nAs 6 is </th") == (" is", "")
    assert shown.show("<think>\nAs 6 is </think>\n\n42") == ("", "42")


def test_a_call_in_reasoning_waits_for_its_end() -> None:
    said = "I must look.\n<tool_call>\n{}\n</tool_call>"
    shown = Unfolding(thinking=True, openers=("<tool_call>",))
    assert [shown.show(said[:size])[0] for size in (12, 16, len(said))] == ["I must look.", "", ""]
    # A server's parser may take it for a call, though the reasoning is not closed.
    assert shown.rest(Turn("", "I must look.")) == ("", "")
    shown = Unfolding(thinking=True, openers=("<tool_call>",))
    assert shown.show(said) == ("I must look.", "")
    assert shown.show(f"{said}</think>So.") == (said.removeprefix("I must look."), "So.")
