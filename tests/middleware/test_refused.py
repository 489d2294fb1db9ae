"""A call that a budget refuses, as those who listen to the graph hear of it: what has begun fails, once."""

import asyncio
import contextlib
import warnings
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver

from tests.middleware.test_budget import GO, THREAD, FanOut, adding
from tests.middleware.world import Broken, Teller, Uncapped, add, calls
from tests.nodes.test_tracing import Book
from tts_agent import Budget
from tts_agent.middleware import BudgetMiddleware, BudgetRefusal, PlanSearchMiddleware, TextBound
from tts_agent.middleware.bounds import PromptSize


class Ear(BaseCallbackHandler):
    """What is heard of each model call, in order."""

    def __init__(self, *, inline: bool = False) -> None:
        self.run_inline = inline
        self.heard: dict[UUID, list[str]] = {}
        self.errors: list[BaseException] = []

    def hear(self, what: str, run: UUID, error: BaseException | None = None) -> None:
        self.heard.setdefault(run, []).append(what)
        if error is not None:
            self.errors.append(error)

    def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        self.hear("begin", run_id)

    def on_llm_end(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        self.hear("end", run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.hear("error", run_id, error)


class SlowEar(Ear, AsyncCallbackHandler):
    """The same, asynchronous."""

    async def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        await asyncio.sleep(0.001)
        self.hear("begin", run_id)

    async def on_llm_end(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        await asyncio.sleep(0.001)
        self.hear("end", run_id)

    async def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        await asyncio.sleep(0.001)
        self.hear("error", run_id, error)


def ears(sync: bool) -> list[Ear]:
    # NOTE: in an asynchronous call the others do not hear of one that is stopped at its beginning.
    both = [Ear(inline=True), SlowEar(inline=True)]
    return [Ear(), SlowEar(), *both] if sync else both


def invoke(agent: Any, sync: bool, *handlers: BaseCallbackHandler) -> Any:
    config: Any = {"callbacks": list(handlers), "recursion_limit": 200, **THREAD}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*reports no usage")
        return agent.invoke(GO, config) if sync else asyncio.run(agent.ainvoke(GO, config))


def check(listening: Sequence[Ear], *, refused: int | None = None) -> None:
    """Whoever heard that a call began heard once how it ended; those that run inline heard of every call."""
    for ear in listening:
        assert all(told in (["begin", "end"], ["begin", "error"]) for told in ear.heard.values()), ear.heard
        refusals = [error for error in ear.errors if isinstance(error, BudgetRefusal)]
        assert not ear.run_inline or refused is None or len(refusals) == refused


@pytest.mark.parametrize("sync", [True, False])
def test_what_listens_to_the_graph_hears_of_a_refused_call_that_it_failed(sync: bool) -> None:
    book, listening = Book(), ears(sync)
    limit = BudgetMiddleware(Budget(total_tokens=300), prompt_bound=TextBound())
    agent = create_agent(Teller(adding, max_tokens=20), [add], middleware=[limit])
    result = invoke(agent, sync, *listening, book)
    assert "I have to stop here" in result["messages"][-1].text
    check(listening, refused=1)
    assert not any(one.end_time is None for one in book.runs)
    assert [one.error for one in book.runs if one.error and "BudgetRefusal" in one.error and one.run_type == "llm"]


@pytest.mark.parametrize("saver", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_refused_candidates_end_in_traces(sync: bool, saver: bool) -> None:
    book, listening = Book(), ears(sync)
    middleware = [BudgetMiddleware(Budget(calls=6)), PlanSearchMiddleware(4)]
    model = Teller(lambda messages, call: calls("add", a=call % 2, b=1))
    agent = create_agent(model, [add], middleware=middleware, checkpointer=InMemorySaver() if saver else None)
    invoke(agent, sync, *listening, book)
    check(listening, refused=2)
    book.check_closed()


@given(
    n=st.integers(1, 12),
    limit=st.integers(1, 20),
    faults=st.dictionaries(st.integers(0, 20), st.sampled_from(["raises", "raises late", "silent"]), max_size=4),
    sync=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_every_call_side_by_side_begins_and_ends_once(n: int, limit: int, faults: dict[int, Any], sync: bool) -> None:
    book, listening = Book(), ears(sync)
    guard = BudgetMiddleware(Budget(calls=limit))
    agent = create_agent(Teller(adding, faults=faults), [add], middleware=[guard, FanOut(n)])
    with contextlib.suppress(Broken):
        invoke(agent, sync, *listening, book)
    check(listening)
    book.check_closed()


@pytest.mark.parametrize("sync", [True, False])
def test_a_bound_that_fails_ends_the_call_as_well(sync: bool) -> None:
    def bound(messages: Any, params: Any) -> PromptSize:
        raise LookupError("no tokenizer")

    book, listening = Book(), ears(sync)
    guard = BudgetMiddleware(Budget(calls=5, total_tokens=10**6), prompt_bound=bound)
    agent = create_agent(Uncapped(adding), [add], middleware=[guard])
    with pytest.raises(LookupError):
        invoke(agent, sync, *listening, book)
    check(listening)
    book.check_closed()
    assert [str(error) for error in listening[0].errors] == ["no tokenizer"]
