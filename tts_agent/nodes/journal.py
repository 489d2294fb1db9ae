"""Where a search in a graph is made durable: one task of LangGraph a chunk.

The results of finished tasks lie in the checkpointer as pending writes. When a graph resumes, its node runs again from
the top, the tasks it calls give back their stored results in the order of the calls, and the search goes on where
they end. `Conversation` says what is to be done next and knows nothing of threads; the two ways to do it, with and
without `await`, are in `plan.py`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

from tts_agent.budget import NOTHING
from tts_agent.errors import EngineUnavailable, SearchError
from tts_agent.events import COMMIT, Decode, Event, Granted, log_from_json, log_to_json
from tts_agent.outcome import Outcome
from tts_agent.search import Search
from tts_agent.trace.recorder import Recorder

Chunk = dict[str, Any]
"""A part of a search's log as plain JSON: its `id`, the id of the chunk it comes `after`, and its `events`."""

PATIENCE = 60.0
"""Seconds that a checkpointer may take to make a chunk durable."""


class Ask(Enum):
    """What a conversation wants next."""

    CHUNK = "chunk"  # call the next task and send its result
    DURABLE = "durable"  # wait until the checkpoint has all chunks; at once if nothing is stored


class Conversation:
    """One search of a graph's node, live or given back by the checkpointer.

    `make(log)` makes the search, resumed from `log`. Chunks are linked by their ids: savers may store tasks out of
    order, so that after a kill a chunk may come back whose predecessor is lost. It is passed over; what it spent is
    covered by the last grant that did come back. `known` is the log of an earlier attempt of this process, written to
    the journal anew.
    """

    def __init__(
        self,
        make: Callable[[Sequence[Event]], Search],
        *,
        known: Sequence[Event] = (),
        decode: Decode,
        recorder: Recorder | None,
        flush_events: int,
        flush_seconds: float,
    ) -> None:
        self._make, self._decode, self._recorder = make, decode, recorder
        self._max_events, self._max_seconds = flush_events, flush_seconds
        self._log = list(known)  # of the search so far, before it is live
        self._search: Search | None = None
        self._outage: EngineUnavailable | None = None
        self._tip = uuid4().hex if known else ""  # id of the newest chunk that counts
        self._live = ""  # id of the newest chunk of this process
        self._driving: asyncio.Task[Any] | None = None  # runs `advance`
        self._written = 0  # events of the search's log that are in chunks
        self._unconfirmed: set[str] = set()

    def asks(self) -> Iterator[Ask]:
        """What to do next, until the search is done: `take` a chunk, or wait until all of them are `confirmed`."""
        while self._search is None or not self._search.done:
            yield Ask.CHUNK
            if self._outage is not None:
                raise self._outage
            if self._search is not None and self._search.starved:
                yield Ask.DURABLE
                self._search.confirm()

    def take(self, chunk: Chunk) -> None:
        """Fold a chunk that was given back; one of this process is in the search already."""
        if chunk["after"] == self._tip and chunk["id"] == (self._live or chunk["id"]):
            self._tip = chunk["id"]
            if self._search is None:
                self._log += log_from_json(chunk["events"], self._decode)
                self._written = len(self._log)

    def confirmed(self, saved: CheckpointTuple | None) -> bool:
        """Whether all chunks of this process are in the checkpoint `saved`."""
        values = (value for _, _, value in (saved.pending_writes or ())) if saved is not None else ()
        self._unconfirmed -= {value["id"] for value in values if isinstance(value, dict) and "after" in value}
        return not self._unconfirmed

    def outcome(self) -> Outcome:
        """The result, once `asks` has ended."""
        assert self._search is not None
        return self._search.outcome()

    # --- what the task does

    async def advance(self) -> Chunk:
        """Drive the search to its next chunk. Not called for a chunk that is given back."""
        self._driving = asyncio.current_task()
        search = self._search or await self._begin()
        try:
            await search.chunk(max_events=self._max_events, max_seconds=self._max_seconds)
        except EngineUnavailable as outage:
            await search.aclose()
            self._outage = outage
        events = (self.settled() if self._outage is not None else search.log)[self._written :]
        self._written = len(search.log)
        await self._record(events)
        self._live = uuid4().hex
        self._unconfirmed.add(self._live)
        return {"id": self._live, "after": self._tip, "events": log_to_json(events, self._decode)}

    async def _begin(self) -> Search:
        self._search = self._make(self._log)
        await self._record(self._log)  # the trace may have been cut elsewhere than the journal: it begins anew
        return self._search

    async def _record(self, events: Sequence[Event]) -> None:
        if self._recorder is not None:
            await self._recorder.append(events)

    def settled(self) -> list[Event]:
        """The log of a search that was closed: nothing is under way, and its last grant leaves nothing to be lost."""
        if self._search is None:
            return self._log
        ledger = self._search.ledger
        used = ledger.committed.minus(ledger.reservations.get(COMMIT, NOTHING))
        ceiling = (None if limit is None else used[unit] for unit, limit in enumerate(ledger.limits()))
        return [*self._search.log, Granted(tuple(ceiling))]

    async def aclose(self) -> None:
        """Abort what runs. Harmless after the end."""
        driving, self._driving = self._driving, None
        if driving is not None and driving is not asyncio.current_task() and not driving.done():
            # A cancelled graph does not wait for its tasks, and nobody else may drive a search that is being closed.
            driving.cancel()
            await asyncio.wait([driving])
        if self._search is not None:
            await self._search.aclose()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tasks of a running entrypoint are stored."""

    saver: BaseCheckpointSaver[Any]
    checkpoint: RunnableConfig

    @classmethod
    def find(cls, config: RunnableConfig) -> Self | None:
        """The place of the entrypoint whose config this is; None if nothing is stored before the graph ends."""
        settings = config.get("configurable", {})
        # NOTE: LangGraph gives a node no public way to its checkpointer. Without these keys nothing counts as
        # durable, which is safe: no grants, and a kill begins the step again.
        saver = settings.get("__pregel_checkpointer")
        if not isinstance(saver, BaseCheckpointSaver) or settings.get("__pregel_durability") == "exit":
            return None
        space = settings["checkpoint_ns"].rpartition("|")[0]
        address = {
            "thread_id": settings["thread_id"],
            "checkpoint_ns": space,
            "checkpoint_id": settings["checkpoint_map"][space],
        }
        return cls(saver, {"configurable": address})

    def wait(self, confirmed: Callable[[CheckpointTuple | None], bool]) -> None:
        """Look at the checkpoint until `confirmed`."""
        pauses = _pauses()
        while not confirmed(self.saver.get_tuple(self.checkpoint)):
            time.sleep(next(pauses))

    async def await_(self, confirmed: Callable[[CheckpointTuple | None], bool]) -> None:
        """Look at the checkpoint until `confirmed`, without blocking the loop."""
        pauses = _pauses()
        while not confirmed(await self.saver.aget_tuple(self.checkpoint)):
            await asyncio.sleep(next(pauses))


def _pauses() -> Iterator[float]:
    """Seconds to wait between two looks at the checkpoint. Raises `SearchError` when patience ends."""
    waited, pause = 0.0, 0.001
    while waited < PATIENCE:
        yield pause
        waited += pause
        pause = min(pause * 2, 0.1)
    raise SearchError(f"the checkpointer did not store the search's log in {PATIENCE:.0f} s; see whether it works")
