"""What a node knows of its own earlier attempts, when a `retry_policy` runs it again in the same process."""

from collections.abc import Sequence
from typing import NamedTuple

from langgraph.runtime import get_runtime

from tts_agent.events import Event

KEPT = 64
"""Failed attempts that are remembered; the oldest are forgotten."""


class Attempt(NamedTuple):
    """One run of a task of the graph; `number` counts from 1."""

    task: str
    number: int


def current_attempt() -> Attempt | None:
    """The attempt that runs here; None outside a graph."""
    try:
        info = get_runtime().execution_info
    except RuntimeError:
        return None
    return None if info is None else Attempt(info.task_id, info.node_attempt)


class Memo:
    """Logs of attempts that failed, so that the next attempt neither samples nor pays again.

    LangGraph gives a retried node none of the results that its first attempt stored; a resumed run gets them.
    """

    def __init__(self) -> None:
        self._logs: dict[str, list[Event]] = {}

    def keep(self, attempt: Attempt | None, log: Sequence[Event]) -> None:
        """Remember how far `attempt` came."""
        if attempt is not None and log:
            self._logs[attempt.task] = list(log)
            while len(self._logs) > KEPT:
                del self._logs[next(iter(self._logs))]

    def take(self, attempt: Attempt | None) -> list[Event]:
        """The log that the attempt before this one left, once; empty for a first attempt."""
        if attempt is None:
            return []
        log = self._logs.pop(attempt.task, [])
        return log if attempt.number > 1 else []
