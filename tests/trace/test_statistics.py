"""The numbers of a log are those of the search that wrote it."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripts import make_engine, make_task, make_verifier, script
from tts_agent import (
    Beam,
    BestFirst,
    BestOfN,
    Budget,
    Greedy,
    LabelVerifier,
    Ledger,
    Outcome,
    Prices,
    ScriptedEngine,
    search,
)
from tts_agent.engines import Fault
from tts_agent.events import Carried, Event, Planned
from tts_agent.search import Search
from tts_agent.trace import statistics

STRATEGIES = [
    Greedy(),
    Beam(k=4, keep=2),
    BestFirst(k=3, parallel=3),
    BestOfN(n=6, width=3, unit="thought"),
    BestOfN(n=6, width=3),
]


async def run(strategy: Any, seed: int, limit: int, faults: dict[int, Fault], *, judged: bool = True) -> Outcome:
    engine = make_engine(faults=faults, cache=seed % 2 == 0)
    return await search(
        engine,
        make_task(engine),
        strategy=strategy,
        verifier=make_verifier(engine) if judged else None,
        budget=Budget(computed_tokens=limit),
        seed=seed,
    )


@given(
    st.sampled_from(STRATEGIES),
    st.integers(0, 50),
    st.integers(60, 3000),
    st.dictionaries(
        st.integers(0, 9), st.builds(Fault, st.sampled_from(["lost", "unconfirmed"]), st.integers(0, 2)), max_size=2
    ),
)
@settings(max_examples=80, deadline=None)
def test_they_add_up_to_the_outcome(strategy: Any, seed: int, limit: int, faults: dict[int, Fault]) -> None:
    outcome = asyncio.run(run(strategy, seed, limit, faults))
    numbers = statistics(outcome.log)
    assert numbers.usage == outcome.usage
    assert numbers.lost == outcome.lost
    assert numbers.thoughts == len(outcome.tree) == sum(numbers.status.values()) == sum(numbers.depth.values())
    assert numbers.judged + numbers.unverified + numbers.status.get("solved", 0) == len(outcome.tree.verdicts)
    assert numbers.merged == len(outcome.tree.merged)
    assert numbers.under_way == 0
    assert statistics(outcome.log, outcome.tree) == numbers
    json.dumps(numbers.to_json(), allow_nan=False)


async def test_a_log_cut_in_mid_search_says_what_was_under_way() -> None:
    outcome = await run(Beam(k=4, keep=2), 1, 3000, {})
    log: list[Event] = list(outcome.log)
    first = next(place for place, event in enumerate(log) if isinstance(event, Planned))
    assert statistics(log[: first + 1]).under_way == 4
    assert statistics(log[: first + 1]).cached_share is None


async def test_a_cache_shows_in_the_shares() -> None:
    cold, warm = await run(Beam(k=4, keep=2), 1, 10**6, {}), await run(Beam(k=4, keep=2), 2, 10**6, {})
    without, with_cache = statistics(cold.log), statistics(warm.log)
    assert without.cached_share == 0
    assert without.computed_ratio is not None and without.computed_ratio > 1.5
    assert with_cache.cached_share is not None and with_cache.cached_share > 0.5
    assert with_cache.computed_ratio is not None and with_cache.computed_ratio < 1.2


async def test_verifiers_have_their_share() -> None:
    with_verdicts, without = await run(Beam(k=4), 2, 10**6, {}), await run(Beam(k=4), 2, 10**6, {}, judged=False)
    share = statistics(with_verdicts.log).verifier_share
    assert share is not None and 0 < share < 1
    assert statistics(without.log).verifier_share == 0
    assert statistics(without.log).judged == 0


async def test_verdicts_are_compared_on_and_off_the_way_to_a_solution() -> None:
    engine = ScriptedEngine(script, judge=lambda text: 0.9 if text[5:6] == "c" else 0.2)
    verifier = LabelVerifier(engine, question="?", good="y", bad="n")
    for seed in range(20):
        outcome = await search(
            engine, make_task(engine), strategy=BestFirst(k=4), verifier=verifier, budget=Budget(calls=300), seed=seed
        )
        calibration = statistics(outcome.log).calibration
        if calibration is None:
            continue
        solving = [outcome.tree.verdicts[thought.id] for thought in outcome.path[:-1]]
        assert calibration.solving == len(solving)
        assert calibration.on_solving == pytest.approx(sum(v.score for v in solving) / len(solving), abs=1e-6)  # type: ignore[union-attr]
        assert calibration.others == len(outcome.tree.verdicts) - len(solving) - 1
        return
    pytest.fail("no search of twenty went through a judged thought to a solution")


async def test_what_was_carried_over_is_counted_apart() -> None:
    engine = make_engine()
    before = await search(
        engine, make_task(engine, solvable=False), strategy=Beam(k=3), verifier=make_verifier(engine), name="first"
    )
    assert before.decision is not None
    carried = [
        Carried(carry.thought._replace(id=carry.id, parent=carry.parent), carry.verdict)
        for carry in before.tree.subtree(before.decision.id)
    ]
    after = Search(
        engine, make_task(engine), Beam(k=3), verifier=make_verifier(engine), ledger=Ledger(), carried=carried
    )
    while not after.done:
        await after.chunk()
    numbers = statistics(after.outcome().log)
    assert numbers.carried == len(carried)
    assert numbers.thoughts == len(after.outcome().tree) - len(carried)
    assert numbers.usage == after.outcome().usage


async def test_dollars_add_up() -> None:
    engine = make_engine()
    ledger = Ledger(Budget(dollars=1.0), prices=Prices(prompt=1.0, generated=4.0))
    outcome = await search(
        engine, make_task(engine), strategy=Beam(k=3, keep=2), verifier=make_verifier(engine), ledger=ledger
    )
    assert statistics(outcome.log).usage.dollars == pytest.approx(outcome.usage.dollars)
