"""A search is stopped and deepened from outside, also from other threads and after its end."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import Beam, BestFirst, Budget, Ledger, ScriptedEngine, StopReason, ThoughtTree
from tts_agent.errors import BudgetError, LogError, SearchError
from tts_agent.events import Cancelled, Chosen, Deepened, Event, Granted, Sampled, log_from_json, log_to_json
from tts_agent.search.driver import Search
from tts_agent.search.state import SearchState

SMALL = Budget(computed_tokens=400)


def start(
    engine: ScriptedEngine, *, budget: Budget = SMALL, strategy: Any = None, log: Sequence[Event] = (), **options: Any
) -> Search:
    return Search(
        engine,
        make_task(engine, solvable=False),
        strategy or BestFirst(k=3, parallel=2),
        verifier=make_verifier(engine),
        ledger=Ledger(budget),
        seed=7,
        log=log,
        **({"grant": 0.2} | options),
    )


async def drive(search: Search) -> None:
    while not search.done:
        await search.chunk(max_events=8)
        search.confirm()


async def test_a_search_deepened_after_its_end_goes_on_and_samples_nothing_again() -> None:
    engine = make_engine()
    search = start(engine)
    await drive(search)
    assert search.outcome().limit == "computed_tokens"
    before, asked = len(search.state.tree), len(engine.requests)
    search.deepen({"computed_tokens": 800})
    await search.chunk()
    search.confirm()
    await drive(search)
    assert search.ledger.budget.computed_tokens == 1200
    assert 400 < engine.served.computed <= 1200
    assert len(search.state.tree) > before and len(engine.requests) > asked
    sampled = [event.thought.id for event in search.log if isinstance(event, Sampled)]
    assert len(sampled) == len(set(sampled))
    assert len([event for event in search.log if isinstance(event, Chosen)]) == 2
    assert search.state.tree.chosen == search.log[-1]


async def test_what_is_deepened_folds_the_same_and_resumes_the_same() -> None:
    whole = start(make_engine())
    await drive(whole)
    whole.deepen({"computed_tokens": 800})
    chunks = [list(whole.log)]
    while True:
        chunks.append(await whole.chunk(max_events=8))
        whole.confirm()
        if whole.done:
            break
    rebuilt = SearchState(whole.strategy, Ledger(SMALL), judged=True, events=whole.log)
    assert rebuilt.snapshot() == whole.state.snapshot()
    assert rebuilt.ledger.budget == whole.ledger.budget
    assert ThoughtTree(whole.log).chosen == whole.log[-1]
    for kept in range(2, len(chunks)):
        engine = make_engine()
        log = [event for chunk in chunks[:kept] for event in chunk]
        resumed = start(engine, log=log_from_json(log_to_json(log, engine.decode), engine.decode))
        assert resumed.ledger.budget.computed_tokens == 1200
        await drive(resumed)
        # A kill after the deepening may lose a grant, so that the limit binds earlier; what was durable stays.
        durable = ThoughtTree(log).thoughts
        assert {number: resumed.state.tree.thoughts[number] for number in durable} == durable
        charged = resumed.ledger.committed.computed_tokens
        assert engine.served.computed <= charged <= 1200


async def test_nothing_runs_after_the_end_before_a_grant_is_durable() -> None:
    engine = make_engine()
    search = start(engine)
    await drive(search)
    served = engine.served
    search.deepen({"computed_tokens": 800})
    chunk = await search.chunk()
    assert isinstance(chunk[0], Deepened) and isinstance(chunk[-1], Granted)
    assert search.starved and engine.served == served
    with pytest.raises(SearchError, match="waits for a grant"):
        await search.chunk()


async def test_a_log_that_had_ended_can_be_deepened_by_another_process() -> None:
    first = start(make_engine())
    await drive(first)
    engine = make_engine()
    search = start(engine, log=first.log)
    assert search.done and not engine.requests
    search.deepen({"computed_tokens": 800})
    await search.chunk()
    search.confirm()
    await drive(search)
    again = start(make_engine())
    await drive(again)
    again.deepen({"computed_tokens": 800})
    await again.chunk()
    again.confirm()
    await drive(again)
    assert search.state.tree.to_json() == again.state.tree.to_json()


async def test_a_running_search_is_deepened_by_another_thread() -> None:
    engine = make_engine(pace=0.002)
    search = start(engine, grant=None)
    threading.Timer(0.02, search.deepen, [{"computed_tokens": 800}]).start()
    await drive(search)
    assert any(isinstance(event, Deepened) for event in search.log)
    assert 400 < engine.served.computed <= 1200


@pytest.mark.parametrize("strategy", [BestFirst(k=3, parallel=2), Beam(k=4, keep=3)], ids=["best_first", "beam"])
@pytest.mark.parametrize("barrier", [False, True])
async def test_a_stop_from_another_thread_does_not_wait_for_the_engine(strategy: Any, barrier: bool) -> None:
    engine = make_engine(pace=0.2)
    search = start(engine, budget=Budget(computed_tokens=10**6), strategy=strategy, grant=None, barrier=barrier)
    threading.Timer(0.5, search.cancel, ["enough"]).start()
    async with asyncio.timeout(60):
        await drive(search)
    outcome = search.outcome()
    assert (outcome.stop, outcome.cut) == (StopReason.CANCELLED, "enough")
    assert any(isinstance(event, Cancelled) for event in search.log)
    assert not any(search.ledger.reserved)
    served = engine.served
    await asyncio.sleep(0.3)
    assert engine.served == served


async def test_what_cannot_be_deepened_is_refused() -> None:
    search = start(make_engine())
    await drive(search)
    with pytest.raises(BudgetError, match=r"cannot raise \['calls'\]; the search's own limits: computed_tokens"):
        search.deepen({"calls": 3})
    with pytest.raises(BudgetError, match="no limits that can be raised"):
        search.deepen({"tokens": 3})
    with pytest.raises(BudgetError, match="no limits that can be raised"):
        search.deepen({"commit_tokens": 3})
    with pytest.raises(BudgetError, match="must be positive"):
        search.deepen({"computed_tokens": -3})
    search.deepen({})
    assert [event.kind for event in await search.chunk()][0] == "deepened"
    engine = make_engine()
    solved = Search(engine, make_task(engine), BestFirst(k=8), ledger=Ledger(Budget(calls=2000)), seed=1)
    await drive(solved)
    assert solved.outcome().solved
    with pytest.raises(BudgetError, match="the search is solved"):
        solved.deepen({"calls": 1})


async def test_a_reviewer_decides_in_the_strategys_place() -> None:
    search = start(make_engine())
    with pytest.raises(SearchError, match="cannot be chosen"):
        search.choose(1, "a reviewer chose")
    await drive(search)
    other = next(thought for thought in search.state.tree.thoughts if thought != search.outcome().path[-1].id)
    search.choose(other, "a reviewer chose")
    assert search.outcome().path[-1].id == other
    assert ThoughtTree(search.log).chosen == search.log[-1]
    with pytest.raises(SearchError, match="cannot be chosen"):
        search.choose(10**6, "a reviewer chose")


async def test_a_log_of_another_engine_is_refused() -> None:
    search = start(make_engine())
    await drive(search)
    other = make_engine()
    other.name = "another"
    with pytest.raises(LogError, match="with another engine: 'scripted', not 'another'.*name this engine so"):
        start(other, log=search.log)


@pytest.mark.parametrize("after", range(0, 60, 4))
async def test_whatever_is_cancelled_when_a_search_ends_is_accounted_for(after: int) -> None:
    """The task that drives is cancelled again and again while the search aborts what runs."""
    engine = make_engine(pace=0.001)
    search = start(engine, budget=Budget(computed_tokens=10**6), strategy=Beam(k=6, keep=5), grant=None)
    driving = asyncio.create_task(drive(search))
    while len(search.log) < 5 + after:
        await asyncio.sleep(0)
    search.cancel("enough")
    for _ in range(4):
        await asyncio.sleep(0)
        driving.cancel()
    await asyncio.gather(driving, return_exceptions=True)
    await search.aclose()
    charged = search.ledger.spent.generated + search.ledger.lost.generated_tokens
    assert engine.served.generated == charged
    assert not any(search.ledger.reserved)
