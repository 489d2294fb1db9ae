"""A search that is killed goes on from its durable chunks: nothing durable is sampled again, no limit is passed."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import Beam, BestFirst, BestOfN, Budget, Greedy, Ledger, Prefix, ScriptedEngine, Usage
from tts_agent.errors import LogError, SearchError
from tts_agent.events import Event, Granted, Judged, Lost, Sampled, log_from_json, log_to_json
from tts_agent.search.driver import Search

STRATEGIES = [Greedy(), Beam(k=3, keep=2), BestFirst(k=3, parallel=2), BestOfN(n=5, width=3, unit="thought")]


def start(engine: ScriptedEngine, strategy: Any, budget: Budget, seed: int, log: Sequence[Event] = ()) -> Search:
    return Search(
        engine,
        make_task(engine),
        strategy,
        verifier=make_verifier(engine),
        ledger=Ledger(budget),
        seed=seed,
        log=log,
        grant=0.1,
    )


async def run(search: Search, chunks: int | None = None, size: int = 8) -> list[list[Event]]:
    """Drive for `chunks` chunks, or to the end, as a caller whose every chunk is durable."""
    done: list[list[Event]] = []
    while not search.done and (chunks is None or len(done) < chunks):
        done.append(await search.chunk(max_events=size))
        search.confirm()
    return done


def sampled(log: Sequence[Event]) -> set[int]:
    return {event.thought.id for event in log if isinstance(event, Sampled)}


async def kill_and_resume(
    strategy: Any, budget: Budget, seed: int, kill_after: int, size: int
) -> tuple[Search, Usage, list[Event]]:
    """Kill after some chunks, of which all but the last are known durable; then resume to the end.

    Returns the resumed search, all that both engines computed, and the durable log.
    """
    engine = make_engine()
    search = start(engine, strategy, budget, seed)
    chunks = await run(search, kill_after, size)
    if not search.done:
        chunks.append(await search.chunk(max_events=size))  # returned, never durable
        durable = [event for chunk in chunks[:-1] for event in chunk]
    else:
        durable = [event for chunk in chunks for event in chunk]
    # The kill: the first search is simply never driven again. What it has in flight was computed.
    before = engine.served
    for stream in search._streams.values():
        for sample in getattr(stream, "_samples", [])[getattr(stream, "_next", 0) :]:
            before += sample.usage
    other = make_engine()
    replayed = log_from_json(log_to_json(durable, other.decode), other.decode)
    resumed = start(other, strategy, budget, seed, log=replayed)
    await run(resumed, None, size)
    assert not sampled(durable) & sampled(resumed.log[len(durable) :])
    return resumed, before + other.served, durable


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_chunk_the_tree_is_that_of_the_whole_run(strategy: Any, seed: int) -> None:
    budget = Budget(generated_tokens=5000, computed_tokens=40_000, calls=2000)
    bounded = BestFirst(k=3, parallel=2, max_expansions=12) if strategy.name == "best_first" else strategy
    whole = start(make_engine(), bounded, budget, seed)
    chunks = await run(whole)
    for kill_after in range(1, len(chunks)):
        resumed, served, _ = await kill_and_resume(bounded, budget, seed, kill_after, 8)
        assert resumed.state.tree.to_json() == whole.state.tree.to_json()
        assert resumed.outcome().stop == whole.outcome().stop
        assert served.computed <= 40_000 and served.calls <= 2000
        assert not any(resumed.ledger.reserved)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(STRATEGIES),
    st.builds(
        Budget,
        calls=st.none() | st.integers(8, 80),
        generated_tokens=st.none() | st.integers(20, 400),
        computed_tokens=st.integers(60, 2500),
    ),
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.integers(1, 20),
)
def test_spend_before_and_after_a_kill_stays_within_the_limit(
    strategy: Any, budget: Budget, seed: int, kill_after: int, size: int
) -> None:
    resumed, served, durable = asyncio.run(kill_and_resume(strategy, budget, seed, kill_after, size))
    assert budget.computed_tokens is not None
    assert served.computed <= budget.computed_tokens
    assert budget.generated_tokens is None or served.generated <= budget.generated_tokens
    assert budget.calls is None or served.calls <= budget.calls
    charged = resumed.ledger.spent.computed + resumed.ledger.lost.computed_tokens
    assert served.computed <= charged <= budget.computed_tokens


async def test_what_the_last_grant_leaves_unaccounted_is_charged_as_lost() -> None:
    budget = Budget(computed_tokens=2000, commit_tokens=0)
    resumed, _, durable = await kill_and_resume(BestFirst(k=3), budget, 5, 3, 8)
    grant = [event for event in durable if isinstance(event, Granted)][-1]
    lost = [event for event in resumed.log if isinstance(event, Lost)]
    charged = sum(event.thought.usage.computed for event in durable if isinstance(event, Sampled))
    charged += sum(event.verdict.usage.computed for event in durable if isinstance(event, Judged))
    assert grant.ceiling[3] is not None
    assert [event.amounts.computed_tokens for event in lost] == [grant.ceiling[3] - charged]


async def test_the_first_durable_chunk_spends_nothing() -> None:
    engine = make_engine()
    search = start(engine, BestFirst(k=3), Budget(computed_tokens=2000), 1)
    chunk = await search.chunk()
    assert [event.kind for event in chunk] == ["opened", "reserved", "granted"]
    assert engine.served == Usage()


async def test_the_driver_never_reserves_past_a_grant_that_is_not_known_durable() -> None:
    search = start(make_engine(), BestFirst(k=3, parallel=3), Budget(computed_tokens=4000, commit_tokens=0), 2)
    ceiling = 0
    while not search.done:
        chunk = await search.chunk(max_events=4)
        used = search.ledger.committed.computed_tokens
        if ceiling:
            assert used <= ceiling
        search.confirm()
        grants = [event.ceiling[3] for event in chunk if isinstance(event, Granted)]
        ceiling = grants[-1] if grants and grants[-1] is not None else ceiling


async def test_a_log_of_another_root_or_strategy_is_refused() -> None:
    engine = make_engine()
    search = start(engine, Greedy(), Budget(computed_tokens=2000), 1)
    chunks = await run(search)
    log = [event for chunk in chunks for event in chunk]
    with pytest.raises(LogError, match="with another strategy: .greedy., not .beam."):
        start(engine, Beam(), Budget(computed_tokens=2000), 1, log=log)
    with pytest.raises(LogError, match="begins with 'opened'"):
        start(engine, Greedy(), Budget(computed_tokens=2000), 1, log=log[1:])
    assert search.task.root != Prefix()


@pytest.mark.parametrize("strategy", [Beam(k=4, keep=2), BestFirst(k=3, parallel=4)], ids=["beam", "best_first"])
async def test_a_search_that_is_killed_again_and_again_before_it_can_write_spends_nothing(strategy: Any) -> None:
    budget = Budget(computed_tokens=1500)
    chunks = await run(start(make_engine(), strategy, budget, 3), 3, 4)
    durable = [event for chunk in chunks for event in chunk]
    engine = make_engine()
    for _ in range(20):
        await start(engine, strategy, budget, 3, log=durable).chunk(max_events=8)
    assert engine.served == Usage()


async def test_a_caller_that_does_not_wait_for_a_grant_is_stopped() -> None:
    search = start(make_engine(), BestFirst(k=3), Budget(computed_tokens=1500), 3)
    await search.chunk()
    assert search.starved
    with pytest.raises(SearchError, match="waits for a grant: make its chunks durable"):
        await search.chunk()
