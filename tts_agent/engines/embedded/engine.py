"""The engine that needs nothing but a model folder: torch on the CPU, radix cache, shared-prefix decoding."""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from tts_agent.engines.base import (
    Capabilities,
    Completion,
    HiddenState,
    Label,
    LabelScores,
    Sampling,
    Tell,
    refuse_constraints,
)
from tts_agent.engines.embedded.constraint import REMEDY, Constraint, Constraints, available
from tts_agent.engines.embedded.counters import Counters
from tts_agent.engines.embedded.folder import read_end_ids, read_tokenizer
from tts_agent.engines.embedded.loading import load_model
from tts_agent.engines.embedded.pool import token_bytes
from tts_agent.engines.embedded.request import Mailbox, Message, Question, Said, Sample
from tts_agent.engines.embedded.scheduler import Scheduler
from tts_agent.engines.embedded.worker import Order, Worker
from tts_agent.errors import ConfigError, EngineUnavailable, PromptError
from tts_agent.prefix import Prefix
from tts_agent.usage import ZERO, Usage

Messages = asyncio.Queue[Message | None]
"""What a stream has been told and has not passed on; None wakes a reader of a stream that is over."""

CACHE_BYTES = 512 * 2**20
"""Size of the cache unless `cache_tokens` is given."""


class EmbeddedEngine:
    """Serves the model in `folder`, in fp32 on `device` (`cpu`, `cuda` or `mps`).

    The Llama family is computed by a forward pass of its own, other families through `transformers`.
    Requests of any number of searches and event loops run together, one forward pass a step. What branches share
    is computed once and kept: `cache_tokens` tokens, by default as many as fit in 512 MiB, the least recently
    used evicted first and nothing that a running request needs. A request waits until its longest course fits.

    `threads` is torch's number of threads in this process. `max_branches` bounds how many samples are decoded at
    once, `step_tokens` how many prompt tokens are computed in one step (short steps keep branches flowing). A request
    that finds no room for `wait_seconds` fails with `EngineUnavailable`.
    Raises `ModelError` if the folder is missing, broken or of a kind that would not be computed exactly.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        threads: int = 1,
        cache_tokens: int | None = None,
        max_branches: int = 256,
        step_tokens: int = 512,
        wait_seconds: float = 600.0,
        name: str | None = None,
    ) -> None:
        settings = {"threads": threads, "max_branches": max_branches, "step_tokens": step_tokens}
        for setting, value in settings.items():
            if value < 1:
                raise ConfigError(f"{setting}={value!r} must be at least 1")
        if cache_tokens is not None and cache_tokens < 1:
            raise ConfigError(f"cache_tokens={cache_tokens!r} must be at least 1, or None for 512 MiB")
        if not wait_seconds > 0:
            raise ConfigError(f"wait_seconds={wait_seconds!r} must be above 0")
        self._folder = Path(folder)
        self._name = name or f"embedded://{folder}"
        self._tokenizer: Tokenizer | None = None
        model = load_model(self._folder, device)
        self._shape = model.shape
        self._end_ids = read_end_ids(self._folder)
        self._cache_tokens = cache_tokens or max(1, CACHE_BYTES // token_bytes(model.shape))
        self._constraints: Constraints | None = None
        self._scheduler = Scheduler(
            model,
            cache_tokens=self._cache_tokens,
            max_branches=max_branches,
            step_tokens=step_tokens,
            wait_seconds=wait_seconds,
        )
        self._worker = Worker(self._scheduler, threads=threads)
        self._finalizer = weakref.finalize(self, self._worker.stop)

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            ids=True,
            seeds=True,
            label_logprobs=True,
            aborts=True,
            shares_prompt=True,
            constrains=available(),
            hidden_states=True,
            tells=True,
            context=self._shape.context,
            end_ids=self._end_ids,
            info={"cache_tokens": str(self._cache_tokens), "token_bytes": str(token_bytes(self._shape))},
        )

    @property
    def counters(self) -> Counters:
        """The engine's own account, as of the last step."""
        return self._scheduler.counters

    @property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer. Raises `ModelError` if it has none."""
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self._folder)
        return self._tokenizer

    def encode(self, text: str) -> tuple[int, ...]:
        # Half a surrogate pair, which no tokenizer takes, becomes U+FFFD.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def sample(
        self,
        prefix: Prefix,
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        at: float = 0.0,
        tell: Tell | None = None,
    ) -> "EmbeddedStream":
        """See `Teller.sample`; must be called in a running event loop."""
        if not seeds:
            raise ConfigError("sample() needs at least one seed: one per sample")
        more = sampling.max_tokens
        self._check(prefix.ids, more, f"max_tokens={more!r}", more)
        refuse_constraints(sampling, self.capabilities, self.name, REMEDY)
        messages: Messages = asyncio.Queue()
        receive = messages.put_nowait if tell is None else _telling(tell, messages)
        mailbox = Mailbox(asyncio.get_running_loop(), receive)
        request = Sample(
            prefix.ids,
            mailbox,
            sampling=sampling,
            seeds=tuple(seeds),
            ends=self._stopper(sampling.stop_texts),
            constraint=self._constraint(sampling),
            tells=tell is not None,
        )
        self._post(partial(self._scheduler.submit, request))
        return EmbeddedStream(self, self._worker, request, messages)

    def _stopper(self, texts: tuple[str, ...]) -> Callable[[Sequence[int]], bool] | None:
        """Whether the last of the ids is one in which a stop text ends."""
        if not texts:
            return None
        # Every token of a stop text has a byte of it at least, ids beyond the tokenizer's have no text; one token more
        # gives decoders their context.
        reach = max(len(text.encode()) for text in texts) + 1
        known = self.tokenizer.get_vocab_size()

        def ended(ids: Sequence[int]) -> bool:
            tail = self.decode([token for token in ids if token < known][-reach:])
            return any(text in tail for text in texts)

        return ended

    def _constraint(self, sampling: Sampling) -> Constraint | None:
        if not sampling.constrained:
            return None
        if self._constraints is None:
            path = self._folder / "tokenizer.json"
            self._constraints = Constraints(path, vocab=self._shape.vocab, end_ids=self._end_ids)
        return self._constraints.compile(sampling)

    async def hidden_states(self, prefixes: Sequence[Prefix]) -> list[HiddenState]:
        """See `Reader.hidden_states`."""
        for prefix in prefixes:
            self._check(prefix.ids, 0, "nothing more", 0)
        return await self._ask(prefixes, suffix=(), labels=(), reads=True)

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        suffix = tuple(suffix)
        asked = tuple((label,) if isinstance(label, int) else tuple(label) for label in labels)
        if not all(asked):
            raise ConfigError(f"labels {labels!r} have one without a token; a label needs at least one")
        length = len(suffix) + max(map(len, asked), default=1) - 1
        room = len(suffix) + sum(len(label) - 1 for label in asked)
        for prefix in prefixes:
            self._check(prefix.ids, length, f"a question of {length} tokens", room)
        self._check_vocabulary((*suffix, *(id for label in asked for id in label)))
        return await self._ask(prefixes, suffix=suffix, labels=asked)

    async def _ask(
        self,
        prefixes: Sequence[Prefix],
        *,
        suffix: tuple[int, ...],
        labels: tuple[tuple[int, ...], ...],
        reads: bool = False,
    ) -> list[Any]:
        """The answers to one question about each prefix: `HiddenState` if it reads, else `LabelScores`."""
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in prefixes]
        questions = [
            Question(prefix.ids, Mailbox(loop, _answering(answer)), suffix=suffix, labels=labels, reads=reads)
            for prefix, answer in zip(prefixes, answers, strict=True)
        ]
        self._post(partial(self._scheduler.submit, *questions))
        try:
            return list(await asyncio.gather(*answers))
        except (asyncio.CancelledError, EngineUnavailable):
            for question in questions:
                self._worker.post(partial(self._scheduler.abort, question))
            raise

    async def flush(self) -> None:
        """Empty the cache, except for what running requests need."""
        done: asyncio.Future[Counters] = asyncio.get_running_loop().create_future()
        mailbox = Mailbox(asyncio.get_running_loop(), _answering(done))
        self._post(partial(self._scheduler.flush, mailbox))
        await done

    async def aclose(self) -> None:
        """Stop the engine; whoever still waits for it gets `EngineUnavailable`."""
        await asyncio.to_thread(self._finalizer)

    def _post(self, order: Order) -> None:
        if not self._worker.post(order):
            raise EngineUnavailable(f"{self.name} has stopped; make a new engine")

    def _check(self, ids: tuple[int, ...], more: int, what: str, room: int) -> None:
        """Refuse a prompt that can never run: `more` tokens long at the end, with `room` tokens in the cache."""
        if not ids:
            raise PromptError("the prompt is empty: a prefix needs at least one token")
        if len(ids) + more > self._shape.context:
            raise PromptError(
                f"a prompt of {len(ids)} tokens and {what} do not fit the context of "
                f"{self._shape.context} tokens; shorten one of them"
            )
        if len(ids) + room > self._cache_tokens:
            raise PromptError(
                f"a prompt of {len(ids)} tokens and {what} do not fit the cache of "
                f"cache_tokens={self._cache_tokens!r}; make it larger"
            )
        self._check_vocabulary(ids)

    def _check_vocabulary(self, ids: Sequence[int]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self._shape.vocab:
            wrong = next(i for i in ids if not 0 <= i < self._shape.vocab)
            raise PromptError(f"token id {wrong!r} is not in the vocabulary of {self._shape.vocab} tokens")


class EmbeddedStream:
    """The running samples of one request. Dropping it before the end stops them."""

    _left = 0  # completions not yielded yet

    def __init__(self, engine: EmbeddedEngine, worker: Worker, request: Sample, messages: Messages) -> None:
        self._engine = engine  # stops when nobody refers to it
        self._worker = worker
        self._request = request
        self._messages = messages
        self._left = len(request.seeds)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        if not self._left:
            raise StopAsyncIteration
        message = await self._messages.get()
        if isinstance(message, Completion):
            # One that ends while an abort is under way is yielded all the same, and is no part of what that returns.
            self._left = max(self._left - 1, 0)
            if not self._left:
                self._messages.put_nowait(None)  # for whoever else waits here
            return message
        self._left = 0
        self._messages.put_nowait(None)
        if isinstance(message, EngineUnavailable):
            raise message
        raise StopAsyncIteration

    async def abort(self) -> Usage | None:
        """See `Stream.abort`. Completions that ended and were not yielded are part of the returned usage."""
        if not self._left:
            return ZERO
        self._left = 0
        loop, worker, request = asyncio.get_running_loop(), self._worker, self._request
        done: asyncio.Future[Usage] = loop.create_future()
        mailbox = Mailbox(loop, _answering(done))
        scheduler = worker.scheduler
        if not worker.post(lambda: scheduler.outbox.append((mailbox, scheduler.abort(request)))):
            return None
        usage = await done
        while not self._messages.empty():
            message = self._messages.get_nowait()
            if isinstance(message, Completion):
                usage += message.usage
        self._messages.put_nowait(None)
        return usage

    def __del__(self) -> None:
        if self._left:
            worker, request = self._worker, self._request
            worker.post(lambda: worker.scheduler.abort(request))


def _telling(tell: Tell, messages: Messages) -> Callable[[Message], None]:
    """A receiver that tells of what is said and keeps the rest for the stream."""

    def receive(message: Message) -> None:
        if isinstance(message, Said):
            tell(message.place, message.ids)
        else:
            messages.put_nowait(message)

    return receive


def _answering(future: "asyncio.Future[Any]") -> Callable[[Message], None]:
    """A receiver that resolves `future`, unless its owner has given up."""

    def receive(message: Message) -> None:
        if future.done():
            return
        if isinstance(message, EngineUnavailable):
            future.set_exception(message)
        else:
            future.set_result(message)

    return receive
