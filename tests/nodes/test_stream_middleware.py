"""What the searches of an agent's middleware tell, and how they are seen in traces."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent

from tests.middleware.test_plan_search import GO, Streaming, largest, number
from tests.middleware.test_tree_search import PUZZLE, search, unused
from tests.middleware.world import Teller, add
from tests.nodes.screen import Screen
from tests.nodes.table import make_engine
from tests.nodes.test_tracing import Book, metadata
from tools.calculator import calculator
from tts_agent import Budget
from tts_agent.middleware import BudgetMiddleware, PlanSearchMiddleware
from tts_agent.nodes import Progress, TTSTransformer


def run(agent: Any, sync: bool, start: Any, mode: Any, book: Book | None = None) -> list[Any]:
    config: Any = {"callbacks": [book] if book else []}

    async def drive() -> list[Any]:
        return [data async for data in agent.astream(start, config, stream_mode=mode)]

    return list(agent.stream(start, config, stream_mode=mode)) if sync else asyncio.run(drive())


@pytest.mark.parametrize("sync", [True, False])
def test_candidates_are_told_and_their_calls_stand_in_the_expansion(sync: bool) -> None:
    book, model = Book(), Teller(number)
    agent = create_agent(model, [add], middleware=[PlanSearchMiddleware(3, judge=largest, stream_candidates=True)])
    told = run(agent, sync, GO, "custom", book)
    book.check_closed()
    assert [data["type"] for data in told].count("tts.chosen") == len(book.expansions) == 2
    assert {data["node"] for data in told} == {"model"} and {data["search"] for data in told} == {
        "PlanSearchMiddleware"
    }
    first = Screen(data for data in told if data["task"] == told[0]["task"])
    scores = {row["id"]: row["score"] for row in first.rows()}
    assert len(scores) == 3 and scores[first.last("tts.chosen")["branch"]] == max(scores.values())
    names = {str(one.id): one.name for one in book.runs}
    calls = [names[str(one.parent_run_id)] for one in book.runs if one.run_type == "llm"]
    assert calls == ["tts.expand"] * model.served.calls
    assert all(metadata(one)["tts_branches"] == [1, 2, 3] for one in book.expansions)


@pytest.mark.parametrize("sync", [True, False])
def test_a_tree_search_tells_as_a_planning_node_does(sync: bool) -> None:
    book = Book()
    agent = create_agent(Teller(unused), [calculator], middleware=[search(make_engine(), stream_candidates=True)])
    told = run(agent, sync, PUZZLE, "custom", book)
    book.check_closed()
    assert {data["search"] for data in told} == {"plan/1", "plan/2", "plan/3"}
    assert Screen(data for data in told if data["search"] == "plan/1").rows()
    assert book.expansions and {one.run_type for one in book.expansions} == {"llm"}


@pytest.mark.parametrize("sync", [True, False])
def test_runs_of_a_search_are_not_charged_again(sync: bool) -> None:
    for book in (None, Book()):
        engine = make_engine()
        guard = BudgetMiddleware(Budget(calls=1000))
        agent = create_agent(Teller(unused), [calculator], middleware=[guard, search(engine)])
        entry = run(agent, sync, PUZZLE, "values", book)[-1]["tts_budgets"]["agent"]
        assert entry["usage"]["calls"] == engine.served.calls
        assert book is None or book.expansions


@pytest.mark.parametrize("shown", [True, False])
async def test_the_message_stream_shows_candidates_only_when_asked(shown: bool) -> None:
    model = Streaming(lambda messages, call: f"word number {call}")
    middleware = PlanSearchMiddleware(3, judge=lambda c: "number1" in c.text, stream_candidates=shown)
    agent = create_agent(model, [], middleware=[middleware])
    said = [chunk.text async for chunk, _ in agent.astream(GO, {"callbacks": [Book()]}, stream_mode="messages")]
    assert len(said) > 3 if shown else said == ["wordnumber1"]


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@pytest.mark.parametrize("transformers", [[], [TTSTransformer]])
async def test_an_agent_has_the_projection_without_being_asked(transformers: list[Any]) -> None:
    middleware = [PlanSearchMiddleware(2, judge=largest)]
    agent = create_agent(Teller(number), [add], middleware=middleware, transformers=transformers)
    stream = await agent.astream_events(GO, version="v3")
    seen = [item async for item in stream.tts]
    assert {type(item) for item in seen} == {Progress}
    assert [item.kind for item in seen].count("chosen") == 2
