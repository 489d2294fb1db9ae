"""The engine and the verifier of a search that is listened to: every request and every call is a run in traces."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, cast

from langchain_core.runnables.config import var_child_runnable_config

from tts_agent.engines.base import Capabilities, Completion, Engine, Label, LabelScores, Sampling, Stream, Teller
from tts_agent.events import Planned
from tts_agent.nodes.runs import Child, Run, Runs
from tts_agent.prefix import Prefix
from tts_agent.search.dice import thought_seed
from tts_agent.thought import ROOT, Unverified, Verdict
from tts_agent.tree import Branch, ThoughtTree
from tts_agent.usage import ZERO, Usage, total_usage
from tts_agent.verifiers.base import Scope, Verifier


class ObservedEngine:
    """The engine of one search, as it is seen by those who listen: requests are runs, and tokens are told.

    Without `runs` nothing is traced; `tokens(branch, parent, text)` is told what a sample says next, where the engine
    tells it. Without it, the calls of chat models are kept from the message stream, too.
    """

    def __init__(self, engine: Engine, tokens: Callable[[int, int, str], None] | None) -> None:
        self._engine, self._quiet = engine, tokens is None
        self._tokens = tokens if engine.capabilities.tells else None
        self._planned: dict[int, tuple[int, Planned]] = {}  # seed -> the thought it is for, and its expansion
        self.runs: Runs | None = None
        """What traces the requests that begin from now on."""
        self.tree = ThoughtTree()

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    def plan(self, planned: Planned, seed: int) -> None:
        """`planned` is an expansion of the search with this `seed`."""
        for branch in range(planned.first, planned.first + planned.request.n):
            self._planned[thought_seed(seed, branch)] = (branch, planned)

    def sample(self, prefix: Prefix, sampling: Sampling, *, seeds: Sequence[int], at: float = 0.0) -> Stream:
        """See `Engine.sample`. A request that is traced begins with the first step of its stream."""
        _, planned = self._planned[seeds[0]]
        branches = [self._planned.pop(seed)[0] for seed in seeds]

        def start() -> Stream:
            if self._tokens is None:
                return self._engine.sample(prefix, sampling, seeds=seeds, at=at)
            listener = _TokenListener(self._engine, self._tokens, branches, planned.request.parent)
            return cast(Teller, self._engine).sample(prefix, sampling, seeds=seeds, at=at, tell=listener)

        if self.runs is None:
            return start()
        return TracedStream(start, lambda: self._begin(planned, branches, sampling), self._child(branches), len(seeds))

    def _begin(self, planned: Planned, branches: list[int], sampling: Sampling) -> Awaitable[Run]:
        assert self.runs is not None
        parent, tree = planned.request.parent, self.tree
        text = "".join(step.text for step in tree.path(parent)) if parent != ROOT else tree.root_text
        about: dict[str, Any] = {"branches": branches, "parent": parent, "depth": tree.depth[parent] + 1}
        about |= {"expansion": planned.expansion, "commit": planned.commit}
        if self.capabilities.ids:
            return self.runs.model("tts.expand", text, sampling, self.name, **about)
        inputs = {"parent": parent, "text": text, "n": len(branches)}
        return self.runs.chain("tts.expand", inputs, quiet=self._quiet, **about)

    def _child(self, branches: list[int]) -> Callable[[Completion], Child]:
        return lambda completion: Child(branches[completion.index], _text(self._engine, completion.ids), completion)

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        return await self._engine.label_logprobs(prefixes, suffix, labels)

    def encode(self, text: str) -> tuple[int, ...]:
        return self._engine.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._engine.decode(ids)

    async def aclose(self) -> None:
        await self._engine.aclose()


class _TokenListener:
    """Tells what the samples of one request say, piece by piece."""

    def __init__(
        self, engine: Engine, tokens: Callable[[int, int, str], None], branches: list[int], parent: int
    ) -> None:
        self._engine, self._tokens, self._branches, self._parent = engine, tokens, branches, parent
        self._said = [""] * len(branches)

    def __call__(self, index: int, ids: tuple[int, ...]) -> None:
        # What a torn character becomes may still change.
        text, said = _text(self._engine, ids).rstrip("\ufffd"), self._said[index]
        if len(text) > len(said) and text.startswith(said):
            self._said[index] = text
            self._tokens(self._branches[index], self._parent, text[len(said) :])


def _text(engine: Engine, ids: tuple[int, ...]) -> str:
    """What a sample says, the token with which an answer ends left out."""
    return engine.decode(ids[:-1] if ids and ids[-1] in engine.capabilities.end_ids else ids)


class TracedStream:
    """A request that is one run from its first step to its last completion, its abort or its outage."""

    def __init__(
        self,
        start: Callable[[], Stream],
        begin: Callable[[], Awaitable[Run]],
        child: Callable[[Completion], Child],
        samples: int,
    ) -> None:
        self._start, self._begin, self._child, self._samples = start, begin, child, samples
        self._run: Run | None = None
        self._stream: Stream | None = None
        self._children: list[Child] = []
        self._rest = ZERO  # what the samples that were aborted used
        self._aborted = self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        if self._run is None and not self._aborted:
            self._run = await self._begin()
        try:
            completion = await self._next()
        except StopAsyncIteration:
            await self._end()
            raise
        except BaseException as error:
            if self._run is not None and not self._ended:
                self._ended = True
                await self._run.fail(error, self._children, self._usage())
            raise
        self._children.append(self._child(completion))
        if len(self._children) == self._samples:
            await self._end()
        return completion

    async def _next(self) -> Completion:
        if self._stream is None:
            if self._aborted or self._run is None:
                raise StopAsyncIteration
            if self._run.config is not None:
                # NOTE: a stream is read in a task of its own, so this holds for what the request calls and no longer.
                var_child_runnable_config.set(self._run.config)
            self._stream = self._start()
        return await self._stream.__anext__()

    async def _end(self) -> None:
        if self._run is not None and not self._ended:
            self._ended = True
            await self._run.end(self._children, self._usage(), cancelled=len(self._children) < self._samples)

    def _usage(self) -> Usage:
        return total_usage(child.usage for child in self._children) + self._rest

    async def abort(self) -> Usage | None:
        """See `Stream.abort`. The run ends when the stream is read to its end."""
        self._aborted = True
        if self._stream is None:
            return ZERO
        usage = await self._stream.abort()
        self._rest += usage or ZERO
        return usage


class TracedVerifier:
    """The verifier of one search; every call is a run."""

    def __init__(self, verifier: Verifier, runs: Runs) -> None:
        self._verifier, self._runs = verifier, runs

    @property
    def name(self) -> str:
        return self._verifier.name

    @property
    def scope(self) -> Scope:
        return self._verifier.scope

    def bound(self, prompt: int) -> Usage:
        return self._verifier.bound(prompt)

    async def __call__(self, branches: Sequence[Branch]) -> Sequence[Verdict | Unverified]:
        inputs = {"branches": [{"branch": branch.thought.id, "text": branch.text} for branch in branches]}
        numbers = [branch.thought.id for branch in branches]
        run = await self._runs.chain("tts.verify", inputs, quiet=True, verifier=self.name, branches=numbers)
        outside = var_child_runnable_config.set(run.config)
        try:
            verdicts = list(await self._verifier(branches))
        except BaseException as error:
            await run.fail(error)
            raise
        finally:
            var_child_runnable_config.reset(outside)
        await run.judged(branches, verdicts)
        return verdicts
