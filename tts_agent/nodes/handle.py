"""Searches under way in this process, to be stopped or deepened from outside, and stopped when their graphs drain."""

import asyncio
from threading import Lock
from typing import Self, Unpack, cast

from tts_agent.nodes.attempt import Attempt, Draining
from tts_agent.nodes.overrides import BudgetOverride
from tts_agent.search import Search
from tts_agent.usage import Usage

LOOK = 0.05
"""Seconds between two looks at whether graphs are to come to an end."""


class SearchHandle:
    """A search that a plan node, a stage or a `PlanSearchMiddleware` drives in this process.

    Found by `running_searches`; between two stages nobody drives it, and what it is asked then is done by the next one.
    `node` is the name of the planner or of the middleware, `search` what the search is called in traces (`plan/1` for
    the first step), `thread` and `run` are the `thread_id` and the `run_id` of the graph's config, None where it has
    none. All methods may be called from any thread; after the search's end they have no effect.
    """

    def __init__(
        self, search: Search, *, node: str, thread: str | None, run: str | None, draining: Draining | None
    ) -> None:
        self.node, self.thread, self.run = node, thread, run
        self._search, self._draining = search, draining

    @classmethod
    def of(cls, search: Search, attempt: Attempt | None, *, node: str) -> Self:
        """The handle of a search that `attempt` drives; None outside a graph."""
        if attempt is None:
            return cls(search, node=node, thread=None, run=None, draining=None)
        return cls(search, node=node, thread=attempt.thread, run=attempt.run, draining=attempt.draining)

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

    def heed(self) -> bool:
        """Stop the search if its graph is asked to come to an end; whether it is."""
        reason = None if self._draining is None else self._draining()
        if reason is not None:
            self._search.cancel(f"the graph is draining: {reason}")
        return reason is not None


_lock = Lock()
_running: list[SearchHandle] = []
_looking: set[asyncio.AbstractEventLoop] = set()
"""Loops that look after the graphs of all searches. A timer for each search would cost a small decision too much."""


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
    """Let `running_searches` find `handle`, and stop its search when its graph is asked to come to an end.

    To be called in the loop that drives the search.
    """
    with _lock:
        _running.append(handle)
    loop = asyncio.get_running_loop()
    if loop not in _looking:
        _looking.difference_update([each for each in list(_looking) if each.is_closed()])
        _looking.add(loop)
        loop.call_later(LOOK, _look, loop)


def delist(handle: SearchHandle) -> None:
    """Its search has ended, or is left to another attempt. Harmless if it was never enlisted."""
    with _lock:
        if handle in _running:
            _running.remove(handle)


def _look(loop: asyncio.AbstractEventLoop) -> None:
    with _lock:
        running = list(_running)
    for handle in running:
        handle.heed()
    if running:
        loop.call_later(LOOK, _look, loop)
    else:
        _looking.discard(loop)
