"""The calculator tool."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import ToolCall
from langchain_core.tools import ToolException

from tools.calculator import calculator, evaluate

whole = st.integers(-1000, 1000).map(lambda number: f"({number})" if number < 0 else str(number))
expressions = st.recursive(
    whole,
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({''.join(parts)})"),
    max_leaves=6,
)


@given(expressions)
def test_it_agrees_with_python(expression: str) -> None:
    expected = eval(expression)
    if abs(expected) <= 10**15 and len(expression) <= 200:
        assert evaluate(expression) == expected


@given(st.integers(0, 500), st.integers(0, 50))
def test_division_is_exact_or_refused(a: int, b: int) -> None:
    if b and a % b == 0:
        assert evaluate(f"{a}/{b}") == a // b
    else:
        with pytest.raises(ToolException, match="divides by zero" if b == 0 else "is not exact"):
            evaluate(f"{a}/{b}")


@given(st.text(max_size=60))
def test_any_text_is_calculated_or_refused_with_a_reason(text: str) -> None:
    try:
        evaluate(text)
    except ToolException as refused:
        assert str(refused)


@pytest.mark.parametrize(
    "expression",
    ["", "2**3", "1.5+1", "True+1", "abs(3)", "__import__('os')", "1 if 1 else 2", "x", "1;2", "[1]", "1//2", "1" * 201,
     "9" * 15 + "*" + "9" * 15, "(" * 100 + "1" + ")" * 99],
)  # fmt: skip
def test_what_is_not_allowed_is_refused(expression: str) -> None:
    with pytest.raises(ToolException):
        evaluate(expression)


def call(expression: str) -> Any:
    return calculator.invoke(ToolCall(name="calculator", args={"expression": expression}, id="1", type="tool_call"))


def test_as_a_tool_it_answers_with_the_number_or_the_reason() -> None:
    assert call(" 8 * (4-1) ").content == "24"
    refused = call("8/3")
    assert refused.status == "error" and "8/3 is not exact" in refused.content
