"""One call of a chat model: sampled whole, or shown while it is said."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessageChunk

from tts_agent.chat_models.spoken import Spoken, reasoning_kwargs
from tts_agent.chat_models.unfolding import Unfolding, before
from tts_agent.chat_models.voice import Asked
from tts_agent.engines.base import Completion, Engine, Sampling, Stream, Tell, Teller
from tts_agent.errors import PromptError

SHARE = 0.2
"""Most of the time that a stream spends on making text of what was said so far."""


class ContextOverflow(PromptError, ContextOverflowError):
    """A conversation and its answer do not fit the model's context, or the engine's cache."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to `engine`; `model` is the name by which its model is known."""

    engine: Engine
    asked: Asked
    sampling: Sampling
    seeds: tuple[int, ...]
    model: str

    async def complete(self) -> list[Spoken]:
        """What the model says, once for each seed. Cancelling it stops the engine's samples."""
        with _named_errors():
            stream = self._sample(None)
            try:
                completions = [completion async for completion in stream]
            finally:
                await asyncio.shield(stream.abort())
        completions.sort(key=lambda completion: completion.index)
        return await asyncio.to_thread(lambda: [self._read(completion) for completion in completions])

    async def stream(self) -> AsyncGenerator[AIMessageChunk, None]:
        """What the model says to the first seed, while it does; the last chunk has calls and account."""
        heard, news = _Heard(), asyncio.Event()

        def tell(index: int, ids: tuple[int, ...]) -> None:
            heard.ids = ids
            news.set()

        asked = self.asked
        shown = Unfolding(thinking=bool(asked.closing), openers=asked.openers, stops=self.sampling.stop_texts)
        with _named_errors():
            stream = self._sample(tell)
            ending = asyncio.ensure_future(_first(stream))
            ending.add_done_callback(lambda _: news.set())
            try:
                while await news.wait() and not ending.done():
                    news.clear()
                    began = time.perf_counter()
                    reasoning, content = shown.show(self._text(heard.ids))
                    if reasoning or content:
                        yield AIMessageChunk(content=content, additional_kwargs=reasoning_kwargs(reasoning))
                    # NOTE: all that was said is decoded again, since the end of a text can change the text before it.
                    await asyncio.sleep((time.perf_counter() - began) * (1 / SHARE - 1))
                completion = await ending
            finally:
                ending.cancel()
                await asyncio.shield(stream.abort())
        spoken = await asyncio.to_thread(self._read, completion)
        yield spoken.last_chunk(*shown.rest(spoken.turn))

    def _sample(self, tell: Tell | None) -> Stream:
        prefix, sampling, seeds = self.asked.prefix, self.sampling, self.seeds
        if tell is None or not self.engine.capabilities.tells:
            return self.engine.sample(prefix, sampling, seeds=seeds)
        return cast(Teller, self.engine).sample(prefix, sampling, seeds=seeds, tell=tell)

    def _text(self, ids: tuple[int, ...]) -> str:
        """The text of a turn's `ids`, without the token that ends it."""
        return self.engine.decode(ids[:-1] if ids and ids[-1] in self.sampling.stop_ids else ids)

    def _read(self, completion: Completion) -> Spoken:
        text = before(self._text(completion.ids), self.sampling.stop_texts)
        return Spoken(self.asked.read(text), completion, self.asked.prefix, self.model)


@dataclass(slots=True)
class _Heard:
    """What was said so far; a slow listener hears the newest only."""

    ids: tuple[int, ...] = ()


async def _first(stream: Stream) -> Completion:
    return await anext(stream)


@contextmanager
def _named_errors() -> Iterator[None]:
    """Names errors as callers of chat models know them."""
    try:
        yield
    except PromptError as error:
        raise ContextOverflow(str(error)) from error
