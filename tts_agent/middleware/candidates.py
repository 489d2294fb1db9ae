"""What an agent might do next, sampled through the handler of its middleware: an engine of whole responses."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

from tts_agent.engines.base import Capabilities, Completion, Label, LabelScores, Sampling
from tts_agent.errors import ConfigError
from tts_agent.events import Carried
from tts_agent.middleware.journal import Ask
from tts_agent.middleware.meter import from_model, reported
from tts_agent.nodes.runs import Runs, branches_here
from tts_agent.nodes.traced import TracedVerifier
from tts_agent.prefix import Prefix
from tts_agent.task import Task
from tts_agent.thought import ROOT, Reading, Thought, Unverified, Verdict
from tts_agent.tree import Branch, ThoughtTree
from tts_agent.usage import ZERO, Usage
from tts_agent.verifiers.base import Scope

END = 2**32 - 1
"""The id that stands after a response."""

ENDS = frozenset((END,))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One response of the model to the request, as whole as the agent would get it."""

    request: ModelRequest[Any]
    response: ModelResponse[Any]
    message: AIMessage
    """What the model said; a `ToolMessage` of structured output may stand after it in `response.result`."""
    content: str
    """Its text, without tool calls."""
    text: str
    """Its text, and its tool calls as JSON."""
    key: str
    """What it wants to do: candidates with equal keys are the same decision."""
    defect: str
    """Why it is no decision that could be acted on; empty if it is one."""
    commands: Sequence[Command[Any]] = ()
    """What middleware inside updates the agent's state with if it is chosen."""

    @classmethod
    def of(
        cls, request: ModelRequest[Any], response: ModelResponse[Any], commands: Sequence[Command[Any]] = ()
    ) -> Self:
        """The candidate that `response` to `request` is."""
        message = next(message for message in response.result if isinstance(message, AIMessage))
        content = text = key = str(message.text)
        if calls := message.tool_calls:
            said = [json.dumps({"name": call["name"], "arguments": call["args"]}) for call in calls]
            text = "\n".join(filter(None, (content, *said)))
            key = json.dumps([[call["name"], call["args"]] for call in calls], sort_keys=True)
        return cls(request, response, message, content, text, key, _defect(message, response, text), commands)


def _defect(message: AIMessage, response: ModelResponse[Any], text: str) -> str:
    note = message.response_metadata.get("tts")
    if isinstance(note, dict) and note.get("stop") == "budget":
        return "the budget refused the call"
    if not from_model(message):
        return f"no model said it: {text}"
    if message.invalid_tool_calls:
        return f"a tool call cannot be read: {message.invalid_tool_calls[0].get('error')}"
    said = response.result
    if len(said) > 1 and response.structured_response is None and any(isinstance(each, ToolMessage) for each in said):
        return "the structured output does not fit its schema"
    return "" if text or message.content else "it says nothing"


Said = Verdict | Unverified

Score = float | bool | Said | None
"""What a judge says of a candidate: a score in [0, 1], a verdict, or None for "cannot say"."""

Judge = Callable[[Candidate], Score | Awaitable[Score]]

JUDGE = "judge"
"""What a function that judges is called among verifiers."""


def _said(score: Score) -> Said:
    """The verdict that `score` stands for. Raises what `Verdict` raises for a number that is none."""
    if isinstance(score, (Verdict, Unverified)):
        return score
    return Unverified("the judge cannot say", JUDGE) if score is None else Verdict(float(score), "", JUDGE)


async def _awaited(score: Awaitable[Score]) -> Said:
    try:
        return _said(await score)
    except Exception as error:  # foreign code, as above
        return _failure(error)


def _failure(error: Exception) -> Unverified:
    return Unverified(f"{type(error).__name__}: {error}", JUDGE)


class _Judging:
    """A judge, asked about one candidate, as a verifier that can be traced."""

    name: str = JUDGE
    scope: Scope = "thought"

    def __init__(self, judge: Judge, candidate: Candidate) -> None:
        self._judge, self._candidate = judge, candidate

    def bound(self, prompt: int) -> Usage:
        return ZERO

    async def __call__(self, branches: Sequence[Branch]) -> list[Said]:
        score = self._judge(self._candidate)
        return [_said(await score if isinstance(score, Awaitable) else score)]


_branch: ContextVar[int] = ContextVar("tts_agent_candidate")
"""The branch that what is asked for here becomes, where that is traced."""


# Values that are the same for every decision, which an agent with one candidate would feel.
@lru_cache(64)
def _sampling(max_tokens: int) -> Sampling:
    return Sampling(max_tokens=max_tokens, stop_ids=(END,))


@lru_cache(64)
def _request(size: int) -> Prefix:
    return Prefix((0,) * size)


class CandidateEngine:
    """Samples responses to one request by calling the handler, at most `concurrency` at once.

    An id stands for a whole response. What raises is an invalid sample and does not touch the others. `prompt` is the
    estimated size of the request in tokens, which a budget of the search may need. With `runs`, each question to the
    judge is a run.
    """

    name = "handler"
    capabilities = Capabilities(
        ids=False, continues=False, seeds=False, label_logprobs=False, aborts=False, end_ids=(END,)
    )

    def __init__(
        self,
        request: ModelRequest[Any],
        *,
        judge: Judge | None,
        concurrency: int,
        prompt: int = 1,
        runs: Runs | None = None,
    ) -> None:
        self.request = request
        self.ask: Ask | None = None
        """Has the model answer once; to be set before the search begins."""
        self.errors: list[Exception] = []
        self._judge, self._runs = judge, runs
        self._verdicts: dict[str, Said | asyncio.Task[Said]] = {}  # by what a candidate wants to do
        self._found: dict[int, Candidate] = {}  # by the identity of the response
        self._gate = asyncio.Semaphore(concurrency)
        self._prompt = prompt
        self._texts = [""]  # by id; 0 is the request
        self._readings: dict[str, Reading] = {}
        self._by_id: dict[int, Candidate] = {}

    @property
    def found(self) -> list[Candidate]:
        """Responses in the order in which they came."""
        return list(self._found.values())

    def task(self, max_tokens: int) -> Task:
        """The search for a response; a budget counts `max_tokens` for one before it comes."""
        sampling, root = _sampling(max_tokens), _request(self._prompt)
        return Task(root=root, thought=sampling, answer=sampling, read=self._read, end_ids=ENDS, max_depth=1)

    def candidate(self, thought: Thought) -> Candidate:
        """The response that `thought` stands for."""
        return self._by_id[thought.ids[0]]

    def heard(self, response: ModelResponse[Any], commands: Sequence[Command[Any]] = ()) -> Candidate:
        """Know of a response as soon as it is there, whatever becomes of it."""
        candidate = self._found.get(id(response))
        if candidate is None:
            candidate = self._found[id(response)] = Candidate.of(self.request, response, commands)
        return candidate

    async def judged(self, candidate: Candidate) -> Said | None:
        """What the judge says of a candidate that could be acted on, of equal ones once. None without a judge."""
        if self._judge is None or candidate.defect:
            return None
        key = candidate.key
        said = self._verdicts.get(key)
        if said is None:
            said = self._verdicts[key] = self._begin(self._judge, candidate)
        return await asyncio.shield(said) if isinstance(said, asyncio.Task) else said

    def _begin(self, judge: Judge, candidate: Candidate) -> "Said | asyncio.Task[Said]":
        if self._runs is not None:
            return asyncio.create_task(self._traced(judge, candidate, self._runs))
        try:
            score = judge(candidate)
            return asyncio.create_task(_awaited(score)) if isinstance(score, Awaitable) else _said(score)
        except Exception as error:  # foreign code: its failure is not a verdict
            return _failure(error)

    @staticmethod
    async def _traced(judge: Judge, candidate: Candidate, runs: Runs) -> Said:
        thought = Thought(_branch.get(), ROOT, 0, (), candidate.text)
        branch = Branch(ThoughtTree([Carried(thought)]), thought, Prefix())
        try:
            (said,) = await TracedVerifier(_Judging(judge, candidate), runs)([branch])
        except Exception as error:  # foreign code, as above
            return _failure(error)
        return said

    def _read(self, parent: Thought | None, text: str) -> Reading:
        return self._readings[text]

    def sample(self, prefix: Prefix, sampling: Sampling, *, seeds: Sequence[int], at: float = 0.0) -> "CandidateStream":
        return CandidateStream(self, len(seeds))

    async def complete(self, index: int) -> Completion:
        """One call of the handler, when there is room for it. Used by the engine's streams."""
        async with self._gate:
            if self._runs is not None:
                _branch.set(branches_here()[index])
            try:
                assert self.ask is not None
                answer = await self.ask(self.request)
            except GraphBubbleUp:
                raise  # an interrupt of the graph is no failure
            except Exception as error:  # providers and other middleware raise classes of their own
                return Completion(index, (self._failed(error), END), "stop", Usage(calls=1))
            candidate = self.heard(answer.response, answer.commands)
            number = self._keep(candidate, answer.verdict)
            return Completion(index, (number, END), "stop", self._usage(candidate))

    def _failed(self, error: Exception) -> int:
        self.errors.append(error)
        reason = f"{type(error).__name__}: {error}"
        return self._add(f"[{reason}]", Reading("invalid", reason=reason))

    def _keep(self, candidate: Candidate, verdict: Said | None) -> int:
        text, calls = candidate.text, candidate.message.tool_calls
        action = {"content": candidate.content, "tool_calls": [[call["name"], call["args"]] for call in calls]}
        if defect := candidate.defect:
            number = self._add(text, Reading("invalid", action, reason=defect))
        else:
            number = self._add(text, Reading("complete", action, candidate.key, verdict=verdict))
        self._by_id[number] = candidate
        return number

    def _add(self, text: str, reading: Reading) -> int:
        if self._readings.setdefault(text, reading) != reading:  # the same words, and yet another response
            text = f"{text} [{len(self._texts)}]"
            self._readings[text] = reading
        self._texts.append(text)
        return len(self._texts) - 1

    def _usage(self, candidate: Candidate) -> Usage:
        said = reported(candidate.message)
        if said is not None:
            return said
        size = len(candidate.text) // 3 + 1
        return Usage(prompt_computed=self._prompt, generated=size, decoded=size - 1, calls=1)

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        raise ConfigError("responses of an agent's model give no label log-probabilities; use another verifier")

    def encode(self, text: str) -> tuple[int, ...]:
        raise ConfigError("the ids of this engine stand for whole responses; no text becomes one")

    def decode(self, ids: Sequence[int]) -> str:
        texts = self._texts
        return "".join([texts[token] for token in ids if token != END])

    async def aclose(self) -> None:
        """Stop the judges that are still at it; calls end with their streams."""
        self.ask = None  # it knows this engine: without the ring all of this is freed at once
        judging = [said for said in self._verdicts.values() if isinstance(said, asyncio.Task)]
        for said in judging:
            said.cancel()
        if self._runs is not None and judging:
            await asyncio.wait(judging)  # their runs are to be ended


class CandidateStream:
    """The running calls of one request."""

    def __init__(self, engine: CandidateEngine, calls: int) -> None:
        self._engine, self._left = engine, calls
        self._tasks: set[asyncio.Task[Completion]] = set()
        self._reader: asyncio.Task[Any] | None = None
        self._aborted = False
        if calls == 1:
            return  # a single call needs no task of its own: whoever reads the stream makes it
        self._done: asyncio.Queue[asyncio.Task[Completion]] = asyncio.Queue()
        self._tasks = {asyncio.create_task(engine.complete(index)) for index in range(calls)}
        for task in self._tasks:
            task.add_done_callback(self._done.put_nowait)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        if self._left <= 0:  # less, if a call had ended when the rest was aborted, and was read after that
            raise StopAsyncIteration
        if not self._tasks:
            return await self._alone()
        task = await self._done.get()
        if task.cancelled():  # by `abort`
            raise StopAsyncIteration
        self._left -= 1
        try:
            return task.result()
        except BaseException:
            await self.abort()
            raise

    async def _alone(self) -> Completion:
        self._reader = reader = asyncio.current_task()
        try:
            completion = await self._engine.complete(0)
        except asyncio.CancelledError:
            if not self._aborted or reader is None:
                raise
            reader.uncancel()
            raise StopAsyncIteration from None
        finally:
            self._reader = None
        self._left = 0
        return completion

    async def abort(self) -> Usage | None:
        """See `Stream.abort`; nobody says what a call that was cancelled had cost."""
        running = [task for task in self._tasks if not task.done()]
        unread, self._left = self._left, 0
        self._aborted = True
        if self._reader is not None:
            self._reader.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return ZERO if not unread else None
