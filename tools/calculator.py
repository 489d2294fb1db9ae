"""A calculator for whole numbers."""

import ast
import operator
from collections.abc import Callable

from langchain_core.tools import ToolException, tool

LONGEST = 200
"""Longest expression, in characters."""
LARGEST = 10**15
"""Largest number that may occur on the way."""

_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def evaluate(expression: str) -> int:
    """The value of `expression`: whole numbers, + - * /, parentheses. Raises `ToolException` with the reason."""
    if len(expression) > LONGEST:
        raise ToolException(f"the expression has {len(expression)} characters; at most {LONGEST} are allowed")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolException(f"{expression!r} is not an expression; write whole numbers and + - * / ( )") from error
    return _value(tree.body, expression)


def _value(node: ast.expr, expression: str) -> int:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            value = number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_value(operand, expression)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            value = _quotient(_value(left, expression), _value(right, expression))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            value = _OPERATIONS[type(op)](_value(left, expression), _value(right, expression))
        case _:
            raise ToolException(
                f"{ast.unparse(node)!r} in {expression!r} is not allowed; write whole numbers and + - * / ( )"
            )
    if abs(value) > LARGEST:
        raise ToolException(f"{expression!r} passes {LARGEST}; use smaller numbers")
    return value


def _quotient(a: int, b: int) -> int:
    if b == 0:
        raise ToolException(f"{a}/{b} divides by zero")
    if a % b:
        raise ToolException(f"{a}/{b} is not exact; divide only where nothing remains")
    return a // b


@tool
def calculator(expression: str) -> str:
    """Calculate with whole numbers: + - * /, parentheses, exact division only."""
    return str(evaluate(expression))


calculator.handle_tool_error = True  # the reason goes back to the planner as the tool's answer
