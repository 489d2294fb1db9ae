"""What a workflow of one's own has to change to plan by search."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from examples import dropin_middleware, dropin_node


@pytest.mark.parametrize(("example", "most"), [(dropin_node, 3), (dropin_middleware, 1)])
def test_few_lines_change(example: Any, most: int) -> None:
    def body(make: Callable[..., Any]) -> list[str]:
        return inspect.getsource(make).splitlines()[1:]

    changes = [line for line in difflib.ndiff(body(example.before), body(example.after)) if line[0] in "+-"]
    assert 0 < sum(line[0] == "+" for line in changes) <= most
    assert sum(line[0] == "-" for line in changes) <= most
