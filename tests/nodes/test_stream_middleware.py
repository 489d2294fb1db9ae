"""What the searches of an agent's middleware tell, and how they are seen in traces."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import before_model
from langchain_core.callbacks import BaseCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer

from tests.middleware.test_plan_search import GO, Streaming, largest, number
from tests.middleware.test_tree_search import PUZZLE, search, unused
from tests.middleware.world import Teller, add
from tests.nodes.screen import Screen
from tests.nodes.table import make_engine
from tests.nodes.test_tracing import Book, Listening, metadata
from tools.calculator import calculator
from tts_agent import BestOfN, Budget, Verdict
from tts_agent.middleware import BudgetMiddleware, Candidate, PlanSearchMiddleware
from tts_agent.nodes import Progress, TTSTransformer
from tts_agent.nodes.traced import TracedVerifier
from tts_agent.usage import Usage


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


class Numbered(BaseCallbackHandler):
    """Hears of models only."""

    ignore_chain = True


@pytest.mark.parametrize("shown", [True, False])
async def test_the_message_stream_shows_candidates_only_when_asked(shown: bool) -> None:
    model = Streaming(lambda messages, call: f"word number {call}")
    middleware = PlanSearchMiddleware(3, judge=lambda c: "number1" in c.text, stream_candidates=shown)
    agent = create_agent(model, [], middleware=[middleware])
    for handlers in ([Book()], [Numbered()], []):
        model.served.calls = 0
        said = [chunk.text async for chunk, _ in agent.astream(GO, {"callbacks": handlers}, stream_mode="messages")]
        assert len(said) > 3 if shown else said == ["wordnumber1"]


@pytest.mark.parametrize("saver", [True, False])
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_a_judge_is_a_verification_with_what_it_asks_under_it(sync: bool, waits: bool, saver: bool) -> None:
    asking = Teller(lambda messages, call: "good", name="asking")

    def at_once(candidate: Candidate) -> Verdict:
        asking.invoke("how good?")
        return Verdict(largest(candidate), f"it says {candidate.text}", usage=Usage(verifier_generated=3))

    async def later(candidate: Candidate) -> Verdict:
        await asyncio.sleep(0.001)
        return at_once(candidate)

    book, model = Book(), Teller(number)
    middleware = PlanSearchMiddleware(strategy=BestOfN(n=5, width=2), judge=later if waits else at_once)
    agent = create_agent(model, [add], middleware=[middleware], checkpointer=InMemorySaver() if saver else None)
    config: Any = {"callbacks": [book], "configurable": {"thread_id": "1"}}
    result = agent.invoke(GO, config) if sync else asyncio.run(agent.ainvoke(GO, config))
    book.check_closed()
    assert not any(one.error for one in book.runs)
    names = {str(one.id): one.name for one in book.runs}
    calls = [(one.name, names[str(one.parent_run_id)]) for one in book.runs if one.run_type == "llm"]
    assert sorted(calls) == [("Teller", "tts.expand")] * 10 + [("asking", "tts.verify")] * 10
    steps = [one for one in book.named("model") if one.run_type == "chain"]
    for step, message in zip(steps, [result["messages"][1], result["messages"][3]], strict=True):
        expansions = [one for one in book.expansions if one.parent_run_id == step.id]
        born = {child["branch"]: child["text"] for one in expansions for child in (one.outputs or {})["children"]}
        verdicts = {}
        for one in book.verifications:
            if one.parent_run_id == step.id:
                (asked,), (verdict,) = one.inputs["branches"], (one.outputs or {})["verdicts"]
                assert metadata(one)["tts_branches"] == [asked["branch"]] and metadata(one)["tts_verifier"] == "judge"
                assert verdict["branch"] == asked["branch"] and verdict["reason"] == f"it says {asked['text']}"
                assert (one.outputs or {})["usage"] == {"verifier_generated": 3}
                assert born[asked["branch"]] == asked["text"]
                verdicts[asked["branch"]] = verdict["score"]
        assert sorted(verdicts) == [1, 2, 3, 4, 5]
        assert [verdicts[branch] for branch in sorted(verdicts)] == message.response_metadata["tts"]["scores"]


@pytest.mark.parametrize("sync", [True, False])
def test_equal_candidates_are_one_verification(sync: bool) -> None:
    book, model = Book(), Teller(lambda messages, call: ("red", "blue")[call % 2])
    run(create_agent(model, [], middleware=[PlanSearchMiddleware(6, judge=lambda c: 0.5)]), sync, GO, "values", book)
    book.check_closed()
    assert sorted(one.inputs["branches"][0]["text"] for one in book.verifications) == ["blue", "red"]


@pytest.mark.parametrize("sync", [True, False])
def test_a_judge_that_fails_is_an_error_in_the_trace_and_no_verdict(sync: bool) -> None:
    def judge(candidate: Candidate) -> float:
        raise ArithmeticError("no idea")

    book = Book()
    agent = create_agent(Teller(number), [add], middleware=[PlanSearchMiddleware(3, judge=judge)])
    (*_, result) = run(agent, sync, GO, "values", book)
    book.check_closed()
    assert result["messages"][-1].response_metadata["tts"]["scores"] == [None] * 3
    assert len(book.verifications) == 6 and all("no idea" in str(one.error) for one in book.verifications)
    assert not any(one.error for one in book.expansions)


@pytest.mark.parametrize("sync", [True, False])
def test_a_judge_that_is_stopped_ends_as_cancelled(sync: bool) -> None:
    async def judge(candidate: Candidate) -> float:
        await asyncio.sleep(3600)
        return 1.0

    book, listening = Book(), Listening()
    search = PlanSearchMiddleware(3, judge=judge, budget=Budget(seconds=0.2))
    config: Any = {"callbacks": [book, listening]}
    agent = create_agent(Teller(lambda messages, call: str(call)), [], middleware=[search])
    _ = agent.invoke(GO, config) if sync else asyncio.run(agent.ainvoke(GO, config))
    assert len(book.verifications) == 3 and all((one.outputs or {})["cancelled"] for one in book.verifications)
    assert listening.seen >= 4 and not listening.own


@pytest.mark.parametrize("sync", [True, False])
def test_a_judge_is_no_run_where_nobody_traces(sync: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: Any) -> None:
        raise AssertionError("a judge was traced, and nobody listens")

    monkeypatch.setattr(TracedVerifier, "__init__", build)
    agent = create_agent(Teller(number), [add], middleware=[PlanSearchMiddleware(3, judge=largest)])
    for mode in ("values", "custom"):
        assert run(agent, sync, GO, mode)


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@pytest.mark.parametrize("data", [{"type": ["x"]}, {"type": "tts.tokens", "text": "to speech"}])
async def test_what_others_tell_leaves_an_agent_alone(data: Any) -> None:
    @before_model
    def telling(state: Any, runtime: Any) -> None:
        get_stream_writer()(data)

    agent = create_agent(Teller(number), [add], middleware=[telling, PlanSearchMiddleware(2, judge=largest)])
    stream = await agent.astream_events(GO, version="v3")
    assert [item.kind async for item in stream.tts].count("chosen") == 2
    assert (await stream.output())["messages"][-1].text == "3"


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@pytest.mark.parametrize("transformers", [[], [TTSTransformer]])
async def test_an_agent_has_the_projection_without_being_asked(transformers: list[Any]) -> None:
    middleware = [PlanSearchMiddleware(2, judge=largest)]
    agent = create_agent(Teller(number), [add], middleware=middleware, transformers=transformers)
    stream = await agent.astream_events(GO, version="v3")
    seen = [item async for item in stream.tts]
    assert {type(item) for item in seen} == {Progress}
    assert [item.kind for item in seen].count("chosen") == 2
