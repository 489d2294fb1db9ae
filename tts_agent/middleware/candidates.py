"""What an agent might do next, sampled through the handler of its middleware: an engine of whole responses."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.errors import GraphBubbleUp

from tts_agent.engines.base import Capabilities, Completion, Label, LabelScores, Sampling
from tts_agent.errors import ConfigError
from tts_agent.middleware.meter import reported
from tts_agent.prefix import Prefix
from tts_agent.task import Task
from tts_agent.thought import Reading, Thought
from tts_agent.usage import ZERO, Usage

END = 2**32 - 1
"""The id that stands after a response."""

Ask = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One response of the model to the request, as whole as the agent would get it."""

    request: ModelRequest[Any]
    response: ModelResponse[Any]

    @property
    def message(self) -> AIMessage:
        """What the model said; a `ToolMessage` of structured output may stand after it in `response.result`."""
        return next(message for message in self.response.result if isinstance(message, AIMessage))

    @property
    def text(self) -> str:
        """Its text, and its tool calls as JSON."""
        calls = [json.dumps({"name": call["name"], "arguments": call["args"]}) for call in self.message.tool_calls]
        return "\n".join(filter(None, (self.message.text, *calls)))

    @property
    def defect(self) -> str:
        """Why it is no decision that could be acted on; empty if it is one."""
        note = self.message.response_metadata.get("tts")
        if isinstance(note, dict) and note.get("stop") == "budget":
            return "the budget refused the call"
        if self.message.invalid_tool_calls:
            return f"a tool call cannot be read: {self.message.invalid_tool_calls[0].get('error')}"
        if self.response.structured_response is None and any(isinstance(m, ToolMessage) for m in self.response.result):
            return "the structured output does not fit its schema"
        return "" if self.message.text or self.message.tool_calls or self.message.content else "it says nothing"


class CandidateEngine:
    """Samples responses to one request by calling the handler, at most `concurrency` at once.

    An id stands for a whole response. What raises is an invalid sample and does not touch the others. `prompt` is the
    estimated size of the request in tokens, which a budget of the search may need.
    """

    name = "handler"
    capabilities = Capabilities(
        ids=False, continues=False, seeds=False, label_logprobs=False, aborts=False, end_ids=(END,)
    )

    def __init__(self, request: ModelRequest[Any], ask: Ask, *, concurrency: int, prompt: int = 1) -> None:
        self.request = request
        self.found: list[Candidate] = []
        """Responses in the order in which they came."""
        self.errors: list[Exception] = []
        self._ask = ask
        self._gate = asyncio.Semaphore(concurrency)
        self._prompt = prompt
        self._texts = [""]  # by id; 0 is the request
        self._readings: dict[str, Reading] = {}
        self._by_id: dict[int, Candidate] = {}

    def task(self, max_tokens: int) -> Task:
        """The search for a response; a budget counts `max_tokens` for one before it comes."""
        sampling = Sampling(max_tokens=max_tokens, stop_ids=(END,))
        return Task(
            root=Prefix((0,) * self._prompt),
            thought=sampling,
            answer=sampling,
            read=self._read,
            end_ids=frozenset((END,)),
            max_depth=1,
        )

    def candidate(self, thought: Thought) -> Candidate:
        """The response that `thought` stands for."""
        return self._by_id[thought.ids[0]]

    def _read(self, parent: Thought | None, text: str) -> Reading:
        return self._readings[text]

    def sample(self, prefix: Prefix, sampling: Sampling, *, seeds: Sequence[int], at: float = 0.0) -> "CandidateStream":
        return CandidateStream(self, len(seeds))

    async def complete(self, index: int) -> Completion:
        """One call of the handler. Used by the engine's streams."""
        try:
            response = await self._ask(self.request)
        except GraphBubbleUp:
            raise  # an interrupt of the graph is no failure
        except Exception as error:  # providers and other middleware raise classes of their own
            return Completion(index, (self._failed(error), END), "stop", Usage(calls=1))
        candidate = Candidate(self.request, response)
        return Completion(index, (self._keep(candidate), END), "stop", self._usage(candidate))

    def _failed(self, error: Exception) -> int:
        self.errors.append(error)
        reason = f"{type(error).__name__}: {error}"
        return self._add(f"[{reason}]", Reading("invalid", reason=reason))

    def _keep(self, candidate: Candidate) -> int:
        self.found.append(candidate)
        text, message = candidate.text, candidate.message
        action = {"content": message.text, "tool_calls": [[call["name"], call["args"]] for call in message.tool_calls]}
        if defect := candidate.defect:
            number = self._add(text, Reading("invalid", action, reason=defect))
        else:
            key = json.dumps(action["tool_calls"], sort_keys=True) if message.tool_calls else text
            number = self._add(text, Reading("complete", action, key))
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

    async def gated(self, index: int) -> Completion:
        async with self._gate:
            return await self.complete(index)

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        raise ConfigError("responses of an agent's model give no label log-probabilities; use another verifier")

    def encode(self, text: str) -> tuple[int, ...]:
        raise ConfigError("the ids of this engine stand for whole responses; no text becomes one")

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._texts[token] for token in ids if token and token != END)

    async def aclose(self) -> None:
        """Nothing to free: calls end with their streams."""


class CandidateStream:
    """The running calls of one request."""

    def __init__(self, engine: CandidateEngine, calls: int) -> None:
        self._tasks = {asyncio.create_task(engine.gated(index)) for index in range(calls)}
        self._done: asyncio.Queue[asyncio.Task[Completion]] = asyncio.Queue()
        self._left = calls
        for task in self._tasks:
            task.add_done_callback(self._done.put_nowait)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        if not self._left:
            raise StopAsyncIteration
        task = await self._done.get()
        if task.cancelled():  # by `abort`
            raise StopAsyncIteration
        self._left -= 1
        try:
            return task.result()
        except BaseException:
            await self.abort()
            raise

    async def abort(self) -> Usage | None:
        """See `Stream.abort`; nobody says what a call that was cancelled had cost."""
        running = [task for task in self._tasks if not task.done()]
        unread, self._left = self._left, 0
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return ZERO if not unread else None
