"""Any chat model of LangChain as an engine, one call a sample."""

import asyncio
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Self
from weakref import WeakKeyDictionary

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    BaseMessageChunk,
    message_chunk_to_message,
)
from langchain_core.runnables import Runnable, RunnableConfig

from tts_agent.engines.base import Capabilities, Completion, FinishReason, Label, LabelScores, Sampling, Tell
from tts_agent.engines.records import END, decode_messages, decode_text, encode_message, encode_text
from tts_agent.errors import ConfigError, EngineUnavailable, TTSError
from tts_agent.prefix import Prefix
from tts_agent.usage import ZERO, Usage

ARGUMENTS: Mapping[str, str] = {"max_tokens": "max_tokens", "temperature": "temperature"}

_USUAL = Sampling(max_tokens=1)
_ASKED = ("tools", "functions", "response_format", "tool_choice")
"""Arguments of a model that become part of its prompt."""
_LEFT_TO_THE_MODEL = ("max_tokens", "temperature")
_CUT = ("length", "max_tokens", "MAX_TOKENS")


class ChatEngine:
    """Samples whole messages of a LangChain chat `model`, with tools bound to it where it has any.

    It cannot go on in the middle of a message, knows no tokens, no log-probabilities, and shares nothing between
    samples beyond what the provider caches. At most `concurrency` calls run at once in an event loop. Retries are the
    model's own; whatever else it raises becomes `EngineUnavailable`.

    `arguments` says by which argument the model takes a field of `Sampling`. The size of a message and the temperature
    are left to the model where they are not named; any other field that is asked for and not named is an error.
    `seed` may be named as well.

    Budgets are soft. A prompt is estimated, at three bytes a token, the tools bound to the model with it, when it is
    reserved, and charged by what the model reports. A model that reports nothing, or passes what was reserved, is
    warned of once.
    """

    def __init__(
        self,
        model: Runnable[LanguageModelInput, AIMessage],
        *,
        concurrency: int = 8,
        arguments: Mapping[str, str] = ARGUMENTS,
        name: str | None = None,
    ) -> None:
        known = {field.name for field in fields(Sampling)} - {"stop_ids"} | {"seed"}
        if unknown := sorted(set(arguments) - known):
            raise ConfigError(f"unknown arguments {unknown!r} of a chat engine; known: {', '.join(sorted(known))}")
        if concurrency < 1:
            raise ConfigError(f"concurrency={concurrency!r} must be at least 1")
        self.name = name or f"chat://{model.get_name()}"
        self._model = model
        self._overhead = _overhead(model)
        self._arguments = dict(arguments)
        self._concurrency = concurrency
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._streams: set[ChatStream] = set()
        self._warned: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            ids=False,
            continues=False,
            seeds="seed" in self._arguments,
            label_logprobs=False,
            aborts=False,
            constrains=not {"json_schema", "regex", "ebnf"}.isdisjoint(self._arguments),
            grammars="ebnf" in self._arguments,
            tells=True,
            overhead=self._overhead,
            end_ids=(END,),
            info={"budget": "soft"},
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of `text`, which the model reads as a message of a human."""
        return encode_text(text)

    def decode(self, ids: Sequence[int]) -> str:
        return decode_text(ids)

    def prompt(self, messages: Sequence[AnyMessage]) -> Prefix:
        """The prefix that stands for `messages`; more messages make it longer and change nothing of it."""
        return Prefix(tuple(token for message in messages for token in encode_message(message)))

    def message(self, ids: Sequence[int]) -> AIMessage:
        """The message that was sampled as `ids`."""
        found = decode_messages(ids)
        if len(found) != 1 or not isinstance(found[0], AIMessage):
            raise ConfigError(f"{len(ids)} ids are no message of {self.name!r}; pass those of one completion")
        return found[0]

    def sample(
        self, prefix: Prefix, sampling: Sampling, *, seeds: Sequence[int], at: float = 0.0, tell: Tell | None = None
    ) -> "ChatStream":
        """See `Teller.sample`; must be called in a running event loop. Raises `ConfigError` in mid-message.

        What is told are the ids of the text alone, not of a message; a model that does not stream tells nothing.
        """
        if not seeds:
            raise ConfigError("sample() needs at least one seed: one per sample")
        messages = decode_messages(prefix.ids)
        if not messages or isinstance(messages[-1], AIMessage):
            raise ConfigError(
                f"engine {self.name!r} samples whole messages and cannot continue one; let every thought be a whole "
                "message (Task.max_depth=1, or end_ids of the engine), or use an engine that continues"
            )
        if any(token != END for token in sampling.stop_ids):
            raise ConfigError(f"engine {self.name!r} knows no stop tokens {sampling.stop_ids!r}; leave stop_ids empty")
        calls = [self._call(sampling, seed) for seed in seeds]
        stream = ChatStream(self, messages, calls, sampling, len(prefix) + self._overhead, tell)
        self._streams.add(stream)
        return stream

    def _call(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """The model's arguments for one sample."""
        call: dict[str, Any] = {}
        for field in fields(sampling):
            value, usual = getattr(sampling, field.name), getattr(_USUAL, field.name)
            if field.name in self._arguments:
                call[self._arguments[field.name]] = value
            elif value != usual and field.name not in ("stop_ids", *_LEFT_TO_THE_MODEL):
                raise ConfigError(
                    f"engine {self.name!r} does not know how its model takes {field.name}={value!r}; name it in "
                    "arguments="
                )
        if "seed" in self._arguments:
            call[self._arguments["seed"]] = seed % 2**31
        return call

    async def complete(
        self,
        index: int,
        messages: Sequence[AnyMessage],
        call: Mapping[str, Any],
        sampling: Sampling,
        bound: int,
        tell: Tell | None = None,
    ) -> Completion:
        """One call of the model; `bound` is what was reserved for the prompt. Used by the engine's streams."""
        try:
            answer = await self._ask(index, messages, call, tell)
        except TTSError:  # a model of ours, which has said what is wrong
            raise
        except (TypeError, NotImplementedError) as error:
            raise ConfigError(
                f"the model of {self.name!r} does not take {dict(call)!r}: {error}; name what it takes in arguments="
            ) from error
        except Exception as error:  # providers raise classes of their own
            raise EngineUnavailable(f"engine {self.name!r}: {type(error).__name__}: {error}") from error
        if not isinstance(answer, AIMessage):
            raise ConfigError(
                f"the model of {self.name!r} returns {type(answer).__name__!r}, not an AIMessage; pass the chat model "
                "without what reads its answers"
            )
        ids = (*encode_message(answer), END)
        usage = self._usage(answer, bound, len(ids), sampling.max_tokens)
        return Completion(index, ids, _finish(answer), usage)

    async def _ask(
        self, index: int, messages: Sequence[AnyMessage], call: Mapping[str, Any], tell: Tell | None
    ) -> BaseMessage:
        """What the model answers, told piece by piece if somebody listens."""
        # NOTE: what branches say is not the graph's answer, so it is kept from LangGraph's message stream.
        config: RunnableConfig = {"tags": ["nostream"]}
        if tell is None:
            return await self._model.ainvoke(list(messages), config, **call)
        said: BaseMessageChunk | None = None
        async for piece in self._model.astream(list(messages), config, **call):
            if not isinstance(piece, BaseMessageChunk):  # what stands behind a model may hand on only the whole
                return piece
            said = piece if said is None else said + piece
            if piece.text:
                tell(index, encode_text(said.text))
        if said is None:
            raise EngineUnavailable(f"the model of engine {self.name!r} answered with nothing at all")
        return message_chunk_to_message(said)

    def _usage(self, answer: AIMessage, bound: int, size: int, max_tokens: int) -> Usage:
        reported: Mapping[str, Any] = answer.usage_metadata or {}
        # Some report None, or nothing but zeros, where they did not count.
        prompt, generated = (_count(reported.get(name)) for name in ("input_tokens", "output_tokens"))
        if not prompt + generated:
            self._warn("reports no usage, so prompts and answers are charged at three bytes a token")
            return Usage(bound, 0, size, size - 1, calls=1)
        if prompt > bound:
            self._warn(f"counted {prompt} prompt tokens where {bound} were reserved, so a limit may have been passed")
        if generated > max_tokens:
            self._warn(f"said {generated} tokens where max_tokens was {max_tokens}, so a limit may have been passed")
        cached = min(_count((reported.get("input_token_details") or {}).get("cache_read")), prompt)
        return Usage(prompt - cached, cached, generated, max(generated - 1, 0), calls=1)

    def _warn(self, what: str) -> None:
        kind = what.split()[0]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"budgets are soft: the model of engine {self.name!r} {what}", stacklevel=2)

    def gate(self) -> asyncio.Semaphore:
        """What lets `concurrency` calls of the running event loop through."""
        loop = asyncio.get_running_loop()
        return self._gates.setdefault(loop, asyncio.Semaphore(self._concurrency))

    def forget(self, stream: "ChatStream") -> None:
        """`stream` is over."""
        self._streams.discard(stream)

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        raise ConfigError(f"engine {self.name!r} gives no label log-probabilities; use another verifier")

    async def aclose(self) -> None:
        """Cancel what runs. The model is the caller's and stays open."""
        for stream in list(self._streams):
            await stream.abort()


class ChatStream:
    """The running calls of one request."""

    def __init__(
        self,
        engine: ChatEngine,
        messages: Sequence[AnyMessage],
        calls: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        bound: int,
        tell: Tell | None,
    ) -> None:
        self._engine, self._tell = engine, tell
        self._begun: set[int] = set()  # calls that the provider knows of
        self._news: asyncio.Queue[Completion | Exception | None] = asyncio.Queue()
        self._left = len(calls)
        self._outage: EngineUnavailable | None = None
        self._tasks = [
            asyncio.create_task(self._run(index, messages, call, sampling, bound)) for index, call in enumerate(calls)
        ]

    async def _run(
        self, index: int, messages: Sequence[AnyMessage], call: Mapping[str, Any], sampling: Sampling, bound: int
    ) -> None:
        try:
            async with self._engine.gate():
                self._begun.add(index)
                done = await self._engine.complete(index, messages, call, sampling, bound, self._tell)
                self._news.put_nowait(done)
        except Exception as error:  # whatever it is, who waits for this sample must hear of it
            self._news.put_nowait(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        while self._left:
            news = await self._news.get()
            if news is None:
                break
            self._left -= 1
            if isinstance(news, Completion):
                return news
            if not isinstance(news, EngineUnavailable):
                await self.abort()
                raise news
            self._outage = self._outage or news  # the other samples may still come
        self._engine.forget(self)
        outage, self._outage = self._outage, None
        if outage is not None:
            raise outage
        raise StopAsyncIteration

    async def abort(self) -> Usage | None:
        """See `Stream.abort`; a provider does not say what a call that was cancelled had cost."""
        self._engine.forget(self)
        if not self._left:
            return ZERO
        self._left = 0
        running = [index for index, task in enumerate(self._tasks) if not task.done()]
        for index in running:
            self._tasks[index].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        usage, unknown = ZERO, any(index in self._begun for index in running)
        while not self._news.empty():
            news = self._news.get_nowait()
            usage += news.usage if isinstance(news, Completion) else ZERO
            unknown = unknown or isinstance(news, EngineUnavailable)
        self._news.put_nowait(None)
        return None if unknown else usage


def _count(reported: object) -> int:
    return max(reported, 0) if isinstance(reported, int) else 0


def _finish(answer: AIMessage) -> FinishReason:
    metadata = answer.response_metadata
    reason = metadata.get("finish_reason") or metadata.get("stop_reason") or metadata.get("done_reason")
    return "length" if reason in _CUT else "stop"


def _overhead(model: Any) -> int:
    """Estimate of the tokens that the arguments bound to `model` add to every prompt."""
    size = 0
    while model is not None:
        bound = getattr(model, "kwargs", None)
        if isinstance(bound, Mapping):
            size += sum(len(json.dumps(bound[name], default=str)) // 3 for name in _ASKED if bound.get(name))
        model = getattr(model, "bound", None)
    return size
