"""Servers behind sglang-router."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from tts_agent.engines.sglang.http import ASK_SECONDS, HttpServer
from tts_agent.engines.sglang.info import ServerInfo
from tts_agent.engines.sglang.server import Json, Refused
from tts_agent.errors import ConfigError, EngineUnavailable

BY_SAMPLE = ("input_ids", "rid", "sampling_params", "token_ids_logprob")
"""Fields of a request that have an entry for each sample."""


def behind(server: HttpServer) -> list[str]:
    """The addresses of the workers, if `server` is a router; none otherwise, and if nobody answers."""
    try:
        found = server.ask("/workers", None)
    except (ConfigError, EngineUnavailable):
        return []
    workers = found.get("workers") if isinstance(found, dict) else None
    return [str(worker["url"]) for worker in workers] if isinstance(workers, list) else []


class RoutedServer:
    """The `workers` behind the router `front`, as one server; see `Server`.

    The router says which worker computes a request. It passes on single requests, and of their fields those that it
    knows: there are no seeds, no thinking caps, and an event for every token. What the servers are, how full, and that
    samples be stopped, is asked of the workers themselves, which must be in reach from here.
    """

    def __init__(self, front: HttpServer, workers: Sequence[HttpServer]) -> None:
        self._front, self._workers = front, list(workers)

    @property
    def address(self) -> str:
        return self._front.address

    def info(self) -> ServerInfo:
        """See `Server.info`. Raises `EngineUnavailable` if no worker can be reached."""
        infos, problem = [], None
        for worker in self._workers:
            try:
                infos.append(worker.info())
            except EngineUnavailable as error:
                problem = error
        if not infos:
            raise EngineUnavailable(
                f"{self.address!r} is a router whose workers cannot be reached from here ({problem}); run the search "
                "where they can, or pass the address of a server"
            ) from problem
        return replace(
            infos[0],
            address=self.address,
            workers=len(self._workers),
            capacity=min(info.capacity for info in infos),
            processors=False,
            strict_thinking=False,
        )

    def ask(self, path: str, body: Json | None) -> Any:
        """See `Server.ask`; all workers answer alike, so the first that answers is taken."""
        for worker in self._workers:
            try:
                return worker.ask(path, body)
            except EngineUnavailable as error:
                problem = error
        raise problem

    async def aask(self, path: str, body: Json | None, *, seconds: float = ASK_SECONDS) -> Any:
        """See `Server.aask`; how full it is, all workers tell together."""
        if path == "/v1/loads":
            answers = await asyncio.gather(*(worker.aask(path, body, seconds=seconds) for worker in self._workers))
            return {"loads": [load for answer in answers for load in answer["loads"]]}
        for worker in self._workers:
            try:
                return await worker.aask(path, body, seconds=seconds)
            except EngineUnavailable as error:
                problem = error
        raise problem

    async def generate(self, body: Json, headers: Mapping[str, str]) -> AsyncGenerator[Json, None]:
        """See `Server.generate`. A sample that was refused alone is told as one that the server has stopped."""
        singles = [_single(body, place) for place in range(len(body["rid"]))]
        news: asyncio.Queue[Json | Exception | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._follow(one, i, headers, news)) for i, one in enumerate(singles)]
        try:
            running = len(tasks)
            while running:
                what = await news.get()
                if isinstance(what, Exception):
                    raise what
                if what is None:
                    running -= 1
                else:
                    yield what
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(
        self, body: Json, place: int, headers: Mapping[str, str], news: "asyncio.Queue[Json | Exception | None]"
    ) -> None:
        try:
            async with aclosing(self._front.generate(body, headers)) as events:
                async for event in events:
                    news.put_nowait({**event, "index": place})
        except Refused as refused:
            news.put_nowait(_stopped(place, refused))
        except (EngineUnavailable, ConfigError) as error:
            news.put_nowait(error)
        news.put_nowait(None)

    async def flush(self) -> None:
        """See `Server.flush`."""
        await asyncio.gather(*(worker.flush() for worker in self._workers))

    async def abort(self, request: str) -> None:
        """See `Server.abort`. Nobody tells which worker runs a sample, and whoever does not is not harmed."""
        await asyncio.gather(*(worker.abort(request) for worker in self._workers))

    def close(self) -> None:
        """See `Server.close`."""
        for server in (self._front, *self._workers):
            server.close()

    async def aclose(self) -> None:
        """See `Server.aclose`."""
        await asyncio.gather(*(server.aclose() for server in (self._front, *self._workers)))


def _single(body: Json, place: int) -> Json:
    """The request for one sample of `body`."""
    single = body | {name: body[name][place] for name in BY_SAMPLE if name in body}
    if "cache_salt" in single:
        single["extra_key"] = single.pop("cache_salt")  # the one of the two that the router passes on
    return single


def _stopped(place: int, refused: Refused) -> Json:
    """An event for a sample that nobody has begun."""
    finish = {"type": "abort", "status_code": 503, "message": str(refused)}
    return {
        "index": place,
        "output_ids": [],
        "meta_info": {"finish_reason": finish, "prompt_tokens": 0, "cached_tokens": 0},
    }
