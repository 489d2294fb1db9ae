"""Where completions and verdicts arrive."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple

from tts_agent.engines.base import Completion
from tts_agent.errors import EngineUnavailable
from tts_agent.thought import Unverified, Verdict

Order = Literal["arrival", "virtual", "barrier"]
"""`arrival`: as things happen. `virtual`: by virtual time, for engines that have one; the outcome does not depend on
the event loop. `barrier`: everything in flight ends first, then in the order of ids."""


class Job(NamedTuple):
    """What runs: the samples of an expansion, or the `number`-th round of questions."""

    kind: Literal["sample", "verify"]
    number: int


class Verdicts(NamedTuple):
    """Verdicts for thoughts, in the same order."""

    thoughts: list[int]
    verdicts: list[Verdict | Unverified]


class End(NamedTuple):
    """A job has ended; `error` if its engine gave up."""

    error: EngineUnavailable | None = None


Item = Completion | Verdicts | End


class Arrival(NamedTuple):
    job: Job
    item: Item


class Batch(NamedTuple):
    """Arrivals that are handled together; `at` is their virtual time, None on a real clock."""

    at: float | None
    arrivals: list[Arrival]


@dataclass(slots=True)
class _Running:
    at: float  # virtual time of what came last
    gate: float  # virtual time up to which its source may be read
    task: asyncio.Task[None] = field(init=False)
    opened: asyncio.Event | None = None  # the gate moves, while the source waits for it
    items: deque[tuple[float, Item]] = field(default_factory=deque)
    ended: bool = False

    def open(self, gate: float) -> None:
        """Let the source be read up to virtual time `gate`."""
        self.gate = gate
        if self.opened is not None:
            self.opened.set()


class Inbox:
    """Runs the jobs of one search (streams of completions, verifications) and hands out what they yield."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._jobs: dict[Job, _Running] = {}
        self._waiting: asyncio.Future[None] | None = None  # of the loop that waits for news
        self._crash: BaseException | None = None
        self._woken = False
        self.heard: Callable[[], None] | None = None
        """Called for every item that arrives."""

    def __len__(self) -> int:
        """Jobs that have not been handed out to their end."""
        return len(self._jobs)

    def add(self, job: Job, source: AsyncIterator[Completion | Verdicts], at: float) -> None:
        """Run `source` to its end as `job`, begun at virtual time `at`."""
        entry = self._jobs[job] = _Running(at, at)
        entry.task = asyncio.create_task(self._pump(entry, source))

    async def _pump(self, entry: _Running, source: AsyncIterator[Completion | Verdicts]) -> None:
        error: EngineUnavailable | None = None
        try:
            async for item in source:
                at = item.at if isinstance(item, Completion) else None
                self._put(entry, item, entry.at if at is None else max(at, entry.at))
                # On virtual time a source is not read ahead of the clock: what is aborted before its time never ended.
                while self.order == "virtual" and entry.at > entry.gate:
                    entry.opened = asyncio.Event()
                    await entry.opened.wait()
        except EngineUnavailable as unavailable:
            error = unavailable
        except asyncio.CancelledError:
            raise
        except BaseException as crash:
            # A defect of an engine or verifier: it must not hang the search, which raises it from `batch`.
            self._crash = crash
            self._tell()
            return
        entry.ended = True
        self._put(entry, End(error), entry.at)

    def _put(self, entry: _Running, item: Item, at: float) -> None:
        entry.at = at
        entry.items.append((at, item))
        if self.heard is not None:
            self.heard()
        self._tell()

    def _tell(self) -> None:
        """There is news."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def batch(self, timeout: float | None, horizon: float | None = None) -> Batch:
        """The arrivals to handle next.

        Empty after `timeout` seconds, after `wake`, and, on virtual time, when nothing ends by the virtual time
        `horizon`.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None or timeout == inf else loop.time() + timeout
        while self._crash is None:
            ready = self._ready(horizon)
            if ready is not None:
                return ready
            if self._woken:
                self._woken = False
                return Batch(None, [])
            self._waiting = loop.create_future()
            if deadline is None:
                await self._waiting
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await self._waiting
            except TimeoutError:
                return Batch(None, [])
        raise self._crash

    def _ready(self, horizon: float | None) -> Batch | None:
        jobs = self._jobs
        if self.order == "arrival":
            taken = self._take()
            return Batch(None, taken) if taken else None
        if self.order == "barrier":
            if not jobs or not all(job.ended for job in jobs.values()):
                return None
            now = max(job.at for job in jobs.values())
            if horizon is not None and now > horizon:
                return Batch(horizon, [])
            return Batch(now, sorted(self._take(), key=_rank))
        if not jobs or not all(job.items for job in jobs.values()):
            return None  # something earlier may still come
        now = min(job.items[0][0] for job in jobs.values())
        if horizon is not None and now > horizon:
            return Batch(horizon, [])
        unread = [job for job in jobs.values() if not job.ended and job.at <= now]
        for job in unread:
            job.open(now)
        if unread:
            return None
        return Batch(now, sorted(self._take(now), key=_rank))

    def _take(self, until: float = inf) -> list[Arrival]:
        taken: list[Arrival] = []
        for key, job in list(self._jobs.items()):
            items = job.items
            while items and items[0][0] <= until:
                taken.append(Arrival(key, items.popleft()[1]))
            if job.ended and not items:
                del self._jobs[key]
        return taken

    def wake(self) -> None:
        """Let `batch` return now, or at once when it is called next."""
        self._woken = True
        self._tell()

    async def close(self, job: Job) -> list[Item]:
        """Wait for `job`, whose source was aborted and ends by itself; what it had not handed out."""
        entry = self._jobs.pop(job, None)
        if entry is None:
            return []
        entry.open(inf)
        await asyncio.gather(entry.task, return_exceptions=True)
        return [item for _, item in entry.items]

    async def drop(self, job: Job) -> None:
        """Stop `job` and forget what it has not handed out."""
        entry = self._jobs.pop(job, None)
        if entry is not None:
            entry.task.cancel()
            await asyncio.gather(entry.task, return_exceptions=True)


def _rank(arrival: Arrival) -> tuple[bool, Job, int]:
    # Completions and verdicts before the ends of jobs, each in the order of ids.
    item = arrival.item
    return (isinstance(item, End), arrival.job, item.index if isinstance(item, Completion) else -1)
