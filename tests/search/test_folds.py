"""Tree, ledger and strategy state are folds: rebuilt from the log they are the same, at every flush."""

from typing import Any

import pytest

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import Beam, BestFirst, BestOfN, Budget, Greedy, Ledger, Prices, ThoughtTree
from tts_agent.engines import Fault
from tts_agent.events import log_from_json, log_to_json
from tts_agent.search.driver import Search
from tts_agent.search.state import SearchState

STRATEGIES = [
    Greedy(),
    Beam(k=4, keep=2),
    BestFirst(k=3, parallel=3),
    BestOfN(n=6, width=3),
    BestOfN(n=6, width=3, unit="thought"),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.name}-{s.unit}")
@pytest.mark.parametrize("faults", [{}, {2: Fault("lost", 1), 5: Fault("refused")}], ids=["sound", "faulty"])
async def test_states_rebuilt_from_the_log_are_equal_at_every_flush(strategy: Any, faults: dict[int, Fault]) -> None:
    budget = Budget(computed_tokens=3000, dollars=0.01, seconds=200.0)
    prices = Prices(prompt=1.0, generated=2.0)
    engine = make_engine(faults=faults)
    search = Search(
        engine,
        make_task(engine),
        strategy,
        verifier=make_verifier(engine),
        ledger=Ledger(budget, prices=prices),
        seed=11,
        grant=0.2,
    )
    flushes = 0
    while not search.done:
        await search.chunk(max_events=4)
        search.confirm()
        flushes += 1
        rebuilt = SearchState(strategy, Ledger(budget, prices=prices), judged=True, events=search.log)
        assert rebuilt.snapshot() == search.state.snapshot()
        through_json = log_from_json(log_to_json(search.log, engine.decode), engine.decode)
        rebuilt = SearchState(strategy, Ledger(budget, prices=prices), judged=True, events=through_json)
        assert rebuilt.snapshot() == search.state.snapshot()
        assert ThoughtTree(search.log).to_json() == search.state.tree.to_json()
    assert flushes > 3
    assert search.ledger.budget == budget and not any(search.ledger.reserved)


async def test_a_part_of_the_log_is_the_search_at_that_time() -> None:
    engine = make_engine()
    search = Search(engine, make_task(engine), BestFirst(k=3), ledger=Ledger(Budget(calls=20)), seed=2)
    sizes = []
    while not search.done:
        await search.chunk(max_events=5)
        sizes.append((len(search.log), len(search.state.tree)))
    for events, thoughts in sizes:
        assert len(ThoughtTree(search.log[:events])) == thoughts
