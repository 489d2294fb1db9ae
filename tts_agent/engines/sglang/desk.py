"""How a request gets to a server: which one, when, and how often it is tried."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from tts_agent.engines.sglang.body import Extras, Json, scoring_body
from tts_agent.engines.sglang.pool import Pool
from tts_agent.engines.sglang.reply import Reply, read_reply
from tts_agent.engines.sglang.server import Refused, asked_wrongly
from tts_agent.engines.sglang.worker import Worker
from tts_agent.errors import EngineUnavailable

T = TypeVar("T")

ABORT_SECONDS = 10.0
"""How long a server may take to confirm that samples were stopped."""

ROUTING_HEADER = "x-smg-routing-key"
"""By which sglang-router's policy `manual` keeps the requests of one tree together."""


@dataclass(slots=True)
class Live:
    """Samples that a server may be running: their ids, and where."""

    at: dict[str, Worker] = field(default_factory=dict)


class Desk:
    """Sends the requests of one engine. What a server has begun with is never sent again; what it refused is, at most
    `attempts` times in all, to the next server if there is one, after a pause that grows and is never the same.
    """

    def __init__(self, pool: Pool, extras: Extras, *, attempts: int) -> None:
        self.pool, self.extras = pool, extras
        self.refused = 0
        """Attempts that a server had not begun with."""
        self._attempts = attempts
        self._errands: set[asyncio.Task[None]] = set()

    async def with_worker(self, ids: tuple[int, ...], work: Callable[[Worker], Coroutine[Any, Any, T]]) -> T:
        """The result of `work` at the server where the prefix `ids` is at home, or at another if that one is gone."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._attempts),
            wait=wait_exponential(multiplier=0.05, max=2.0) + wait_random(0, 0.1),
            retry=retry_if_exception_type(Refused),
        )
        address = ", ".join(worker.address for worker in self.pool.workers)
        try:
            async for attempt in attempts:
                with attempt:
                    worker = await self.pool.choose(ids)
                    address = worker.address
                    with self.pool.watching(worker):
                        try:
                            return await work(worker)
                        except Refused as refused:
                            self.refused += 1
                            if refused.gone:
                                worker.fail()
                            raise
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise EngineUnavailable(
                f"the SGLang server at {address!r} refused a request {self._attempts} times, the last with {cause}; is "
                "it running and not overloaded? See its log, or pass another address"
            ) from cause
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def replies(self, worker: Worker, body: Json, tree: str, live: Live) -> AsyncIterator[AsyncIterator[Reply]]:
        """The replies to a request; its samples are in `live` until they end. Left early, they are stopped."""
        ids: Sequence[str] = body["rid"]
        live.at.update((request, worker) for request in ids)
        events = worker.server.generate(body, {ROUTING_HEADER: tree})
        try:
            async with aclosing(events), aclosing(_read(events, ids, live)) as replies:
                yield replies
        finally:
            self.leave({request: worker for request in ids if live.at.pop(request, None)})

    async def warm(self, worker: Worker, ids: tuple[int, ...], tree: str) -> int:
        """Have `ids` computed and kept; how many tokens that took."""
        body = scoring_body([ids], self.extras)
        computed = 0
        async with self.replies(worker, body, tree, Live()) as replies:
            async for reply in replies:
                refuse(reply)
                computed = reply.prompt - reply.cached
        self.pool.learn(worker, tree, ids, run=len(ids))
        return computed

    def leave(self, requests: dict[str, Worker]) -> None:
        """Stop samples that nobody waits for, in the background."""
        if requests:
            errand = asyncio.get_running_loop().create_task(stop(requests))
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)

    async def aclose(self) -> None:
        """Wait until what was left is stopped."""
        await asyncio.gather(*self._errands, return_exceptions=True)


async def _read(events: AsyncIterator[Json], ids: Sequence[str], live: Live) -> AsyncGenerator[Reply, None]:
    async for event in events:
        reply = read_reply(event)
        if reply.finish is not None:
            live.at.pop(ids[reply.place], None)
        yield reply
    if any(request in live.at for request in ids):
        raise EngineUnavailable("the server ended its answer with fewer samples than were asked for")


async def stop(requests: dict[str, Worker]) -> None:
    """Ask for samples to be stopped."""
    await asyncio.gather(*(worker.server.abort(request) for request, worker in requests.items()))


def refuse(reply: Reply) -> None:
    """Raise `Refused` for a sample that the server has not begun, `ConfigError` for one that it never will, such as one
    under a grammar that it cannot read, `EngineUnavailable` for one that it gave up.
    """
    if reply.finish == "abort":
        if reply.code in (429, 503) and not reply.ids:
            raise Refused(reply.message)
        if reply.code == 400:
            raise asked_wrongly(reply.message)
        raise EngineUnavailable(f"the server stopped a sample: {reply.message or 'no reason given'}")
