"""Answers that outlive a kill: each is a task of LangGraph, whose result lies with the checkpointer.

When an agent resumes, its search begins anew and asks for the same answers in the same order, and those that were
stored are given back with their verdicts. Which answer is which does not matter: all are samples of one request. What
failed is not stored, so it is tried again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.messages import AIMessage
from langgraph.config import get_config
from langgraph.func import entrypoint, task
from pydantic import TypeAdapter

from tts_agent.events import verdict_from_json, verdict_to_json
from tts_agent.middleware.meter import current_meter, reported
from tts_agent.nodes.place import Place
from tts_agent.nodes.plan import hidden
from tts_agent.thought import Unverified, Verdict
from tts_agent.usage import Usage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the agent's model, and the verdict on it if it was judged at once."""

    response: ModelResponse[Any]
    verdict: Verdict | Unverified | None = None


Ask = Callable[[ModelRequest[Any]], Awaitable[Answer]]
"""Has the model answer once."""


def stores() -> bool:
    """Whether what runs here has a checkpointer."""
    try:
        return Place.stores(get_config())
    except RuntimeError:  # outside a graph
        return False


async def akept(work: Callable[[Ask], Awaitable[T]], ask: Ask) -> T:
    """`await work(ask)`, every answer of `ask` made durable."""
    done: list[T] = []

    @entrypoint()
    async def search(_: dict[str, Any]) -> entrypoint.final[None, None]:
        @task
        async def answer(call: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
            return await call()

        inside = copy_context()  # tasks belong to this entrypoint, wherever the search asks from

        async def kept(request: ModelRequest[Any]) -> Answer:
            outside, made = copy_context(), _Made(request)

            async def call() -> dict[str, Any]:
                # The model's run is one of the caller's, not one of the journal.
                return made.pack(await asyncio.create_task(_coroutine(ask(request)), context=outside))

            return made.unpack(await inside.copy().run(answer, call))

        done.append(await work(kept))
        return entrypoint.final(value=None, save=None)

    await search.ainvoke({}, hidden(None))
    return done[0]


def kept(work: Callable[[Callable[[ModelRequest[Any]], Answer]], T], ask: Callable[[ModelRequest[Any]], Answer]) -> T:
    """`work(ask)`, every answer of `ask` made durable. `ask` may be called by any thread, in a context of its own."""
    done: list[T] = []

    @entrypoint()
    def search(_: dict[str, Any]) -> entrypoint.final[None, None]:
        @task
        def answer(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            return call()

        inside = copy_context()

        def kept_answer(request: ModelRequest[Any]) -> Answer:
            outside, made = copy_context(), _Made(request)
            future = inside.copy().run(answer, lambda: made.pack(outside.run(ask, request)))
            return made.unpack(future.result())

        done.append(work(kept_answer))
        return entrypoint.final(value=None, save=None)

    search.invoke({}, hidden(None))
    return done[0]


class _Made:
    """One answer on its way into the journal, or out of it."""

    def __init__(self, request: ModelRequest[Any]) -> None:
        self._request = request
        self._id = ""  # once it was made here
        self._answer: Answer | None = None

    def pack(self, answer: Answer) -> dict[str, Any]:
        """What the checkpointer keeps."""
        self._id, self._answer = uuid4().hex, answer
        response, verdict = answer.response, answer.verdict
        return {
            "id": self._id,
            "messages": response.result,
            "structured": response.structured_response,
            "kind": type(response.structured_response).__name__,
            "verdict": None if verdict is None else verdict_to_json(verdict),
        }

    def unpack(self, stored: dict[str, Any]) -> Answer:
        """The answer. One that another process made is charged to the budgets around, which could not be told of it."""
        here = stored["id"] == self._id
        if here and self._answer is not None:
            answer = self._answer
        else:
            structured = _revived(stored["structured"], stored["kind"], self._request)
            verdict = None if stored["verdict"] is None else verdict_from_json(stored["verdict"])
            answer = Answer(ModelResponse(result=stored["messages"], structured_response=structured), verdict)
        if (meter := current_meter()) is not None:
            used = None if here else meter.priced(_used(answer.response))
            for account in meter.accounts:
                account.learn_call(stored["id"], used)
        return answer


def _used(response: ModelResponse[Any]) -> Usage:
    said = [reported(message) for message in response.result if isinstance(message, AIMessage)]
    return next((usage for usage in said if usage is not None), Usage(calls=1))


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


async def _coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
