"""Answers that outlive a kill: each is a task of LangGraph, whose result lies with the checkpointer.

When an agent resumes, its search begins anew and asks for the same answers in the same order, and those that were
stored are given back with their verdicts. Which answer is which does not matter: all are samples of one request. What
failed is not stored, so it is tried again. A search that had ended is not begun anew: what came of it is stored too.
What a search inside an answer stores lies under the task of that answer, so that it is given back to no other.

With an answer lies what middleware inside updates the state with, and what was charged while it was made (retries and
calls of its judge included), so that the budgets of another process, around and inside, know of it before they admit
anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.config import get_config
from langgraph.func import entrypoint, task
from langgraph.types import Command
from pydantic import TypeAdapter

from tts_agent.events import verdict_from_json, verdict_to_json
from tts_agent.middleware.commands import spent, writable
from tts_agent.middleware.meter import current_meter
from tts_agent.middleware.request import changed
from tts_agent.middleware.tally import Tally, current_tally
from tts_agent.nodes.place import Attempts, own_space
from tts_agent.nodes.plan import hidden
from tts_agent.nodes.shared import Run
from tts_agent.nodes.spent import BUDGETS, Entry, merge_budgets
from tts_agent.thought import Unverified, Verdict
from tts_agent.usage import Usage

T = TypeVar("T")

PLACE = ("checkpoint_ns", "checkpoint_map", "__pregel_task_id", "__pregel_scratchpad")
"""Settings of a task by which LangGraph numbers, stores and finds again the graphs that the task calls."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the agent's model, the verdict on it if it was judged at once, and the state's updates with it."""

    response: ModelResponse[Any]
    verdict: Verdict | Unverified | None = None
    commands: Sequence[Command[Any]] = ()


Ask = Callable[[ModelRequest[Any]], Awaitable[Answer]]
"""Has the model answer once."""


async def akept(work: Callable[[Ask], Awaitable[Answer]], ask: Ask, request: ModelRequest[Any]) -> Answer:
    """`await work(ask)` for `request`, every answer of `ask` made durable, and what comes of it."""
    step = _Step(request)

    @entrypoint()
    async def search(_: dict[str, Any]) -> entrypoint.final[dict[str, Any], None]:
        if step.resumed:
            step.recall(await _journals().astored())

        @task
        async def answer(call: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
            return await call()

        inside = copy_context()  # tasks belong to this entrypoint, wherever the search asks from

        async def kept(request: ModelRequest[Any]) -> Answer:
            made = _Made(step, request)
            outside = made.context()

            async def call() -> dict[str, Any]:
                # The model's run is one of the caller's, not one of the journal.
                with made.settled():
                    made.place(outside)
                    asked = asyncio.create_task(_asked(ask, step.told(request)), context=outside)
                    return made.pack(await _outlasted(asked))

            return made.unpack(await inside.copy().run(answer, call))

        return entrypoint.final(value=step.pack(await work(kept)), save=None)

    return step.unpack(await search.ainvoke({}, _within()))


def kept(
    work: Callable[[Callable[[ModelRequest[Any]], Answer]], Answer],
    ask: Callable[[ModelRequest[Any]], Answer],
    request: ModelRequest[Any],
) -> Answer:
    """`work(ask)` for `request`, every answer of `ask` made durable, and what comes of it.

    `ask` may be called by any thread, in a context of its own.
    """
    step = _Step(request)

    @entrypoint()
    def search(_: dict[str, Any]) -> entrypoint.final[dict[str, Any], None]:
        if step.resumed:
            step.recall(_journals().stored())

        @task
        def answer(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            return call()

        inside = copy_context()

        def kept_answer(request: ModelRequest[Any]) -> Answer:
            made = _Made(step, request)
            outside = made.context()

            def call() -> dict[str, Any]:
                with made.settled():
                    made.place(outside)
                    return made.pack(outside.run(ask, step.told(request)))

            return made.unpack(inside.copy().run(answer, call).result())

        return entrypoint.final(value=step.pack(work(kept_answer)), save=None)

    return step.unpack(search.invoke({}, _within()))


class _Within(NamedTuple):
    """Where searches inside an answer are stored: the settings that `PLACE` names, for who runs in the same `task`."""

    task: str
    settings: dict[str, Any]


_within_answer: ContextVar[_Within | None] = ContextVar("tts_agent_answer", default=None)
"""The answer that is made here."""


def _within() -> RunnableConfig:
    """The config of a journal that begins here."""
    # NOTE: of one in an answer of another, LangGraph would count which of its node's it is. That is another number once
    # stored answers begin none, and it would be given back what another answer stored.
    config, within = hidden(None), _within_answer.get()
    if within is None or config["configurable"]["__pregel_task_id"] != within.task:
        return config
    return {**config, "configurable": {**config["configurable"], **within.settings}}


def _journals() -> Attempts:
    """Where the answers lie that the running entrypoint is given back."""
    config = get_config()
    return Attempts.of(config, own_space(config))


class _Step:
    """What came of one request, on its way into the journal, or out of it."""

    def __init__(self, request: ModelRequest[Any]) -> None:
        self._request = request
        self._answer: Answer | None = None  # once it was made here
        self._budgets: dict[str, Entry] = {}  # of middleware inside, as stored answers tell of them
        meter = current_meter()
        self.serde = Attempts.of(get_config()).saver.serde
        """What the checkpointer writes with."""
        self.accounts = () if meter is None else meter.accounts
        """Of the budgets around."""
        self.resumed = Run.current().resumed
        """Whether answers may be stored that others made."""
        self.charged: dict[str, dict[str, Any]] = {}
        """What each answer was charged, failed ones too, by their ids."""

    def recall(self, stored: Iterable[Any]) -> None:
        """Know what was charged for all that is stored, before anything new is admitted to what is left."""
        for value in stored:
            if isinstance(value, dict) and "charged" in value:
                self._learn(value["charged"])
                self._budgets = merge_budgets(self._budgets, spent(_commands(value)))

    def told(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """`request` for an answer that is not stored, its state telling what budgets inside spent on those that are."""
        if not self._budgets:
            return request
        state: Mapping[str, Any] = request.state
        return changed(request, state={**state, BUDGETS: merge_budgets(state.get(BUDGETS), self._budgets)})

    def pack(self, answer: Answer) -> dict[str, Any]:
        """What the checkpointer keeps: LangGraph does not run an entrypoint again that has ended."""
        self._answer = answer
        return {**_packed(answer, self.serde), "charged": self.charged}

    def unpack(self, stored: dict[str, Any]) -> Answer:
        """The answer; of one that was made before, all that was charged for it is known."""
        if self._answer is not None:
            return self._answer
        self._learn(stored["charged"])
        self.count(stored["charged"])
        return Answer(_unpacked(stored, self._request), commands=_commands(stored))

    def count(self, charged: Mapping[str, dict[str, Any]]) -> None:
        """Have what was stored count in the answer that this step is a part of, if it is one."""
        self.charged |= charged
        if (tally := current_tally()) is not None:
            for usage in charged.values():
                tally.add(Usage.from_json(usage))

    def _learn(self, charged: Mapping[str, dict[str, Any]]) -> None:
        for account in self.accounts:
            for call, usage in charged.items():
                account.learn_call(call, Usage.from_json(usage))


class _Made:
    """One answer on its way into the journal, or out of it."""

    def __init__(self, step: _Step, request: ModelRequest[Any]) -> None:
        self._step, self._request = step, request
        self._id, self._tally = uuid4().hex, Tally()
        self._answer: Answer | None = None  # once it was made here

    def context(self) -> Context:
        """A copy of the caller's, to make the answer in."""
        context = copy_context()
        self._tally.begin(context)
        return context

    def place(self, context: Context) -> None:
        """Have searches in `context` be stored under the journal's task that runs here; all else stays the caller's."""
        own, caller = get_config()["configurable"], context.run(get_config)["configurable"]
        context.run(_within_answer.set, _Within(caller["__pregel_task_id"], {key: own[key] for key in PLACE}))

    @contextmanager
    def settled(self) -> Iterator[None]:
        """The budgets around know of the answer, whatever becomes of it: they were charged as it was made."""
        try:
            yield
        finally:
            self._step.charged[self._id] = self._tally.charged.to_json()
            for account in self._step.accounts:
                account.learn_call(self._id, None)

    def pack(self, answer: Answer) -> dict[str, Any]:
        """What the checkpointer keeps."""
        self._answer = answer
        return {
            **_packed(answer, self._step.serde),
            "verdict": None if answer.verdict is None else verdict_to_json(answer.verdict),
            "charged": {self._id: self._tally.charged.to_json()},
        }

    def unpack(self, stored: dict[str, Any]) -> Answer:
        """The answer."""
        if self._answer is not None:
            return self._answer
        self._step.count(stored["charged"])
        verdict = None if stored["verdict"] is None else verdict_from_json(stored["verdict"])
        return Answer(_unpacked(stored, self._request), verdict, _commands(stored))


def _packed(answer: Answer, serde: SerializerProtocol) -> dict[str, Any]:
    structured = answer.response.structured_response
    commands = [writable(command, serde) for command in answer.commands]
    return {
        "messages": answer.response.result,
        "structured": structured,
        "kind": type(structured).__name__,
        "commands": [{part.name: getattr(each, part.name) for part in fields(Command)} for each in commands],
    }


def _commands(stored: Mapping[str, Any]) -> list[Command[Any]]:
    return [Command(**{**parts, "update": _update(parts["update"])}) for parts in stored["commands"]]


def _update(value: Any) -> Any:
    """`value` as it was: pairs of a key and its value come back as lists."""
    return [tuple(pair) for pair in value] if isinstance(value, list) else value


def _unpacked(stored: dict[str, Any], request: ModelRequest[Any]) -> ModelResponse[Any]:
    structured = _revived(stored["structured"], stored["kind"], request)
    return ModelResponse(result=stored["messages"], structured_response=structured)


def _revived(value: Any, kind: str, request: ModelRequest[Any]) -> Any:
    """`value` as it was: a checkpointer that knows no foreign classes gives back their fields."""
    if not isinstance(value, dict) or kind == "dict":
        return value
    asked = request.response_format
    schema = getattr(asked, "schema", None)
    specs = getattr(asked, "schema_specs", None) or [getattr(asked, "schema_spec", None)]
    schemas = [schema, *(getattr(spec, "schema", None) for spec in specs)]
    known = next((each for each in schemas if isinstance(each, type) and each.__name__ == kind), None)
    return value if known is None else TypeAdapter(known).validate_python(value)


async def _asked(ask: Ask, request: ModelRequest[Any]) -> Answer:
    return await ask(request)


async def _outlasted(work: asyncio.Task[T]) -> T:
    """What `work` gives. It is cancelled with its caller, who ends after it."""
    # NOTE: LangGraph cancels a task again while it ends. An answer that runs a graph of its own would then leave the
    # tasks of that graph to themselves, and a call of the model running.
    try:
        await asyncio.wait((work,))
    except asyncio.CancelledError:
        work.cancel()
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((work,))
        if not work.cancelled():
            work.exception()  # nobody else looks at it
        raise
    return work.result()
