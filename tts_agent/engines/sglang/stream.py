"""The running samples of one request."""

import asyncio
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Self

from tts_agent.engines.base import Completion, FinishReason, Sampling, Tell
from tts_agent.engines.sglang.body import AT_ONCE, AT_THE_END, Part, draws, has_logprobs, sampling_body
from tts_agent.engines.sglang.branch import Branch
from tts_agent.engines.sglang.desk import ABORT_SECONDS, Desk, Live, refuse, stop
from tts_agent.engines.sglang.processor import raw_logprobs
from tts_agent.engines.sglang.reply import Reply, asked_logprobs, said_logprobs
from tts_agent.engines.sglang.server import Refused
from tts_agent.engines.sglang.tokens import Tokens
from tts_agent.engines.sglang.worker import Worker
from tts_agent.errors import EngineUnavailable
from tts_agent.prefix import Prefix
from tts_agent.usage import ZERO, Usage, total_usage

News = Completion | Exception | None


class Run:
    """Serves one request from its first attempt to its last completion."""

    def __init__(
        self,
        desk: Desk,
        tokens: Tokens,
        prefix: Prefix,
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        logprobs: bool,
        tell: Tell | None = None,
    ) -> None:
        self.prefix, self.sampling = prefix, sampling
        self.branches = [Branch(index, seed) for index, seed in enumerate(seeds)]
        self.news: asyncio.Queue[News] = asyncio.Queue()
        self.live = Live()
        self.stopping = asyncio.Event()
        self.ended: dict[int, Usage] = {}
        self._desk, self._tokens, self._tell = desk, tokens, tell
        self._logprobs = logprobs and has_logprobs(sampling, desk.extras)
        self._shared = 0  # tokens run for all samples together and not charged to one yet
        self._told = False
        self._warming = 0
        self.failed = False  # a server stopped answering
        self.uncertain = False  # what a stopped sample had consumed is not known
        self._deliveries: set[asyncio.Task[None]] = set()
        self._pieces: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Run every sample to its end; tells `news` of completions, of what went wrong, and of the end (None)."""
        problem: Exception | None = None
        self._go_on(self.branches)
        while self._pieces or self._deliveries:
            tasks = [*self._pieces, *self._deliveries]
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    problem = problem or result
            self._pieces.difference_update(tasks)
            self._deliveries.difference_update(tasks)
        if problem is not None:
            self.failed = isinstance(problem, EngineUnavailable)
            self.news.put_nowait(problem)
        self.news.put_nowait(None)

    def give_up(self) -> bool:
        """Stop what waits for a server, if no server has anything to do with this request."""
        if self.live.at or self._warming:
            return False
        for task in self._pieces:
            task.cancel()
        return True

    def _go_on(self, branches: list[Branch]) -> None:
        """Run the next piece of each of `branches`, which is all of it, unless the server ends one too early."""
        left = list(branches)

        async def work(worker: Worker) -> None:
            await self._attempt(worker, left)

        self._pieces.add(asyncio.create_task(self._desk.with_worker(self.prefix.ids, work)))

    async def _attempt(self, worker: Worker, left: list[Branch]) -> None:
        """Run pieces at one server; those that have ended are taken out of `left`."""
        prefix, lane = self.prefix.ids, worker.lane
        while (heating := lane.heating.get(hash(prefix))) is not None:
            await heating.wait()
        cold = worker.memory.cold(prefix)
        tokens = sum(self.sampling.max_tokens - len(branch.ids) for branch in left) + (len(prefix) if cold else 0)
        async with worker.admitted(tokens):
            if not cold:
                await self._sample(worker, left)
                return
            async with lane.heats(prefix) as heated:
                # Cold siblings in one batch share nothing, so the prefix is computed before; then one token each is.
                warmed = len(prefix) * (len(left) - 1) > len(left)
                if warmed:
                    await self._warm(worker)
                    heated()
                await self._sample(worker, left, heated)

    async def _warm(self, worker: Worker) -> None:
        self._warming += 1
        try:
            self._shared += await self._desk.warm(worker, self.prefix.ids, self._desk.pool.tree(self.prefix.ids))
        finally:
            self._warming -= 1

    async def _sample(self, worker: Worker, left: list[Branch], heated: Callable[[], None] | None = None) -> None:
        if self.stopping.is_set():
            return
        asked, tree = list(left), self._desk.pool.tree(self.prefix.ids)
        parts = [Part(self.prefix.ids + branch.ids, branch.seed, len(branch.ids)) for branch in asked]
        interval = AT_THE_END if self._tell is None else AT_ONCE
        body = sampling_body(parts, self.sampling, self._desk.extras, logprobs=self._logprobs, interval=interval)
        refused: Refused | None = None
        async with self._desk.replies(worker, body, tree, self.live) as replies:
            async for reply in replies:
                branch = asked[reply.place]
                if reply.finish in ("stop", "abort"):
                    branch.computed += self._beyond(worker, branch, reply)
                if reply.finish == "abort":
                    refused = self._stopped(worker, branch, reply) or refused
                    continue
                if heated is not None:
                    heated()
                    self._desk.pool.learn(worker, tree, self.prefix.ids, run=len(self.prefix))
                    heated = None
                branch.begun, branch.running = True, reply
                if reply.finish is not None:
                    left.remove(branch)
                    await self._piece_ended(worker, tree, branch, reply)
                elif self._tell is not None:
                    said = branch.ids + reply.ids
                    await self._tokens.prefetch([said])
                    self._tell(branch.index, said)
        if refused is not None:
            raise refused

    def _beyond(self, worker: Worker, branch: Branch, reply: Reply) -> int:
        """Tokens that the server computed after the end of a sample.

        A scheduler that runs ahead has the next step under way when it learns that a sample has stopped. It knows
        beforehand when one comes to its last token.
        """
        ahead = worker.info is not None and worker.info.ahead
        return int(ahead and 0 < len(reply.ids) < self.sampling.max_tokens - len(branch.ids))

    def _stopped(self, worker: Worker, branch: Branch, reply: Reply) -> Refused | None:
        """A sample was stopped by us, or by the server, which may have refused it."""
        chunk = worker.info.chunk if worker.info is not None else None
        if not reply.ids and not branch.ids and chunk is not None and reply.prompt > chunk:
            self.uncertain = True  # some pieces of its prompt may have been computed
        branch.begun = branch.begun or bool(reply.ids)
        branch.running = reply if branch.begun else None
        if self.stopping.is_set():
            return None
        try:
            refuse(reply)
        except Refused as refused:
            return refused
        return None

    async def _piece_ended(self, worker: Worker, tree: str, branch: Branch, reply: Reply) -> None:
        page = worker.info.page if worker.info is not None else 1
        if branch.ids and reply.prompt - reply.cached > page:
            worker.memory.forget()  # what it had just computed is gone
        branch.take(reply, self._read_logprobs(reply))
        said = self.prefix.ids + branch.ids
        self._desk.pool.learn(worker, tree, said, run=len(said) - 1)
        finish = await self._finish(branch, reply)
        if finish is None:
            self._go_on([branch])
            return
        usage = self._charge(branch)
        self.ended[branch.index] = usage
        self._deliver(Completion(branch.index, branch.ids, finish, usage, branch.logprobs))

    async def _finish(self, branch: Branch, reply: Reply) -> FinishReason | None:
        """Why a sample has ended, or None if it goes on: the server also ends it where the model would, unasked."""
        sampling = self.sampling
        if isinstance(reply.matched, str) and reply.matched not in sampling.stop_texts:
            raise EngineUnavailable(f"the server computed no number: {reply.matched}")
        if sampling.stop_texts and (end := await self._text_end(branch.ids)) is not None:
            branch.cut(end)
            return "stop"
        if branch.ids[-1] in sampling.stop_ids or (sampling.constrained and reply.finish == "stop"):
            return "stop"
        return None if len(branch.ids) < sampling.max_tokens else "length"

    async def _text_end(self, ids: tuple[int, ...]) -> int | None:
        """How many of `ids` there are up to the one in which the first stop text ends.

        The server looks at the text of the newest ids only, which with some tokenizers is another text.
        """
        beginnings = [ids, ids[:-1]]
        await self._tokens.prefetch(beginnings)
        if not self._says_stop(ids):
            return None
        if not self._says_stop(ids[:-1]):
            return len(ids)
        beginnings = [ids[:end] for end in range(1, len(ids))]
        await self._tokens.prefetch(beginnings)
        return next(len(beginning) for beginning in beginnings if self._says_stop(beginning))

    def _says_stop(self, ids: tuple[int, ...]) -> bool:
        text = self._tokens.decode(ids)
        return any(stop in text for stop in self.sampling.stop_texts)

    def _read_logprobs(self, reply: Reply) -> tuple[float, ...]:
        if not self._logprobs:
            return ()
        if draws(self.sampling, self._desk.extras):
            return raw_logprobs(reply.ids, asked_logprobs(reply.meta))
        return said_logprobs(reply.meta)

    def _charge(self, branch: Branch) -> Usage:
        """The usage to report with a completion: its own, and as much of what was shared as its prompt can hold."""
        usage, prompt = branch.usage(len(self.prefix)), len(self.prefix)
        last = len(self.ended) == len(self.branches) - 1
        shared = self._shared if last else min(self._shared, max(prompt - usage.prompt_computed, 0))
        self._shared -= shared
        calls, self._told = int(not self._told), True
        computed = usage.prompt_computed + shared
        return usage._replace(prompt_computed=computed, prompt_cached=max(prompt - computed, 0), calls=calls)

    def _deliver(self, completion: Completion) -> None:
        texts = [completion.ids, completion.ids[:-1]] if completion.finish == "stop" else [completion.ids]

        async def deliver() -> None:
            await self._tokens.prefetch(texts)
            self.news.put_nowait(completion)

        if self._tokens.waits:
            self._deliveries.add(asyncio.create_task(deliver()))
        else:
            self.news.put_nowait(completion)

    def rest(self, known: Collection[int]) -> Usage:
        """What was consumed by the samples whose usage is not `known` yet, and by none in particular."""
        usage = total_usage(used for index, used in self.ended.items() if index not in known)
        usage += total_usage(
            branch.usage(len(self.prefix)) for branch in self.branches if branch.index not in self.ended
        )
        usage += Usage(prompt_computed=self._shared)
        return usage if self._told or usage == ZERO else usage._replace(calls=1)


class SGLangStream:
    """See `Stream`. Dropping it before the end stops its samples."""

    _done = True

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._yielded: set[int] = set()
        self._task = asyncio.create_task(run.serve())
        self._done = False
        weakref.finalize(self, _drop, self._loop, self._task).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        if self._done:
            raise StopAsyncIteration
        news = await self._run.news.get()
        if isinstance(news, Completion) and not self._done:
            self._yielded.add(news.index)
            self._done = len(self._yielded) == len(self._run.branches)
            if self._done:
                self._run.news.put_nowait(None)  # for whoever else waits here
            return news
        self._done = True
        self._run.news.put_nowait(None)
        if isinstance(news, Exception):
            raise news
        raise StopAsyncIteration

    async def abort(self) -> Usage | None:
        """See `Stream.abort`. Completions that ended and were not yielded are part of the returned usage."""
        if self._done:
            return ZERO
        self._done = True
        run = self._run
        run.stopping.set()
        confirmed = await self._stopped()
        run.live.at.clear()
        failed = not confirmed or run.uncertain or run.failed
        run.news.put_nowait(None)  # for whoever waits for the next completion
        return None if failed else run.rest(self._yielded)

    async def _stopped(self) -> bool:
        """Whether the server has confirmed that every sample was stopped."""
        deadline, pause = self._loop.time() + ABORT_SECONDS, 0.02
        while not self._task.done():
            if self._loop.time() > deadline:
                self._task.cancel()
                return False
            # An id that the server does not know yet is not stopped, so it is asked for again.
            if not self._run.give_up():
                await stop(dict(self._run.live.at))
            await asyncio.wait([self._task], timeout=pause)
            pause = min(2 * pause, 0.5)
        return not self._task.cancelled()


def _drop(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]") -> None:
    """Cancel what serves a stream that nobody holds any more."""
    if not task.done() and not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)
