"""What a node knows of its own earlier attempts at the same task of a graph in this process."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from langgraph.config import get_config
from langgraph.runtime import Runtime, get_runtime

from tts_agent.events import Event
from tts_agent.prefix import Prefix

KEPT = 64
"""Attempts that did not come to their end and are remembered; the oldest are forgotten."""


def _nothing() -> None: ...


class Calls:
    """The plan calls of one task of a graph, over all attempts at it in this process; safe to use from several threads.

    A call's key tells what is searched and which of the equal calls of its attempt it is, so that an attempt in
    another process, which makes the calls again, gives the same keys.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._made: Counter[tuple[int, str]] = Counter()  # (attempt, what is searched) -> calls
        self._keys: set[str] = set()

    def begin(self, attempt: int, step: str, root: Prefix) -> str:
        """The key of a call that begins in `attempt`: `step`, a digest of the root, and a number from 1."""
        what = f"{step}/{_digest(root)}"
        with self._lock:
            self._made[attempt, what] += 1
            key = f"{what}/{self._made[attempt, what]}"
            self._keys.add(key)
        return key

    def __contains__(self, key: str) -> bool:
        """Whether an attempt in this process made the call."""
        return key in self._keys


def same_step(one: str, other: str) -> bool:
    """Whether two keys are of calls for the same planning step, be it from other roots."""
    return one.rsplit("/", 2)[0] == other.rsplit("/", 2)[0]


_calls: WeakKeyDictionary[object, Calls] = WeakKeyDictionary()
_lock = Lock()


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
    draining: "Draining" = field(default=lambda: None)
    calls: Calls = field(default_factory=Calls)


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
        partial(draining, runtime),
        _calls_here(),
    )


Draining = Callable[[], str | None]
"""Gives the reason once a graph is asked to come to an end."""


def draining(runtime: Runtime[Any]) -> str | None:
    """Why the graph of `runtime` is asked to come to an end; None if it is not."""
    return (runtime.drain_reason or "no reason given") if runtime.drain_requested else None


def _calls_here() -> Calls:
    """The calls of the task that runs here."""
    # NOTE: of all that LangGraph gives a task, this is made anew for each run of it, is the same for all of its
    # attempts and for whatever it calls, and can be referred to weakly.
    mark = get_config()["configurable"]["__pregel_read"]
    with _lock:
        return _calls.setdefault(mark, Calls())


def call_key(task: str, step: str, root: Prefix) -> str:
    """What a plan call that begins here, in `task`, is known by, whichever process makes it: a task may make several.

    `step` names the planning step, `root` is what it searches from.
    """
    attempt = current_attempt()
    assert attempt is not None, "who knows the task is in a graph"
    return attempt.calls.begin(attempt.number, f"{task}/{step}", root)


def stage_key(space: str, step: str, root: Prefix) -> str:
    """What a search is known by in each of its stages, whichever task they are; `space` is that of their graph."""
    return f"stages/{space}/{step}/{_digest(root)}"


def _digest(root: Prefix) -> str:
    return blake2b(repr(root.ids).encode(), digest_size=8).hexdigest()


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

    def keep(self, call: str | None, left: Left | None) -> None:
        """Remember how far an attempt at `call` came; None for a call outside a graph, which nobody tries again."""
        if call is not None and left is not None:
            self._left[call] = left
            while len(self._left) > KEPT:
                del self._left[next(iter(self._left))]

    def take(self, call: str | None) -> Left | None:
        """What the attempt at `call` before this one left, once."""
        return None if call is None else self._left.pop(call, None)

    @asynccontextmanager
    async def turn(self, call: str | None) -> AsyncIterator[None]:
        """Wait until the attempt at `call` before this one has ended: a graph does not wait for what it cancels."""
        if call is None:
            yield
            return
        here = asyncio.get_running_loop()
        while (before := self._ending.get(call)) is not None and before[0] is here:
            await before[1].wait()
        mine = self._ending[call] = (here, asyncio.Event())
        try:
            yield
        finally:
            if self._ending.get(call) is mine:
                del self._ending[call]
            mine[1].set()
