"""Requests with changes."""

from typing import Any

from langchain.agents.middleware import ModelRequest


def changed(request: ModelRequest[Any], **changes: Any) -> ModelRequest[Any]:
    """`request` with other attributes, as `override` gives it.

    `override` sets all of them anew, each with a deprecation warning that it then ignores, at a price that every call
    of a model would pay.
    """
    new: ModelRequest[Any] = object.__new__(type(request))
    vars(new).update(vars(request), **changes)
    return new
