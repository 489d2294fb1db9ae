"""Where a search in a graph is made durable: one task of LangGraph a chunk.

The results of finished tasks lie in the checkpointer as pending writes. When a graph resumes, its node runs again from
the top, the tasks it calls give back their stored results in the order of the calls, and the search goes on where
they end. `Conversation` says what is to be done next and knows nothing of threads; the two ways to do it, with and
without `await`, are in `plan.py`.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage
from langgraph.checkpoint.base import CheckpointTuple

from tts_agent.errors import ConfigError, EngineUnavailable, LogError
from tts_agent.events import (
    Chosen,
    Decode,
    Deepened,
    Event,
    log_from_json,
    log_to_json,
)
from tts_agent.nodes.attempt import Attempt, Left, same_step
from tts_agent.nodes.handle import SearchHandle, delist, enlist
from tts_agent.nodes.review import CHOSE, WROTE, Answer, Choose, Edit, More, Review, is_more, read_edit
from tts_agent.outcome import Outcome
from tts_agent.search import Search
from tts_agent.trace.recorder import Recorder

Chunk = dict[str, Any]
"""A part of a search's log as plain JSON: its `id`, the key of the plan call it is `of`, the id of the chunk it comes
`after` ("" for the first), its `events`, and which `turn` at the search wrote it: each process and each attempt has its
own, a later one a higher."""


class Ask(Enum):
    """What a conversation wants next."""

    RECALL = "recall"  # say what other attempts stored elsewhere; nothing if nothing is stored
    CHUNK = "chunk"  # call the next task and send its result
    DURABLE = "durable"  # wait until the checkpoint has all chunks; at once if nothing is stored
    REVIEW = "review"  # put the question to a human and send the answer


class Conversation:
    """One search of a graph's node, live or given back by the checkpointer.

    `make(log)` makes the search, resumed from `log`. Chunks are linked by their ids: savers may store tasks out of
    order, so that after a kill a chunk may come back whose predecessor is lost. It is passed over; what it spent is
    covered by the last grant that did come back. Of two chunks after the same one the later turn's counts.

    `of` is the key of the plan call. Its task may make others, side by side or in another order after a kill, so that
    chunks of any of them may come back here; only its own count.

    `left` is what an earlier attempt of this process left: it is gone on with if what is stored ends where that attempt
    knew it to end, so that no other process was at it since. `review(search)` is the review that the end asks for.
    """

    def __init__(
        self,
        make: Callable[[Sequence[Event]], Search],
        *,
        node: str,
        of: str,
        attempt: Attempt | None,
        left: Left | None,
        decode: Decode,
        recorder: Recorder | None,
        flush_events: int,
        flush_seconds: float,
        review: Callable[[Search], Review | None],
    ) -> None:
        self._make, self._decode, self._recorder, self._review_of = make, decode, recorder, review
        self._node, self._of, self._attempt, self._left = node, of, attempt, left
        self._max_events, self._max_seconds = flush_events, flush_seconds
        self._log: list[Event] = []  # of the search so far, before it is live
        self._search: Search | None = None
        self._handle: SearchHandle | None = None  # of a search that is driven here
        self._outage: EngineUnavailable | None = None
        self._tip = ""  # id of the newest chunk that counts
        self._live = ""  # id of the newest chunk of this process
        self._driving: asyncio.Task[Any] | None = None  # runs `advance`
        self._written = 0  # events of the search's log that are in chunks
        self._recorded = 0  # events of it that are in the trace
        self._ends = {"": 0}  # id of a chunk -> events of the log up to its end
        self._unconfirmed: set[str] = set()
        self._closed = False
        self._seen = 0  # events of the log that were looked at for what follows
        self._ended, self._reopened = False, 0
        self._decided = ""  # how a reviewer decided
        self._deepened = 0  # reviews that were answered with more budget
        self._order: Answer | None = None  # an answer that is not in the log yet
        self._review: Review | None = None
        self._error = ""
        self.edit: AIMessage | None = None
        """The decision that a reviewer wrote."""
        self._elsewhere: dict[str, Chunk] = {}  # what other attempts stored, by the chunk it comes after
        self._strange: list[Chunk] = []  # first chunks of other calls for the same step, given back in place of ours
        self._turn = 1 if left is None else left.turn + 1

    # --- what to do next

    def asks(self) -> Iterator[Ask]:
        """What to do next, until the decision.

        First `recall`, then `take` a chunk, wait until all are `confirmed`, `answer` a review.
        """
        yield Ask.RECALL
        while True:
            while self._deepened < self._reopened:
                yield Ask.REVIEW
            while not self._ended or self._order is not None:
                yield from self._go_on()
            if not self._asks_review():
                return
            yield Ask.REVIEW

    def _go_on(self) -> Iterator[Ask]:
        yield Ask.CHUNK
        if self._outage is not None:
            raise self._outage
        if self._search is not None and self._search.starved:
            yield Ask.DURABLE
            self._search.confirm()

    def recall(self, chunks: Iterable[Any]) -> None:
        """Know of what other attempts stored. LangGraph gives a retry nothing back, and what it stores to nobody."""
        for chunk in chunks:
            if is_chunk(chunk) and chunk["of"] == self._of:
                known = self._elsewhere.get(chunk["after"])
                if known is None or known["turn"] < chunk["turn"]:
                    self._elsewhere[chunk["after"]] = chunk

    def take(self, chunk: Chunk) -> None:
        """Fold a chunk that was given back; one of this process is in the search already."""
        if chunk["id"] == self._live:
            self._tip = self._live
        elif chunk["of"] != self._of:
            if not chunk["after"] and same_step(chunk["of"], self._of):
                self._strange.append(chunk)
        elif not self._live:
            self._catch_up()
            if chunk["after"] == self._tip:
                self._fold(chunk)

    def _catch_up(self) -> None:
        while (chunk := self._elsewhere.pop(self._tip, None)) is not None:
            self._fold(chunk)

    def _fold(self, chunk: Chunk) -> None:
        self._log.extend(log_from_json(chunk["events"], self._decode))  # first: another version's is read no further
        self._search = None  # of the log so far
        self._tip, self._turn = chunk["id"], max(self._turn, chunk["turn"] + 1)
        self._written = self._ends[self._tip] = len(self._log)
        self._look(self._log)

    def confirmed(self, saved: CheckpointTuple | None) -> bool:
        """Whether all chunks of this process are in the checkpoint `saved`."""
        values = (value for _, _, value in (saved.pending_writes or ())) if saved is not None else ()
        self._unconfirmed -= {value["id"] for value in values if is_chunk(value)}
        return not self._unconfirmed

    def outcome(self) -> Outcome:
        """The result, once `asks` has ended."""
        return self._whole().outcome()

    def told(self) -> Outcome:
        """The result of a search that had ended, from what was recalled."""
        self._catch_up()
        if not self._ended:
            raise LogError("the journal of a search that had ended is gone from the checkpointer; begin a new run")
        return self.outcome()

    def _whole(self) -> Search:
        """The search, which may not be driven any more."""
        if self._search is None:
            self._search = self._make(self._log)
        return self._search

    # --- reviews

    def _look(self, log: Sequence[Event]) -> None:
        """Take note of what `log` says of ends and reviews since the last look."""
        for event in log[self._seen :]:
            if isinstance(event, Chosen):
                self._ended, self._decided = True, event.reason if event.reason in (CHOSE, WROTE) else ""
                self._order = None
            elif isinstance(event, Deepened) and self._ended:
                self._ended, self._decided, self._order, self._review = False, "", None, None
                self._reopened += 1
        self._seen = len(log)

    def _asks_review(self) -> bool:
        """Whether a human is to be asked about the search, which is done, or for what they wrote, which no log has."""
        if self._decided:
            return self._decided == WROTE and self.edit is None
        if self._review is None:
            self._review = self._review_of(self._whole())
        return self._review is not None

    def question(self) -> dict[str, Any]:
        """What to ask the reviewer."""
        return {"type": "tts.review"} if self._review is None else self._review.question(self._error)

    def answer(self, answer: Any) -> None:
        """Take a reviewer's answer; one that cannot be used is asked for again."""
        if self._review is None:  # it was given before, and its search went on: only its place is of interest
            self._deepened += is_more(answer)
            self.edit = read_edit(answer) if self._decided else None
            return
        try:
            self._order = self._review.read(answer)
        except ConfigError as error:
            self._error = str(error)
            return
        self._error = ""
        self._deepened += isinstance(self._order, More)
        if isinstance(self._order, Edit):
            self.edit = self._order.message

    # --- what the task does

    async def advance(self) -> Chunk:
        """Drive the search to its next chunk. Not called for a chunk that is given back."""
        self._driving = asyncio.current_task()
        search = self._search if self._handle is not None and self._search is not None else await self._begin()
        self._obey(search)
        try:
            await search.chunk(max_events=self._max_events, max_seconds=self._max_seconds)
        except EngineUnavailable as outage:
            await search.aclose()
            self._outage = outage
        log = search.log if self._outage is None else search.left()
        events, self._written = log[self._written :], len(log)
        self._look(log)
        await self._record(log)
        self._live = uuid4().hex
        self._ends[self._live] = self._written
        self._unconfirmed.add(self._live)
        written = log_to_json(events, self._decode)
        return {"id": self._live, "of": self._of, "after": self._tip, "turn": self._turn, "events": written}

    async def _begin(self) -> Search:
        left = self._left
        self._catch_up()
        if left is not None and left.ends.get(self._tip) == len(self._log):
            self._log, self._search = left.log, None
            self._look(self._log)
        if not self._log:
            self._recognise()
        search = self._whole()
        await self._record(self._log)  # the trace may have been cut elsewhere than the journal: it begins anew
        if self._attempt is not None:
            search.listen(self._attempt.heartbeat)
        self._handle = SearchHandle.of(search, self._attempt, node=self._node)
        enlist(self._handle)
        return search

    def _recognise(self) -> None:
        """Raise `LogError` if what was given back is of no call that this process made: this one has changed since."""
        for chunk in self._strange:
            if self._attempt is not None and chunk["of"] not in self._attempt.calls:
                raise LogError(
                    f"the journal is of a search with another root, on engine {chunk['events'][0].get('engine')!r}; "
                    "resume with what it was begun with, or start a new run"
                )

    def _obey(self, search: Search) -> None:
        """Do what a reviewer answered, if an attempt before this one did not."""
        order, self._order = self._order, None
        match order:
            case More(limits) if self._deepened > self._reopened:
                search.deepen(limits)
            case Choose(thought) if not self._decided:
                search.choose(thought, CHOSE)
            case Edit() if not self._decided:
                search.choose(None, WROTE)

    async def _record(self, log: Sequence[Event]) -> None:
        if self._recorder is not None:
            fresh, self._recorded = log[self._recorded :], len(log)
            await self._recorder.append(fresh)

    # --- the end of the attempt

    async def aclose(self) -> None:
        """Abort what runs. Harmless after the end."""
        driving, self._driving = self._driving, None
        if driving is not None and driving is not asyncio.current_task() and not driving.done():
            # A cancelled graph does not wait for its tasks, and nobody else may drive a search that is being closed.
            driving.cancel()
            await asyncio.wait([driving])
        if self._search is not None:
            await self._search.aclose()
        self._closed = True

    def leave(self) -> Left | None:
        """What the next attempt needs to know, if this one did not come to its end. The search is not listed now."""
        search = self._search
        if self._handle is None or search is None:
            return self._left
        delist(self._handle)
        if search.done:
            return Left(search.log, self._ends, self._turn)
        if not self._closed:  # whoever closed it was cancelled, and nobody knows what was used: only the journal counts
            return None
        return Left(search.left(), self._ends, self._turn)


def is_chunk(value: Any) -> bool:
    """Whether a stored value is a chunk of a search's log."""
    return isinstance(value, dict) and "turn" in value and "after" in value
