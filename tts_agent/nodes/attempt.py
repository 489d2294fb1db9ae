"""What a node knows of its own earlier attempts at the same task of a graph in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from langgraph.runtime import get_runtime

from tts_agent.events import Event

KEPT = 64
"""Attempts that did not come to their end and are remembered; the oldest are forgotten."""


def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a task of the graph; `number` counts from 1 and grows when a `retry_policy` runs it again.

    `thread` and `run` are the caller's. `heartbeat` tells the graph that work goes on, `draining` gives the reason
    once the graph is asked to come to an end.
    """

    task: str
    number: int
    thread: str | None = None
    run: str | None = None
    heartbeat: Callable[[], None] = _nothing
    draining: Callable[[], str | None] = field(default=lambda: None)


def current_attempt() -> Attempt | None:
    """The attempt that runs here; None outside a graph."""
    try:
        runtime = get_runtime()
    except RuntimeError:
        return None
    info = None if runtime is None else runtime.execution_info
    if info is None:
        return None
    return Attempt(
        info.task_id,
        info.node_attempt,
        info.thread_id,
        info.run_id,
        runtime.heartbeat,
        lambda: (runtime.drain_reason or "no reason given") if runtime.drain_requested else None,
    )


class Left(NamedTuple):
    """What an attempt left that did not come to its end: its log, and which part of it each stored chunk ended.

    The checkpointer may not have the end of the log.
    """

    log: list[Event]
    ends: Mapping[str, int]  # id of a chunk -> events of the log up to its end; "" is the beginning
    turn: int  # see `Chunk`


class Memo:
    """What attempts left, so that the next attempt in this process neither samples nor pays again.

    LangGraph gives a retried node none of the results that its first attempt stored; a resumed run gets those that
    were stored in time.
    """

    def __init__(self) -> None:
        self._left: dict[str, Left] = {}
        self._ending: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}

    def keep(self, attempt: Attempt | None, left: Left | None) -> None:
        """Remember how far `attempt` came."""
        if attempt is not None and left is not None:
            self._left[attempt.task] = left
            while len(self._left) > KEPT:
                del self._left[next(iter(self._left))]

    def take(self, attempt: Attempt | None) -> Left | None:
        """What the attempt before this one left, once."""
        return None if attempt is None else self._left.pop(attempt.task, None)

    @asynccontextmanager
    async def turn(self, attempt: Attempt | None) -> AsyncIterator[None]:
        """Wait until the attempt before this one has ended: a graph does not wait for what it cancels."""
        if attempt is None:
            yield
            return
        here = asyncio.get_running_loop()
        while (before := self._ending.get(attempt.task)) is not None and before[0] is here:
            await before[1].wait()
        mine = self._ending[attempt.task] = (here, asyncio.Event())
        try:
            yield
        finally:
            if self._ending.get(attempt.task) is mine:
                del self._ending[attempt.task]
            mine[1].set()
