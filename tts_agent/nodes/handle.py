"""Searches under way in this process, to be stopped or deepened from outside."""

import asyncio
from threading import Lock
from typing import Any, Self, Unpack, cast

from langgraph.runtime import Runtime

from tts_agent.nodes.attempt import Draining
from tts_agent.nodes.overrides import BudgetOverride
from tts_agent.search import Search
from tts_agent.usage import Usage

LOOK = 0.05
"""Seconds between two looks at whether the graph is to come to an end."""


class SearchHandle:
    """A search that a plan node, a stage or a `PlanSearchMiddleware` drives in this process.

    Found by `running_searches`; between two stages nobody drives it, and what it is asked then is done by the next one.
    `node` is the name of the planner or of the middleware, `search` what the search is called in traces (`plan/1` for
    the first step), `thread` and `run` are the `thread_id` and the `run_id` of the graph's config, None where it has
    none. All methods may be called from any thread; after the search's end they have no effect.
    """

    def __init__(self, search: Search, *, node: str, thread: str | None, run: str | None) -> None:
        self.node, self.thread, self.run = node, thread, run
        self._search = search

    @classmethod
    def of(cls, search: Search, runtime: Runtime[Any] | None, *, node: str) -> Self:
        """The handle of a search that a task of a graph drives in `runtime`; None outside a graph."""
        info = None if runtime is None else runtime.execution_info
        thread, run = (None, None) if info is None else (info.thread_id, info.run_id)
        return cls(search, node=node, thread=thread, run=run)

    def __repr__(self) -> str:
        return f"SearchHandle(search={self.search!r}, thread={self.thread!r}, run={self.run!r})"

    @property
    def search(self) -> str:
        opened = self._search.state.opened
        return "" if opened is None else opened.search

    @property
    def done(self) -> bool:
        return self._search.done

    @property
    def usage(self) -> Usage:
        """What the search was charged so far."""
        return self._search.ledger.spent

    @property
    def room(self) -> dict[str, float]:
        """What may still be reserved, by limit of the search and the scopes around it."""
        return self._search.ledger.room()

    def stop(self, reason: str = "stopped from outside") -> None:
        """Stop the search at once, with the best answer so far; what is under way at the engine is aborted.

        The outcome's stop is `cancelled`, its `cut` says `reason`.
        """
        self._search.cancel(reason)

    def deepen(self, **more: Unpack[BudgetOverride]) -> None:
        """Raise limits of this search by `more`, as in `handle.deepen(computed_tokens=2000)`.

        The step's own limits are raised; the scopes around it, as the run's budget, still hold. It counts from the
        search's next event on, and is a part of its log: once that is stored, it holds after a resume too. A search
        that is about to end ends all the same. Raises `BudgetError` for what is no limit of the step.
        """
        self._search.deepen(cast(dict[str, float], more))


_lock = Lock()
_running: list[SearchHandle] = []


def running_searches(
    *, node: str | None = None, thread: str | None = None, run: str | None = None
) -> list[SearchHandle]:
    """The searches under way in this process, the oldest first; of one node, thread or run if it is named.

    A node has several at a time where a graph runs it side by side (`Send`) or for several threads.
    """
    with _lock:
        return [
            handle
            for handle in _running
            if (node is None or handle.node == node)
            and (thread is None or handle.thread == thread)
            and (run is None or handle.run == run)
        ]


def enlist(handle: SearchHandle) -> None:
    """Let `running_searches` find `handle`."""
    with _lock:
        _running.append(handle)


def delist(handle: SearchHandle) -> None:
    """Its search has ended, or is left to another attempt. Harmless if it was never enlisted."""
    with _lock:
        if handle in _running:
            _running.remove(handle)


class Drained:
    """While it is entered, `search` is stopped when its graph is asked to come to an end; None outside a graph."""

    __slots__ = ("_draining", "_search", "_timer")

    def __init__(self, search: Search, draining: Draining | None) -> None:
        self._search, self._draining = search, draining
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._draining is not None:
            self._look(self._draining)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, draining: Draining) -> None:
        stopped = heed(self._search, draining)
        self._timer = None if stopped else asyncio.get_running_loop().call_later(LOOK, self._look, draining)


def heed(search: Search, draining: Draining) -> bool:
    """Stop `search` if its graph is asked to come to an end; whether it is."""
    reason = draining()
    if reason is not None:
        search.cancel(f"the graph is draining: {reason}")
    return reason is not None
