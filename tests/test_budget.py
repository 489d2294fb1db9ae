"""Budgets refuse nonsense; the ledger reserves, charges, releases, and trims requests to what fits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scripts import make_engine, make_task
from tts_agent import Beam, BestFirst, Budget, Greedy, Ledger, Prices, StopReason, Usage, search
from tts_agent.budget import Amounts, fit
from tts_agent.errors import BudgetError, ConfigError, SearchError


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"calls": 0}, "calls=0 must be positive; None means no limit"),
        ({"seconds": -1.0}, "seconds=-1.0 must be positive"),
        ({"generated_tokens": 1.5}, "generated_tokens=1.5 must be a whole number"),
        ({"dollars": "3"}, "dollars='3' must be a number"),
        ({"calls": True}, "calls=True must be a whole number"),
        ({"commit_tokens": -1}, "commit_tokens=-1 must be positive"),
        ({"seconds": float("nan")}, "seconds=nan must be positive"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(limits: dict[str, float], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**limits)  # type: ignore[arg-type]


def test_overrides_are_partial_and_unknown_names_raise() -> None:
    budget = Budget(calls=5, seconds=2.0)
    assert budget.override({"calls": 7}) == Budget(calls=7, seconds=2.0)
    with pytest.raises(BudgetError, match=r"unknown budget fields \['token'\]; known: calls, generated_tokens"):
        budget.override({"token": 7})


def test_names_of_any_kind_are_told() -> None:
    budget = Budget(calls=5)
    with pytest.raises(BudgetError, match=r"unknown budget fields \[1, None, 'token'\]; known: calls"):
        budget.override({"token": 7, 1: 2, None: 3})  # type: ignore[dict-item]
    with pytest.raises(BudgetError, match=r"\[1, 'commit_tokens'\] are no limits that can be raised; known: calls"):
        budget.raised({"commit_tokens": 7, 1: 2})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 5}, r"budget 5 of scope 'run' is no Budget; pass Budget\(calls="),
        ({"budget": 0}, "budget 0 of scope 'run' is no Budget"),
        ({"budget": {}}, r"budget \{\} of scope 'run' is no Budget"),
        ({"parent": Budget(calls=5)}, r"ledger Budget\(calls=5, .* around scope 'run' is no Ledger; pass Ledger"),
        ({"prices": 3}, "prices 3 of scope 'run' are no Prices; pass Prices"),
    ],
)
def test_a_ledger_of_something_else_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Ledger(**given)


def test_dollars_need_prices() -> None:
    with pytest.raises(BudgetError, match="needs prices"):
        Ledger(Budget(dollars=1.0))


def test_a_child_cannot_pass_its_parents_limit_and_the_refusing_unit_is_named() -> None:
    run = Ledger(Budget(calls=3, generated_tokens=100))
    step = run.scope(Budget(generated_tokens=60), name="step")
    step.reserve(0, Usage(generated=50, calls=2))
    assert step.refuses(Usage(generated=11)) == "generated_tokens"
    assert step.refuses(Usage(generated=10, calls=2)) == "calls"
    assert run.refuses(Usage(generated=50, calls=1)) is None
    assert step.room() == {"calls": 1, "generated_tokens": 10}
    with pytest.raises(BudgetError, match="does not fit into calls of scope 'step'"):
        step.reserve(1, Usage(calls=2))
    with pytest.raises(SearchError, match="reservation 0 is open already"):
        step.reserve(0, Usage())
    step.charge(0, Usage(generated=20, calls=1))
    step.release(0)
    assert run.spent == Usage(generated=20, calls=1)
    assert not any(run.reserved) and not any(step.reserved)


def test_lost_work_is_charged_without_being_usage() -> None:
    run = Ledger(Budget(generated_tokens=100))
    step = run.scope(name="step")
    step.reserve(0, Usage(generated=40))
    step.charge(0, Usage(generated=10))
    assert step.lose(0).generated_tokens == 30
    step.release(0)
    assert (run.spent.generated, run.lost.generated_tokens) == (10, 30)
    assert run.refuses(Usage(generated=61)) == "generated_tokens"
    assert run.refuses(Usage(generated=60)) is None


def test_what_an_engine_uses_beyond_its_bound_is_charged_and_named() -> None:
    run = Ledger(Budget(generated_tokens=100))
    step = run.scope(name="step")
    step.reserve(0, Usage(generated=40, calls=1))
    step.charge(0, Usage(generated=30, calls=1))
    assert not any(step.excess)
    step.charge(0, Usage(generated=25))
    step.release(0)
    assert run.excess == step.excess == Amounts(generated_tokens=15, total_tokens=15)
    assert run.committed.generated_tokens == 55
    assert run.snapshot()["excess"] == {"generated_tokens": 15, "total_tokens": 15}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1e-3)), max_size=30))
def test_whatever_is_reserved_and_released_leaves_nothing(parts: list[tuple[int, int, float]]) -> None:
    run = Ledger(Budget(dollars=1e9), prices=Prices(prompt=1.1, generated=3.3))
    for key, (prompt, generated, _) in enumerate(parts):
        run.reserve(key, Usage(prompt_computed=prompt, generated=generated))
    for key, (prompt, generated, share) in enumerate(parts):
        run.charge(key, Usage(prompt_computed=int(prompt * share), generated=generated // 2))
        run.release(key)
    assert run.snapshot()["reserved"] == {} and run.snapshot()["open"] == {}


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2000), st.integers(1, 300))
def test_a_request_is_trimmed_in_n_first_and_then_in_max_tokens(n: int, tokens: int, room: int, least: int) -> None:
    least = min(least, tokens)
    result = fit(lambda k, t: k * t > room, n, tokens, least_tokens=least)
    if n * tokens <= room:
        assert result == (n, tokens)
    elif tokens <= room:
        assert result == (room // tokens, tokens)
    elif least <= room:
        assert result == (1, room)
    else:
        assert result is None


async def test_a_budget_too_small_for_the_prompt_and_one_decision_is_refused_before_anything_is_sampled() -> None:
    engine = make_engine()
    with pytest.raises(
        BudgetError, match=r"computed_tokens: 8 left cannot pay for the prompt of 5 tokens and a commit"
    ):
        await search(engine, make_task(engine), strategy=Greedy(), budget=Budget(computed_tokens=8))
    assert not engine.requests


async def test_an_endless_strategy_needs_a_budget() -> None:
    engine = make_engine()
    with pytest.raises(ConfigError, match="strategy 'best_first' goes on until a budget stops it"):
        await search(engine, make_task(engine), strategy=BestFirst())


async def test_running_out_is_a_result_with_the_best_so_far_and_the_commit_makes_a_decision() -> None:
    engine = make_engine()
    task = make_task(engine, solvable=False)
    outcome = await search(engine, task, strategy=Beam(k=8), budget=Budget(generated_tokens=40))
    assert (outcome.stop, outcome.limit) == (StopReason.BUDGET, "generated_tokens")
    assert outcome.decision is not None and outcome.cut == "stopped by the generated_tokens limit"
    # Only the commit fits: the decision is one greedy completion.
    other = make_engine()
    outcome = await search(other, task, strategy=Beam(k=8), budget=Budget(calls=1), seed=1)
    assert (outcome.stop, outcome.limit, len(other.requests)) == (StopReason.BUDGET, "calls", 1)
    assert outcome.decision is not None
    # Without a commit there is none.
    outcome = await search(other, task, strategy=Beam(k=8), budget=Budget(generated_tokens=2, commit_tokens=0))
    assert outcome.decision is None and outcome.answer == ""


async def test_seconds_stop_a_search_and_no_commit_follows() -> None:
    engine = make_engine()
    outcome = await search(
        engine, make_task(engine, solvable=False), strategy=BestFirst(k=2), budget=Budget(seconds=5.0)
    )
    assert (outcome.stop, outcome.limit) == (StopReason.BUDGET, "seconds")
    assert outcome.decision is not None and 0 < outcome.usage.seconds <= 5.0
