"""SGLang servers as an engine, by their native API, wherever they run."""

import asyncio
import json
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakSet

from tts_agent.engines.base import (
    Capabilities,
    HiddenState,
    Label,
    LabelScores,
    Sampling,
    Tell,
    refuse_constraints,
)
from tts_agent.engines.sglang.body import Extras, reading_body
from tts_agent.engines.sglang.desk import Desk, Live, refuse
from tts_agent.engines.sglang.ends import read_ends
from tts_agent.engines.sglang.info import ServerInfo
from tts_agent.engines.sglang.pool import Pool
from tts_agent.engines.sglang.questions import Asked, ask
from tts_agent.engines.sglang.reply import prompt_usage
from tts_agent.engines.sglang.server import Server
from tts_agent.engines.sglang.stream import Run, SGLangStream
from tts_agent.engines.sglang.tokens import open_tokens
from tts_agent.engines.sglang.turns import Message, SaidTurn, read_turn, render
from tts_agent.engines.sglang.worker import Worker
from tts_agent.errors import ConfigError, EngineUnavailable, PromptError
from tts_agent.prefix import Prefix
from tts_agent.usage import Usage

EBNF_BACKENDS = ("xgrammar", "llguidance")
"""Grammar backends of SGLang that know more than JSON schemas and regular expressions."""


class ServedEngine:
    """Serves prefixes by `servers` of the same model; `SGLangEngine` and `SGLangLocalEngine` say where these run.

    All requests of a tree go to one server, which computes each of its tokens once; siblings go as one batched request,
    a cold prefix is computed before it branches. When a server stops answering, its trees move to another, where their
    prefixes are computed again.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        name: str,
        tokenizer: str | Path | None,
        end_ids: Sequence[int] | None,
        seeds: bool | None,
        logprobs: bool,
        cache_salt: str | None,
        priority: int | None,
        max_thinking_tokens: int | None,
        attempts: int,
    ) -> None:
        self.name = name
        asked = {"cache_salt": cache_salt, "priority": priority, "max_thinking_tokens": max_thinking_tokens}
        fields = {key: value for key, value in asked.items() if value is not None}
        self._logprobs = logprobs
        self._streams: WeakSet[SGLangStream] = WeakSet()
        try:
            if attempts < 1:
                raise ConfigError(f"attempts={attempts!r} must be at least 1")
            workers, infos = _look(servers)
            self.info: ServerInfo = infos[0]
            """What the first server that answered says of itself."""
            self._pool = Pool(workers)
            self._desk = Desk(self._pool, self._extras(fields, infos, seeds), attempts=attempts)
            there = sorted(workers, key=lambda worker: worker.info is None)
            self._tokens = open_tokens([worker.server for worker in there], self.info.tokenizer, tokenizer)
            self._end_ids, width = read_ends(there[0].server, self.info.model, self._tokens, end_ids)
        except BaseException:
            for server in servers:
                server.close()
            raise
        if blind := [info.address for info in infos if not info.radix_cache]:
            warnings.warn(
                f"the SGLang server at {blind[0]!r} has no radix cache: every branch computes its whole prompt again; "
                "launch it without --disable-radix-cache",
                stacklevel=3,
            )
        self._width = max(width, self._tokens.vocabulary)  # ids below it are known to be in the model's vocabulary
        self._context = min(info.context for info in infos)
        self._capacity = min(info.capacity for info in infos)

    def _extras(self, fields: dict[str, Any], infos: Sequence[ServerInfo], seeds: bool | None) -> Extras:
        for info in infos:
            if "priority" in fields and not info.priority:
                raise ConfigError(
                    f"priority={fields['priority']!r}: the server at {info.address!r} schedules without priorities; "
                    "launch it with --enable-priority-scheduling"
                )
            if "max_thinking_tokens" in fields and not info.strict_thinking:
                raise ConfigError(
                    f"max_thinking_tokens={fields['max_thinking_tokens']!r}: the server at {info.address!r} does not "
                    "enforce it; launch it with --enable-strict-thinking and a --reasoning-parser"
                )
            if seeds and not info.processors:
                raise ConfigError(
                    f"seeds=True: the server at {info.address!r} takes no custom logit processors; launch it with "
                    "--enable-custom-logit-processor"
                )
        able = all(info.processors for info in infos)
        return Extras(fields, able if seeds is None else seeds, any(info.ahead for info in infos))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            ids=True,
            continues=True,
            seeds=self._desk.extras.seeded,
            label_logprobs=True,
            aborts=True,
            # NOTE: each sample computes the last prompt token again, and the cache may be emptied by others between
            # two of them; so a reservation counts the prompt for every sample.
            shares_prompt=False,
            constrains=self.info.grammar is not None,
            grammars=self.info.grammar in EBNF_BACKENDS,
            hidden_states=self.info.hidden_states,
            tells=True,
            context=self._context,
            end_ids=self._end_ids,
            info={
                "server": f"SGLang {self.info.version}",
                "model": self.info.model,
                "workers": str(len(self._pool.workers)),
                "cache_tokens": str(self._capacity),
            },
        )

    @property
    def refused(self) -> int:
        """Attempts that a server refused before it had begun with them, so that they were made again."""
        return self._desk.refused

    def home(self, prefix: Prefix) -> str:
        """The address of the server that is asked first to continue `prefix`."""
        return self._pool.order(prefix.ids)[0].address

    def encode(self, text: str) -> tuple[int, ...]:
        """See `Engine.encode`; without a tokenizer in this process, the caller waits for the server."""
        return self._tokens.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Engine.decode`; the text of a completion is at hand when it ends."""
        return self._tokens.decode(ids)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Prefix:
        """The prefix of a conversation, up to where the model speaks, by the server's chat template.

        `variables` are for the template. Raises `ConfigError` if the model has none.
        """
        return Prefix(render(self._first, messages, tools=tools, variables=variables))

    def read_turn(self, text: str, *, tools: Sequence[Mapping[str, Any]] = ()) -> SaidTurn:
        """A turn of the model, taken apart by the server's parsers; see `turns.read_turn`."""
        return read_turn(self._first, self.info, text, tools=tools)

    @property
    def _first(self) -> Server:
        """A server that answers, as far as is known."""
        return min(self._pool.workers, key=lambda worker: not worker.up or worker.info is None).server

    def sample(
        self,
        prefix: Prefix,
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        at: float = 0.0,
        tell: Tell | None = None,
    ) -> SGLangStream:
        """See `Teller.sample`; must be called in a running event loop."""
        if not seeds:
            raise ConfigError("sample() needs at least one seed: one per sample")
        more = sampling.max_tokens
        self._check(prefix.ids, more, f"max_tokens={more!r}")
        refuse_constraints(sampling, self.capabilities, self.name, "launch the server with --grammar-backend xgrammar")
        self._check_sampling(sampling)
        run = Run(self._desk, self._tokens, prefix, sampling, seeds, logprobs=self._logprobs, tell=tell)
        stream = SGLangStream(run)
        self._streams.add(stream)
        return stream

    def _check_sampling(self, sampling: Sampling) -> None:
        if sampling.repetition_penalty != 1:
            raise ConfigError(
                f"repetition_penalty={sampling.repetition_penalty!r}: SGLang counts only what a completion says, not "
                "its prompt; use presence_penalty or frequency_penalty"
            )
        if sampling.penalises and sampling.stop_ids and not set(self._end_ids) <= set(sampling.stop_ids):
            raise ConfigError(
                f"with penalties, stop_ids={sampling.stop_ids!r} must contain the model's end tokens "
                f"{self._end_ids!r}, at which the server stops and forgets what was said; add them, or leave the "
                "penalties out"
            )
        if sampling.json_schema is not None:
            try:
                json.loads(sampling.json_schema)
            except ValueError as error:
                raise ConfigError(f"json_schema={sampling.json_schema[:80]!r} is not JSON: {error}") from error

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        """See `Engine.label_logprobs`. What is computed for a question stays in the server's cache for a while, so the
        same question again computes less.
        """
        suffix = tuple(suffix)
        wanted = [(label,) if isinstance(label, int) else tuple(label) for label in labels]
        if not all(wanted):
            raise ConfigError(f"labels {labels!r} have one without a token; a label needs at least one")
        length = len(suffix) + max(map(len, wanted), default=1) - 1
        for prefix in prefixes:
            self._check(prefix.ids, length + 1, f"a question of {length} tokens")
        self._check_vocabulary((*suffix, *chain(*wanted)))
        asked = [Asked(prefix.ids + suffix) for prefix in prefixes]

        async def put(group: list[int], worker: Worker) -> None:
            await ask(self._desk, worker, [asked[i] for i in group], wanted)

        await self._at_home(prefixes, put)
        return [one.answer(wanted) for one in asked]

    async def _at_home(
        self, prefixes: Sequence[Prefix], work: Callable[[list[int], Worker], Coroutine[Any, Any, None]]
    ) -> None:
        """Do `work` for the places of `prefixes`, those of one server together."""
        groups: dict[int, list[int]] = {}
        for i, prefix in enumerate(prefixes):
            groups.setdefault(self._pool.order(prefix.ids)[0].number, []).append(i)
        await asyncio.gather(
            *(self._desk.with_worker(prefixes[group[0]].ids, partial(work, group)) for group in groups.values())
        )

    async def hidden_states(self, prefixes: Sequence[Prefix]) -> list[HiddenState]:
        """See `Reader.hidden_states`. The server samples one token for each, which is charged as generated."""
        if not self.info.hidden_states:
            raise ConfigError(
                f"the server at {self.info.address!r} shows no hidden states; launch it with "
                "--enable-return-hidden-states"
            )
        for prefix in prefixes:
            self._check(prefix.ids, 1, "one more")
        found: dict[int, HiddenState] = {}

        async def read(group: list[int], worker: Worker) -> None:
            prompts = [prefixes[i].ids for i in group]
            tree = self._pool.tree(prompts[0])
            body = reading_body(prompts, self._desk.extras)
            async with self._desk.replies(worker, body, tree, Live()) as replies:
                async for reply in replies:
                    refuse(reply)
                    if reply.finish is not None:
                        usage = prompt_usage(reply) + Usage(generated=1, calls=1)
                        found[group[reply.place]] = HiddenState(tuple(reply.meta["hidden_states"][0][-1]), usage)

        await self._at_home(prefixes, read)
        return [found[i] for i in range(len(prefixes))]

    async def flush(self) -> None:
        """Empty the servers' caches. Raises `EngineUnavailable` if one is busy or does not answer."""
        for worker in self._pool.workers:
            await worker.server.flush()
            worker.memory.forget()

    async def aclose(self) -> None:
        """Stop every sample and close the connections; the servers go on."""
        await asyncio.gather(*(stream.abort() for stream in list(self._streams)))
        await self._desk.aclose()
        for worker in self._pool.workers:
            await worker.server.aclose()

    def _check(self, ids: tuple[int, ...], more: int, what: str) -> None:
        if not ids:
            raise PromptError("the prompt is empty: a prefix needs at least one token")
        if len(ids) + more > self._context:
            raise PromptError(
                f"a prompt of {len(ids)} tokens and {what} do not fit the context of {self._context} tokens; shorten "
                "one of them, or launch the server with a larger --context-length"
            )
        if len(ids) + more > self._capacity:
            raise PromptError(
                f"a prompt of {len(ids)} tokens and {what} do not fit the server's cache of {self._capacity} tokens; "
                "launch it with a larger --mem-fraction-static or --max-total-tokens"
            )
        self._check_vocabulary(ids)

    def _check_vocabulary(self, ids: Sequence[int]) -> None:
        # NOTE: a server dies of an id that it does not know.
        if ids and not 0 <= min(ids) <= max(ids) < self._width:
            wrong = next(i for i in ids if not 0 <= i < self._width)
            raise PromptError(f"token id {wrong!r} is not in the vocabulary of {self._width} tokens")


def _look(servers: Sequence[Server]) -> tuple[list[Worker], list[ServerInfo]]:
    """The servers as workers, and what those that answer say; they must serve the same model."""
    workers, infos, problem = [], [], None
    for number, server in enumerate(servers):
        info = None
        try:
            info = server.info()
            infos.append(info)
        except EngineUnavailable as error:
            problem = problem or error
        workers.append(Worker(number, server, info))
    if not infos:
        assert problem is not None
        raise problem
    for info in infos:
        if Path(info.model).name != Path(infos[0].model).name:
            raise ConfigError(
                f"the servers serve different models: {infos[0].model!r} at {infos[0].address!r}, {info.model!r} at "
                f"{info.address!r}; a tree goes on at another server only if it has the same model"
            )
    return workers, infos
