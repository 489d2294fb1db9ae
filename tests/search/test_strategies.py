"""What strategies promise: the best is chosen, grants change nothing, nothing is grown for ever."""

from collections.abc import Sequence
from math import log
from random import Random
from typing import Any

import pytest

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import (
    Beam,
    BestFirst,
    BestOfN,
    Budget,
    CheckVerifier,
    Expansion,
    Greedy,
    Ledger,
    Prefix,
    Prices,
    Reading,
    Sampling,
    ScriptedEngine,
    StopReason,
    Task,
    Thought,
    ThoughtTree,
    Unverified,
    Usage,
    Verdict,
    search,
)
from tts_agent.errors import BudgetError, ConfigError, LogError
from tts_agent.events import Cancelled, Event, Judged, Opened, Planned, Sampled, Settled
from tts_agent.search import make_strategy
from tts_agent.search.base import Allowance
from tts_agent.search.driver import Search
from tts_agent.tree import Branch
from tts_agent.verifiers import Cascade

RANK = {"solved": 3, "complete": 2, "open": 1}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("strategy", [BestFirst(k=3, parallel=2), Beam(k=3, keep=2), BestOfN(n=6, width=3)])
async def test_the_chosen_thought_is_the_best_there_is(strategy: Any, seed: int) -> None:
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine, solvable=False),
        strategy=strategy,
        verifier=make_verifier(engine),
        budget=Budget(calls=60),
        seed=seed,
    )
    tree = outcome.tree
    rows = [
        (RANK[t.status], -1.0 if (value := tree.value(n)) is None else value, tree.depth[n], -n)
        for n, t in tree.thoughts.items()
        if t.status in RANK and n not in tree.merged
    ]
    assert outcome.path[-1].id == -max(rows)[3]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strategy", [Beam(k=4, keep=3), BestFirst(k=3, parallel=3, max_expansions=14)])
async def test_grants_that_do_not_bind_do_not_change_the_tree(strategy: Any, seed: int) -> None:
    trees = []
    for grant in (None, 0.02, 0.05, 0.3):
        engine = make_engine()
        run = Search(
            engine,
            make_task(engine, solvable=False),
            strategy,
            verifier=make_verifier(engine),
            ledger=Ledger(Budget(computed_tokens=20_000)),
            seed=seed,
            grant=grant,
        )
        while not run.done:
            await run.chunk(max_events=16)
            run.confirm()
        trees.append(run.state.tree.to_json())
    assert all(tree == trees[0] for tree in trees)


def keyed(text: str) -> Task:
    """A task in which every thought has the same canonical form."""
    return Task(
        Prefix(tuple(map(ord, "root\n"))),
        Sampling(max_tokens=6, stop_ids=(10,)),
        read=lambda parent, said: Reading(key=text),
    )


async def test_greedy_ends_where_its_branch_returns_to_an_earlier_state() -> None:
    engine = ScriptedEngine(lambda prefix, seed: "aa\n")
    outcome = await search(engine, keyed("the same"), strategy=Greedy())
    assert len(outcome.tree) < 5 and outcome.decision is not None


async def test_without_discount_no_thought_is_grown_twice_whatever_its_value() -> None:
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine, solvable=False),
        strategy=BestFirst(k=2, discount=0.0),
        verifier=CheckVerifier(lambda branch: False),
        budget=Budget(calls=40),
    )
    parents = [event.request.parent for event in outcome.log if event.kind == "planned" and not event.commit]
    assert len(parents) == len(set(parents)) > 2


async def test_a_beam_ranks_an_unverified_thought_in_the_middle_not_last() -> None:
    def check(branch: Branch) -> float | None:
        return None if branch.thought.id == 1 else 0.01

    engine = make_engine()
    outcome = await search(
        engine, make_task(engine), strategy=Beam(k=3, keep=1, depth=2), verifier=CheckVerifier(check), seed=7
    )
    assert isinstance(outcome.tree.verdicts[1], Unverified)
    assert 1 not in outcome.tree.pruned and outcome.tree.children[1]


class Dear:
    """A verifier with prices of its own."""

    name = "dear"
    scope = "thought"

    def bound(self, prompt: int) -> Usage:
        return Usage(calls=1, dollars=1e-5)

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        return [Verdict(0.5, usage=Usage(calls=1, dollars=1e-5)) for _ in branches]


async def test_a_verifiers_own_dollars_do_not_hide_what_sampling_costs() -> None:
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine, solvable=False),
        strategy=BestFirst(k=4),
        verifier=Dear(),  # type: ignore[arg-type]
        budget=Budget(dollars=0.0004),
        prices=Prices(prompt=2.0, generated=8.0),
    )
    assert outcome.limit == "dollars" and 0.0001 < outcome.usage.dollars <= 0.0004


async def test_a_scope_without_time_left_samples_nothing() -> None:
    engine = make_engine()
    run = Ledger(Budget(seconds=5.0))
    run.elapse(5.0)
    outcome = await search(engine, make_task(engine), strategy=BestFirst(k=2), ledger=run)
    assert (outcome.stop, outcome.limit) == (StopReason.BUDGET, "seconds")
    assert not engine.requests and outcome.decision is None


async def test_a_reader_that_raises_makes_an_invalid_thought_that_is_charged() -> None:
    def read(parent: Thought | None, text: str) -> Reading:
        if "c" in text:
            raise KeyError("no such letter")
        return Reading(key=None)

    engine = make_engine()
    task = Task(Prefix(engine.encode("root\n")), Sampling(max_tokens=6, stop_ids=(10,)), read=read, max_depth=3)
    outcome = await search(engine, task, strategy=Beam(k=6, keep=2))
    invalid = [t for t in outcome.tree.thoughts.values() if t.status == "invalid"]
    assert invalid and "KeyError" in invalid[0].reason
    assert outcome.usage.computed == engine.served.computed


async def test_malformed_verdicts_are_no_verdicts_and_the_search_goes_on() -> None:
    class Numbers(Dear):
        async def __call__(self, branches: Sequence[Branch]) -> Any:
            return [0.7 for _ in branches]

    class TooFew(Dear):
        async def __call__(self, branches: Sequence[Branch]) -> Any:
            return []

    for verifier in (Numbers(), TooFew()):
        engine = make_engine()
        outcome = await search(
            engine,
            make_task(engine, solvable=False),
            strategy=Beam(k=2, keep=1),
            verifier=verifier,  # type: ignore[arg-type]
        )
        judged = list(outcome.tree.verdicts.values())
        assert judged and all(isinstance(verdict, Unverified) for verdict in judged)


async def test_a_member_of_a_cascade_that_fails_leaves_the_others_verdicts() -> None:
    class Failing(Dear):
        async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
            raise OSError("down")

    cascade = Cascade([CheckVerifier(lambda branch: 0.4), Failing()])  # type: ignore[list-item]
    engine = make_engine()
    outcome = await search(engine, make_task(engine, solvable=False), strategy=Beam(k=2, keep=1), verifier=cascade)
    scores = {verdict.score for verdict in outcome.tree.verdicts.values() if isinstance(verdict, Verdict)}
    assert scores == {0.4}


async def test_a_commit_is_cut_to_the_context() -> None:
    engine = make_engine(context=9)
    outcome = await search(engine, make_task(engine), strategy=Greedy(), budget=Budget(calls=1))
    assert outcome.stop == StopReason.BUDGET and len(engine.requests) == 1


async def test_resuming_with_another_setting_or_too_small_a_budget_is_refused_and_holds_nothing() -> None:
    engine = make_engine()
    settings: dict[str, Any] = {"seed": 1, "grant": 0.2}
    whole = Search(engine, make_task(engine), BestFirst(k=3), ledger=Ledger(Budget(calls=40)), **settings)
    for _ in range(4):
        await whole.chunk(max_events=8)
        whole.confirm()
    log = list(whole.log)
    with pytest.raises(LogError, match="another settings: .*'k': 3.*not.*'k': 7"):
        Search(engine, make_task(engine), BestFirst(k=7), ledger=Ledger(Budget(calls=40)), log=log, **settings)
    with pytest.raises(LogError, match="another verifier: '', not 'labels'"):
        verifier = make_verifier(engine)
        ledger = Ledger(Budget(calls=40))
        Search(engine, make_task(engine), BestFirst(k=3), verifier=verifier, ledger=ledger, log=log, **settings)
    run = Ledger(Budget(calls=40))
    with pytest.raises(BudgetError, match="has spent more than the budget .* resume with at least"):
        scope = run.scope(Budget(calls=2), name="step")
        Search(engine, make_task(engine), BestFirst(k=3), ledger=scope, log=log, **settings)
    assert not any(run.reserved)
    await whole.aclose()


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (Beam, {"k": "3"}, "beam k='3' must be a whole number"),
    (Beam, {"keep": None}, "beam keep=None must be a whole number"),
    (Beam, {"depth": 2.0}, "beam depth=2.0 must be a whole number"),
    (Beam, {"k": True}, "beam k=True must be a whole number"),
    (BestFirst, {"k": "4"}, "best_first k='4' must be a whole number"),
    (BestFirst, {"k": 0}, "best_first k=0 must be at least 1"),
    (BestFirst, {"parallel": None}, "best_first parallel=None must be a whole number"),
    (BestFirst, {"parallel": 0}, "best_first parallel=0 must be at least 1"),
    (BestFirst, {"discount": "0.5"}, "best_first discount='0.5' must be a number"),
    (BestFirst, {"unvalued": None}, "best_first unvalued=None must be a number"),
    (BestFirst, {"reheat": "1"}, "best_first reheat='1' must be a number"),
    (BestFirst, {"enough": "0.9"}, "best_first enough='0.9' must be a number, or None"),
    (BestFirst, {"max_expansions": 2.5}, "best_first max_expansions=2.5 must be a whole number, or None"),
    (BestFirst, {"max_expansions": 0}, "best_first max_expansions=0 must be at least 1, or None"),
    (BestOfN, {"n": 1.5}, "best_of_n n=1.5 must be a whole number, or None"),
    (BestOfN, {"n": 0}, "best_of_n n=0 must be at least 1, or None"),
    (BestOfN, {"width": "8"}, "best_of_n width='8' must be a whole number"),
    (BestOfN, {"enough": [1]}, r"best_of_n enough=\[1\] must be a number, or None"),
    (Greedy, {"depth": "x"}, "greedy depth='x' must be a whole number"),
    (Greedy, {"depth": 0}, "greedy depth=0 must be at least 1"),
    (Prices, {"prompt": "x", "generated": 1.0}, "price prompt='x' must be a number of dollars >= 0"),
    (Prices, {"prompt": 1.0, "generated": None}, "price generated=None must be a number of dollars >= 0"),
    (Prices, {"prompt": 1.0, "generated": -1.0}, "price generated=-1.0 must be a number of dollars >= 0"),
    (Prices, {"prompt": float("inf"), "generated": 1.0}, "price prompt=inf must be a number of dollars >= 0"),
    (Prices, {"prompt": float("nan"), "generated": 1.0}, "price prompt=nan must be a number of dollars >= 0"),
    (Prices, {"prompt": 1.0, "generated": 1.0, "cached": "0"}, "price cached='0' must be a number of dollars >= 0"),
    (Budget, {"calls": "5"}, "budget calls='5' must be a whole number, or None for no limit"),
]


@pytest.mark.parametrize(("kind", "settings", "reason"), WRONG)
def test_a_setting_of_the_wrong_kind_is_named(kind: Any, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        kind(**settings)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy Beam is a class; pass an instance, Beam\(\.\.\.\)"):
        make_strategy(Beam)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="price cached=3.0 is above prompt=2.0"):
        Prices(prompt=2.0, generated=1.0, cached=3.0)
    with pytest.raises(BudgetError, match="dollars=inf is no limit; use None"):
        Budget(dollars=float("inf"))


async def test_an_answer_given_up_at_its_first_illegal_step_begins_again_at_the_root() -> None:
    parents: dict[str, list[int]] = {}
    for retry in ("step", "answer"):
        engine = make_engine()
        outcome = await search(
            engine,
            make_task(engine, solvable=False),
            strategy=BestOfN(n=None, width=1, unit="thought", retry=retry),  # type: ignore[arg-type]
            budget=Budget(calls=60),
            seed=3,
        )
        thoughts = [outcome.tree.thoughts[n] for n in sorted(outcome.tree.thoughts)]
        parents[retry] = [
            after.parent if retry == "answer" else after.parent - broken.parent
            for broken, after in zip(thoughts, thoughts[1:], strict=False)
            if broken.status == "invalid" and broken.parent
        ]
    assert parents["step"] and not any(parents["step"])
    assert parents["answer"] and not any(parents["answer"])


@pytest.mark.parametrize("options", [{"retry": "never", "unit": "thought"}, {"retry": "answer", "unit": "answer"}])
def test_a_retry_that_is_unknown_or_has_no_effect_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="retry"):
        BestOfN(**options)


def proposed(strategy: BestFirst, logprobs: Sequence[float | None], texts: Sequence[str]) -> Expansion:
    """What is grown next, after two good first thoughts of which one has children of no worth."""
    tree = ThoughtTree()
    state = strategy.start(tree)
    children = zip(texts, logprobs, strict=True)
    events: list[Event] = [
        Opened("", 0, Prefix((1,)), "best_first", verifier="v"),
        Planned(0, 1, Expansion(0, 2), 9),
        Sampled(Thought(1, 0, 0, (10,), "a", -3.0)),
        Sampled(Thought(2, 0, 0, (11,), "b", -3.0)),
        Judged(1, Verdict(0.9)),
        Judged(2, Verdict(0.5)),
        Settled(0),
        Planned(1, 3, Expansion(1, len(texts)), 9),
        *(Sampled(Thought(3 + n, 1, 1, tuple(map(ord, text)), text, p)) for n, (text, p) in enumerate(children)),
        *(Judged(3 + n, Verdict(0.01)) for n in range(len(texts))),
        Planned(2, 9, Expansion(0, 1), 9),  # the root has had its turn
        Cancelled(2),
        Settled(1),
    ]
    for event in events:
        tree.update(event)
        strategy.update(state, event)
    (proposal,) = strategy.propose(state, Allowance(0, 1.0), Random(0))
    return proposal


def test_a_parent_whose_next_thoughts_are_all_seen_is_not_grown_again() -> None:
    often = BestFirst(k=1, discount=0.7, unvalued=0.5)
    likely, rare = [log(0.6), log(0.3)], [log(0.01), log(0.02)]
    assert proposed(often, rare, ["x", "y"]).parent == 1  # most is unseen, and it is the better of the two
    assert proposed(often, likely, ["x", "y"]).parent == 2  # nine of ten would be duplicates
    assert proposed(often, [log(0.2)] * 3, ["x"] * 3).parent == 1  # the same thought three times has been seen once
    assert proposed(often, [None, None], ["x", "y"]).parent == 1  # an engine without log-probabilities says nothing
    assert proposed(BestFirst(k=1, discount=0.7, unseen=False), likely, ["x", "y"]).parent == 1


def test_a_parent_is_sampled_hotter_the_less_of_it_is_unseen() -> None:
    strategy = BestFirst(k=1, discount=0.7, reheat=0.5)
    for chances in ([0.01, 0.02], [0.05, 0.1]):
        proposal = proposed(strategy, [log(chance) for chance in chances], ["x", "y"])
        assert proposal.parent == 1 and proposal.heat == pytest.approx(1 + 0.5 * sum(chances))
    task = make_task(make_engine())
    assert task.sampling(Expansion(1, 2, heat=1.5)).temperature == 1.5 * task.thought.temperature
    assert task.sampling(Expansion(1, 2, temperature=0.0, heat=1.5)).temperature == 0  # the likeliest stays what it is
    for reheat, unseen in ((-0.1, True), (float("nan"), True), (0.5, False)):
        with pytest.raises(ConfigError, match="reheat"):
            BestFirst(reheat=reheat, unseen=unseen)
    with pytest.raises(ConfigError, match="heat"):
        Expansion(1, 1, heat=0.0)


@pytest.mark.parametrize("strategy", [BestFirst(k=2, enough=0.6), BestOfN(n=None, width=2, unit="thought", enough=0.6)])
async def test_an_answer_that_is_good_enough_ends_the_search(strategy: Any) -> None:
    ended = 0
    for seed in range(8):
        engine = make_engine()
        outcome = await search(
            engine,
            make_task(engine, solvable=False),
            strategy=strategy,
            verifier=make_verifier(engine),
            budget=Budget(calls=300),
            seed=seed,
        )
        tree = outcome.tree
        good = {n for n, t in tree.thoughts.items() if t.status == "complete" and (tree.value(n) or 0) >= 0.6}
        if outcome.stop is StopReason.CONVERGED:
            ended += 1
            kinds = [event.kind for event in outcome.log]
            first = next(n for n, e in enumerate(outcome.log) if isinstance(e, Judged) and e.thought in good)
            assert outcome.path[-1].id in good and "planned" not in kinds[first:]
        else:
            assert not good
    assert ended


@pytest.mark.parametrize("kind", [BestFirst, BestOfN])
def test_a_value_that_is_enough_lies_above_nothing(kind: Any) -> None:
    for enough in (0.0, 1.1):
        with pytest.raises(ConfigError, match="enough"):
            kind(enough=enough)


async def test_the_likeliest_child_comes_first_and_alone() -> None:
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine, solvable=False),
        strategy=BestFirst(k=3, greedy_first=True),
        verifier=make_verifier(engine),
        budget=Budget(calls=60),
        seed=4,
    )
    grown: set[int] = set()
    again = 0
    for event in outcome.log:
        if isinstance(event, Planned):
            request = event.request
            first = request.parent not in grown
            assert (request.n, request.temperature) == ((1, 0.0) if first else (3, None))
            again += not first
            grown.add(request.parent)
    assert again and len(grown) > 3
    with pytest.raises(ConfigError, match="greedy_first"):
        BestFirst(greedy_first=True, discount=0.0)


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=2, width=2, unit="thought")], ids=lambda s: s.name)
async def test_a_branch_whose_context_is_full_is_given_up(strategy: Any) -> None:
    engine = make_engine(context=12)
    task = make_task(engine, max_depth=9, solvable=False)
    outcome = await search(engine, task, strategy=strategy, budget=Budget(calls=100))
    assert "context full" in outcome.tree.pruned.values()
    assert outcome.stop is StopReason.CONVERGED
