"""One SGLang server over HTTP: its native API, and what its answers mean for whoever may ask again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import orjson

from tts_agent.engines.sglang.info import ServerInfo
from tts_agent.engines.sglang.server import FLUSH_SECONDS, Json, Refused, asked_wrongly, complaint
from tts_agent.errors import ConfigError, EngineUnavailable

CONNECT_SECONDS = 5.0
ASK_SECONDS = 60.0

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_REFUSED = (408, 425, 429, 500, 502, 503, 504)


class HttpServer:
    """The server at `address`. `timeout` bounds the seconds between two pieces of an answer.

    A streamed answer of SGLang begins (status 200) before anything is computed, so every other status, like a
    connection that was never made, means that nothing was: that is `Refused`. An answer that breaks off is an
    `EngineUnavailable`, since what was computed is not known.
    """

    def __init__(self, address: str, *, timeout: float, headers: Mapping[str, str]) -> None:
        self.address = address.rstrip("/")
        self._timeout = httpx.Timeout(timeout, connect=CONNECT_SECONDS, pool=None)
        self._headers = dict(headers)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._sync = httpx.Client(
            timeout=httpx.Timeout(ASK_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(keepalive_expiry=3.0),
            headers=self._headers,
        )

    @property
    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # The server closes idle connections after five seconds; one that it is closing must not be used. Streams
            # are left at their last event, so that theirs are closed: the pool looks at every idle one at each request,
            # which costs more than new ones where there are many.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=3.0)
            client = httpx.AsyncClient(timeout=self._timeout, limits=limits, headers=self._headers)
            self._clients[loop] = client
        return client

    def info(self) -> ServerInfo:
        """Ask for the server's settings. Raises `EngineUnavailable` if nobody answers."""
        return ServerInfo.from_json(self.address, self.ask("/server_info", None))

    def ask(self, path: str, body: Json | None) -> Any:
        """The JSON answer of a path, while the caller waits; GET without a `body`."""
        try:
            if body is None:
                answer = self._sync.get(self.address + path)
            else:
                answer = self._sync.post(self.address + path, content=orjson.dumps(body), headers=_JSON)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{self.address!r} is no address of a server: {error}") from error
        except httpx.TransportError as error:
            raise self.unavailable(error) from error
        return self._answer(path, answer)

    async def aask(self, path: str, body: Json | None, *, seconds: float = ASK_SECONDS) -> Any:
        """The same, without blocking the event loop."""
        try:
            if body is None:
                answer = await self._client.get(self.address + path, timeout=seconds)
            else:
                answer = await self._client.post(
                    self.address + path, content=orjson.dumps(body), headers=_JSON, timeout=seconds
                )
        except httpx.TransportError as error:
            raise self.unavailable(error) from error
        return self._answer(path, answer)

    def _answer(self, path: str, answer: httpx.Response) -> Any:
        if answer.status_code in _REFUSED:
            raise EngineUnavailable(f"the server at {self.address!r} answers {path} with {answer.status_code}")
        if answer.status_code != 200:
            raise ConfigError(
                f"the server at {self.address!r} answers {path} with {answer.status_code}: {answer.text[:300]!r}"
            )
        try:
            return orjson.loads(answer.content) if answer.content else None
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"the server at {self.address!r} answers {path} with no JSON: {error}") from error

    async def generate(self, body: Json, headers: Mapping[str, str]) -> AsyncGenerator[Json, None]:
        """The events of a streamed `/generate`. Raises `Refused`, `EngineUnavailable`, or what was wrong with it."""
        request = self._client.build_request(
            "POST", self.address + "/generate", content=orjson.dumps(body), headers={**_JSON, **headers}
        )
        try:
            answer = await self._client.send(request, stream=True)
        except _NEVER_SENT as error:
            raise Refused(f"{type(error).__name__}: {error}", gone=True) from error
        except httpx.TransportError as error:
            raise self.unavailable(error) from error
        try:
            if answer.status_code != 200:
                await answer.aread()
                if answer.status_code in _REFUSED:
                    raise Refused(f"status {answer.status_code}: {answer.text[:200]!r}")
                raise asked_wrongly(answer.text[:500])
            async for line in _lines(answer):
                if line == b"[DONE]":
                    return
                event = orjson.loads(line)
                if "error" in event:
                    raise complaint(event["error"])
                yield event
            raise EngineUnavailable(f"the server at {self.address!r} broke off its answer")
        except httpx.TransportError as error:
            raise self.unavailable(error) from error
        except orjson.JSONDecodeError as error:
            raise EngineUnavailable(f"the server at {self.address!r} sent what is no JSON: {error}") from error
        finally:
            await answer.aclose()

    async def flush(self) -> None:
        """Empty the cache. Raises `EngineUnavailable` if the server is busy or does not answer."""
        try:
            address = f"{self.address}/flush_cache?timeout={FLUSH_SECONDS}"
            answer = await self._client.post(address, timeout=ASK_SECONDS)
        except httpx.TransportError as error:
            raise self.unavailable(error) from error
        if answer.status_code != 200:
            raise EngineUnavailable(f"the server at {self.address!r} does not empty its cache: {answer.text[:200]!r}")

    async def abort(self, request: str) -> None:
        """Ask for the sample with this id to be stopped. Whether it was is told by its own stream."""
        body = orjson.dumps({"rid": request})
        # A server that does not answer has stopped it, or never will.
        with suppress(httpx.TransportError):
            await self._client.post(self.address + "/abort_request", content=body, headers=_JSON, timeout=ASK_SECONDS)

    def unavailable(self, error: Exception) -> EngineUnavailable:
        """The error to raise when the server cannot be reached, or stopped answering."""
        return EngineUnavailable(
            f"the SGLang server at {self.address!r} does not answer ({type(error).__name__}: {error}); is it running? "
            "Start it with python -m sglang.launch_server, or pass another address"
        )

    def close(self) -> None:
        """Close the connections used while waiting."""
        self._sync.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop and those used while waiting."""
        self.close()
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


_JSON = {"Content-Type": "application/json"}


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The data of server-sent events."""
    rest = b""
    async for piece in answer.aiter_raw():
        *whole, rest = (rest + piece).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield event[6:]
