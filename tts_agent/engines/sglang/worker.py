"""One server among those that a search uses: whether it answers, how full it is, and what it has computed."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from tts_agent.engines.sglang.info import ServerInfo
from tts_agent.engines.sglang.memory import Memory
from tts_agent.engines.sglang.server import Server
from tts_agent.errors import ConfigError, EngineUnavailable

DOWN_SECONDS = 2.0
"""How long a server that did not answer is left alone, if there is another."""

LOAD_SECONDS = 0.25
"""How old the server's own account of its load may be where it decides."""

CROWDED = 0.9
"""Share of the cache in use from which others' load makes a request wait."""

PATIENCE_SECONDS = 5.0
"""How long others' load makes a request wait; the server queues it after that."""


@dataclass(slots=True)
class Lane:
    """What one event loop has under way at a server."""

    held: int = 0  # tokens that running requests may write to the cache
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    heating: dict[int, asyncio.Event] = field(default_factory=dict)  # cold prefixes that are being computed

    @asynccontextmanager
    async def heats(self, ids: tuple[int, ...]) -> AsyncIterator[Callable[[], None]]:
        """Whoever else asks for the cold prefix `ids` waits until the end, or until what this yields is called."""
        key, done = hash(ids), asyncio.Event()
        self.heating[key] = done

        def heated() -> None:
            self.heating.pop(key, None)
            done.set()

        try:
            yield heated
        finally:
            heated()


class Worker:
    """The server at the other end of `server`. Usable from any number of event loops."""

    def __init__(self, number: int, server: Server, info: ServerInfo | None) -> None:
        self.number, self.server, self.info = number, server, info
        self.memory = Memory()
        self._down_until = 0.0
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, Lane] = WeakKeyDictionary()
        self._looked_at = 0.0
        self._crowded = False

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def lane(self) -> Lane:
        return self._lanes.setdefault(asyncio.get_running_loop(), Lane())

    @property
    def up(self) -> bool:
        """Whether it may be asked: it answered the last time, or was left alone long enough."""
        return time.monotonic() >= self._down_until

    def fail(self) -> None:
        """It did not answer. If it comes back, it has an empty cache."""
        self._down_until = time.monotonic() + DOWN_SECONDS
        self.memory.forget()

    async def check(self) -> None:
        """Make sure that it answers if it did not before. Raises `EngineUnavailable` or `ConfigError`."""
        if self._down_until or self.info is None:
            try:
                # NOTE: not /health, which generates a token and leaves it in the cache.
                data = await self.server.aask("/server_info", None, seconds=5.0)
            except EngineUnavailable:
                self.fail()
                raise
            workers = self.info.workers if self.info is not None else 0
            self.info = replace(ServerInfo.from_json(self.address, data), workers=workers)
            self._down_until = 0.0

    @asynccontextmanager
    async def admitted(self, tokens: int) -> AsyncIterator[None]:
        """Wait until so many more tokens fit into the server's cache beside what runs."""
        lane = self.lane
        capacity = self.info.capacity * max(self.info.workers, 1) if self.info is not None else tokens
        begun = time.monotonic()
        while lane.held and (lane.held + tokens > capacity or await self._full(lane, capacity, begun)):
            lane.changed.clear()
            try:
                await asyncio.wait_for(lane.changed.wait(), LOAD_SECONDS)
            except TimeoutError:
                continue
        lane.held += tokens
        try:
            yield
        finally:
            lane.held -= tokens
            lane.changed.set()

    async def _full(self, lane: Lane, capacity: int, begun: float) -> bool:
        """Whether others leave no room; asked only where our own requests fill half of it."""
        now = time.monotonic()
        if 2 * lane.held < capacity or now - begun > PATIENCE_SECONDS:
            return False
        if now - self._looked_at > LOAD_SECONDS:
            self._looked_at = now
            try:
                loads = (await self.server.aask("/v1/loads", None, seconds=2.0))["loads"]
            except (EngineUnavailable, ConfigError):
                return False  # a server without this account is only asked to queue
            waiting = sum(int(load.get("num_waiting_reqs", 0)) for load in loads)
            used = max((float(load.get("token_usage", 0.0)) for load in loads), default=0.0)
            self._crowded = waiting > 0 and used > CROWDED
        return self._crowded
