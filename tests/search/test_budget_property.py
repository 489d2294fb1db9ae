"""No limit is ever passed, whatever happens: checked against the engine's own count of what it computed."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import Beam, BestFirst, BestOfN, Budget, Greedy, Ledger, Prices, Usage
from tts_agent.engines import Fault
from tts_agent.errors import BudgetError, EngineUnavailable
from tts_agent.search.driver import Search
from tts_agent.search.state import SearchState

PRICES = Prices(prompt=1.0, generated=5.0, cached=0.1)

strategies = st.one_of(
    st.builds(Greedy),
    st.builds(Beam, k=st.integers(1, 256), keep=st.integers(1, 8)),
    st.builds(BestFirst, k=st.integers(1, 64), parallel=st.integers(1, 8), discount=st.sampled_from([0.0, 0.5, 1.0])),
    st.builds(BestOfN, n=st.integers(1, 64), width=st.integers(1, 256), unit=st.sampled_from(["answer", "thought"])),
)
budgets = st.builds(
    Budget,
    calls=st.none() | st.integers(1, 60),
    generated_tokens=st.none() | st.integers(1, 600),
    total_tokens=st.none() | st.integers(1, 3000),
    computed_tokens=st.none() | st.integers(1, 3000),
    dollars=st.none() | st.floats(1e-6, 5e-3),
    seconds=st.none() | st.floats(0.5, 40.0),
    commit_tokens=st.none() | st.integers(0, 6),
).filter(lambda budget: any(limit is not None for limit in budget.limits))
faults = st.dictionaries(
    st.integers(0, 30),
    st.builds(Fault, st.sampled_from(["refused", "lost", "unconfirmed"]), st.integers(0, 3)),
    max_size=6,
)


@dataclass
class Case:
    strategy: Any
    budget: Budget
    faults: dict[int, Fault]
    judged: bool
    stop: str  # how it ends early: not at all, by cancel(), or by cancelling the task that drives it
    stop_after: int  # chunks
    cache: bool
    seed: int


cases = st.builds(
    Case,
    strategies,
    budgets,
    faults,
    st.booleans(),
    st.sampled_from(["end", "end", "cancel", "task"]),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**31),
)


async def drive(case: Case, ledger: Ledger) -> tuple[Usage, Search | None]:
    """Run one search as a caller would; what the engine computed, and the search if it could begin."""
    engine = make_engine(faults=case.faults, cache=case.cache)
    try:
        search = Search(
            engine,
            make_task(engine, solvable=case.seed % 2 == 0),
            case.strategy,
            verifier=make_verifier(engine) if case.judged else None,
            ledger=ledger,
            seed=case.seed,
            grant=0.2 if case.seed % 3 == 0 else None,
        )
    except BudgetError:
        return engine.served, None
    chunks = 0

    async def run() -> None:
        nonlocal chunks
        while not search.done:
            await search.chunk(max_events=16)
            search.confirm()
            chunks += 1
            if chunks == case.stop_after and case.stop == "cancel":
                search.cancel()
            await asyncio.sleep(0)

    task = asyncio.create_task(run())
    try:
        while case.stop == "task" and chunks < case.stop_after and not task.done():
            await asyncio.sleep(0)
        if case.stop == "task":
            task.cancel()
        await task
    except (EngineUnavailable, asyncio.CancelledError):
        pass
    finally:
        await search.aclose()
    return engine.served, search


def assert_within(budget: Budget, served: Usage) -> None:
    limits = {
        "calls": served.calls,
        "generated_tokens": served.generated,
        "total_tokens": served.total,
        "computed_tokens": served.computed,
    }
    for unit, used in limits.items():
        limit = getattr(budget, unit)
        assert limit is None or used <= limit, f"{unit}: {used} > {limit}"
    if budget.dollars is not None:
        assert PRICES.dollars(served) <= budget.dollars + 1e-12


def check(case: Case) -> None:
    ledger = Ledger(case.budget, prices=PRICES)
    served, search = asyncio.run(drive(case, ledger))
    assert_within(case.budget, served)
    if search is None:
        return
    assert not any(ledger.reserved) and not ledger.reservations
    # Whatever the engine computed was charged, as usage or as lost.
    assert served.computed <= ledger.spent.computed + ledger.lost.computed_tokens
    assert served.generated <= ledger.spent.generated + ledger.lost.generated_tokens
    if not case.faults and not any(ledger.lost):
        assert (served.computed, served.generated, served.calls) == (
            ledger.spent.computed,
            ledger.spent.generated,
            ledger.spent.calls,
        )
    rebuilt = SearchState(case.strategy, Ledger(case.budget, prices=PRICES), judged=case.judged, events=search.log)
    assert rebuilt.snapshot() == search.state.snapshot()


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
@given(cases)
def test_no_limit_is_passed(case: Case) -> None:
    check(case)


@pytest.mark.verify
@settings(max_examples=10_000, deadline=None, suppress_health_check=QUIET)
@given(cases)
def test_no_limit_is_passed_in_ten_thousand_cases(case: Case) -> None:
    check(case)


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(st.lists(cases, min_size=2, max_size=4), budgets)
def test_nested_scopes_share_what_their_parent_has(inner: list[Case], outer: Budget) -> None:
    parent = Ledger(outer, prices=PRICES)

    async def together() -> list[tuple[Usage, Search | None]]:
        scopes = [parent.scope(case.budget, name=f"step {i}") for i, case in enumerate(inner)]
        return await asyncio.gather(*(drive(case, scope) for case, scope in zip(inner, scopes, strict=True)))

    results = asyncio.run(together())
    assert_within(outer, sum((served for served, _ in results), Usage()))
    for case, (served, _) in zip(inner, results, strict=True):
        assert_within(case.budget, served)
    assert not any(parent.reserved)
