"""The driver: completions are handled as they arrive, verifiers asked when they can be, failures stay local."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.scripts import NEWLINE, make_engine, make_task, make_verifier, script
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
    Reading,
    Sampling,
    ScriptedEngine,
    StopReason,
    Task,
    Thought,
    Unverified,
    Usage,
    Verdict,
    search,
)
from tts_agent.engines import Fault
from tts_agent.errors import ConfigError, EngineUnavailable, PromptError
from tts_agent.events import Cancelled, Carried, Chosen, Event, Merged, Planned, Reissued, Sampled, log_to_json
from tts_agent.search import make_strategy
from tts_agent.search.dice import thought_seed
from tts_agent.search.driver import Search
from tts_agent.search.state import SearchState
from tts_agent.thought import ROOT
from tts_agent.tree import Branch
from tts_agent.usage import ZERO
from tts_agent.verifiers import Scope


class Recording:
    """A verifier of a given scope that notes which thoughts it was asked about together."""

    name = "recording"

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope
        self.rounds: list[list[int]] = []

    def bound(self, prompt: int) -> Usage:
        return ZERO

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        self.rounds.append([branch.thought.id for branch in branches])
        return [Verdict(0.5) for _ in branches]


async def test_every_prompt_extends_its_parents_prefix_token_for_token() -> None:
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine),
        strategy=BestFirst(k=3),
        verifier=make_verifier(engine),
        budget=Budget(computed_tokens=1500),
        seed=3,
    )
    computed = {outcome.tree.root} | {outcome.tree.prefix(number) for number in outcome.tree.thoughts}
    for prompt, _ in engine.requests:
        assert prompt in computed
    for number, thought in outcome.tree.thoughts.items():
        assert outcome.tree.prefix(number).starts_with(outcome.tree.prefix(thought.parent))


async def test_a_slow_sibling_does_not_hold_back_a_fast_branch() -> None:
    def slow_first(prefix: str, seed: int) -> float:
        return 100.0 if prefix == "root\n" and seed == slow else 1.0

    slow = thought_seed(4, 1)
    engine = ScriptedEngine(script, judge=lambda text: 0.5, latency=slow_first)
    outcome = await search(
        engine,
        make_task(engine, solvable=False),
        strategy=BestFirst(k=2, parallel=4),
        verifier=make_verifier(engine),
        budget=Budget(calls=30),
        seed=4,
    )
    order = [event for event in outcome.log if isinstance(event, (Sampled, Planned))]
    planned_before_slow = 0
    for event in order:
        if isinstance(event, Sampled) and event.thought.id == 1:
            break
        planned_before_slow += isinstance(event, Planned)
    assert planned_before_slow > 3


@pytest.mark.parametrize("scope", ["thought", "siblings", "tree"])
async def test_a_verifier_is_asked_at_the_earliest_moment_its_scope_allows(scope: Scope) -> None:
    engine, verifier = make_engine(), Recording(scope)
    strategy = BestFirst(k=4, parallel=2, max_expansions=6)
    outcome = await search(engine, make_task(engine, solvable=False), strategy=strategy, verifier=verifier, seed=1)
    tree = outcome.tree
    asked = [number for round_ in verifier.rounds for number in round_]
    judgeable = [n for n, t in tree.thoughts.items() if t.status in ("open", "complete") and n not in tree.merged]
    assert sorted(asked) == sorted(judgeable)
    if scope == "thought":
        assert max(len(round_) for round_ in verifier.rounds) < 4  # latencies differ: siblings arrive one by one
    else:
        siblings = {tree.thoughts[number].expansion: 0 for number in asked}
        for round_ in verifier.rounds:
            for expansion in {tree.thoughts[number].expansion for number in round_}:
                siblings[expansion] += 1
        assert set(siblings.values()) == {1}  # all siblings of an expansion are judged in one call


async def test_a_verifier_that_raises_leaves_its_branches_unverified_and_the_search_goes_on() -> None:
    def check(branch: Branch) -> float:
        if "c" in branch.thought.text:
            raise RuntimeError("no idea")
        return 0.5

    class Raising(Recording):
        def bound(self, prompt: int) -> Usage:
            return Usage(prompt_computed=7, calls=1)

        async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
            raise OSError("verifier down")

    engine = make_engine()
    one = await search(engine, make_task(engine), strategy=Beam(k=3, keep=2), verifier=CheckVerifier(check))
    reasons = {v.reason for v in one.tree.verdicts.values() if isinstance(v, Unverified)}
    assert reasons == {"RuntimeError: no idea"}
    assert any(isinstance(v, Verdict) and v.score == 0.5 for v in one.tree.verdicts.values())
    whole = await search(
        engine, make_task(engine, solvable=False), strategy=Beam(k=2, keep=2), verifier=Raising("thought")
    )
    verdicts = list(whole.tree.verdicts.values())
    assert verdicts and all(isinstance(v, Unverified) and v.reason == "OSError: verifier down" for v in verdicts)
    assert whole.usage.calls == sum(1 for e in whole.log if isinstance(e, Planned)) + len(verdicts)
    assert whole.decision is not None


async def test_an_unverified_thought_ranks_as_its_parent() -> None:
    engine = make_engine()

    def check(branch: Branch) -> Any:
        return 0.8 if len(branch.path) == 1 else None

    outcome = await search(
        engine, make_task(engine), strategy=Beam(k=2, keep=2, depth=2), verifier=CheckVerifier(check)
    )
    values = {outcome.tree.value(n) for n in outcome.tree.verdicts if outcome.tree.depth[n] == 2}
    assert values <= {0.8, 1.0} and 0.8 in values


async def test_illegal_dead_and_merged_thoughts_are_kept_but_neither_judged_nor_grown() -> None:
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine, solvable=False),
        strategy=BestFirst(k=6),
        verifier=make_verifier(engine),
        budget=Budget(calls=150),
        seed=2,
    )
    tree = outcome.tree
    closed = {n for n, t in tree.thoughts.items() if t.status in ("invalid", "dead")} | set(tree.merged)
    assert {tree.thoughts[n].status for n in closed} >= {"invalid", "dead", "open"}
    assert not closed & set(tree.verdicts)
    assert not closed & {t.parent for t in tree.thoughts.values()}
    assert all(any(isinstance(e, Merged) and e.thought == n for e in outcome.log) for n in tree.merged)


async def test_a_solution_stops_the_search_at_once_and_aborts_what_runs() -> None:
    def solve_late(prefix: str, seed: int) -> str:
        return "cab\n" if seed % 3 == 0 else "a" * (1 + seed % 4) + "\n"

    engine = ScriptedEngine(solve_late, judge=lambda text: 0.5, latency=lambda p, s: 1.0 if s % 3 == 0 else 2.0)
    outcome = await search(engine, make_task(engine), strategy=BestFirst(k=16), budget=Budget(calls=200), seed=1)
    assert outcome.solved and outcome.stop == StopReason.SOLVED
    cancelled = [event for event in outcome.log if isinstance(event, Cancelled)]
    assert cancelled and cancelled[0].usage.generated > 0
    assert outcome.usage.generated == engine.served.generated


async def test_lost_responses_are_charged_whole_and_issued_again() -> None:
    engine = make_engine(faults={0: Fault("lost", after=1)})
    outcome = await search(engine, make_task(engine), strategy=Beam(k=4, keep=2))
    (lost,) = [event for event in outcome.log if isinstance(event, Reissued)]
    place = outcome.log.index(lost)
    (arrived,) = [event.thought for event in outcome.log[:place] if isinstance(event, Sampled)]
    assert arrived.id == 1 and lost.lost.generated_tokens == 3 * 6 == outcome.lost["generated_tokens"]
    whole = await search(make_engine(), make_task(engine), strategy=Beam(k=4, keep=2))
    assert {number: thought.text for number, thought in outcome.tree.thoughts.items()} == {
        number: thought.text for number, thought in whole.tree.thoughts.items()
    }
    assert (
        SearchState(Beam(k=4, keep=2), Ledger(), judged=False, events=outcome.log).ledger.lost.to_json() == outcome.lost
    )


STRATEGIES: tuple[Any, ...] = (BestFirst(k=2), Beam(k=3, keep=2), BestOfN(n=4), BestOfN(n=4, unit="thought"), Greedy())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("after", [0, 1, 2, 5])
async def test_an_engine_that_stays_away_is_an_outage_whatever_searches(strategy: Any, after: int) -> None:
    well, down = make_engine(), make_engine(faults={number: Fault("refused") for number in range(after, 50)})
    task = make_task(down, solvable=False)
    await search(well, task, strategy=strategy, budget=Budget(calls=40), seed=2)
    if len(well.requests) > after:
        with pytest.raises(EngineUnavailable, match="lost . requests in a row|held back for the decision"):
            await search(down, task, strategy=strategy, budget=Budget(calls=40), seed=2)


async def test_questions_under_way_when_an_engine_gives_up_are_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Recording):
        def bound(self, prompt: int) -> Usage:
            return Usage(calls=1)

        async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
            await asyncio.Event().wait()
            return []

    monkeypatch.setattr(sys.modules[Search.__module__], "LOSSES_IN_A_ROW", 1)
    engine = make_engine(faults={0: Fault("lost", after=1)})  # one sample arrives and is asked about
    task = make_task(engine, solvable=False)
    run = Search(engine, task, Beam(k=3, keep=3), verifier=Hanging("thought"), ledger=Ledger(Budget(calls=99)), seed=0)
    with pytest.raises(EngineUnavailable, match="1 requests in a row"):
        await run.chunk()
    (entry,) = run.state.pending.values()
    assert len(entry.unjudged) == 1 and len(entry.missing) == 2
    await run.aclose()
    (broken,) = [event for event in run.log if isinstance(event, Reissued)]
    assert broken.lost.calls == 2 and broken.lost.generated_tokens == 2 * 6  # the rest of the request, and the question


async def test_what_an_outage_took_is_not_issued_again_where_it_cannot_be_paid() -> None:
    engine = make_engine(faults={0: Fault("lost")})
    budget = Budget(generated_tokens=4 * 6 + 6)
    outcome = await search(engine, make_task(engine), strategy=Beam(k=4, keep=2), budget=budget)
    assert outcome.stop == StopReason.BUDGET and outcome.lost["generated_tokens"] == 24
    assert engine.served.generated <= 24 + outcome.usage.generated


async def test_an_outage_of_the_commit_is_raised_and_the_commit_sampled_later() -> None:
    said: list[str] = []

    def script(prefix: str, seed: int) -> str:
        said.append("x\n" if not said else "a\n")
        return said[-1]

    log: list[Event] = []

    class Kept:
        async def append(self, chunk: Sequence[Event]) -> None:
            log.extend(chunk)

    down = ScriptedEngine(script, faults={1: Fault("refused")})
    task = Task(
        root=Prefix(down.encode("root\n")),
        thought=Sampling(max_tokens=6, stop_ids=(NEWLINE,)),
        read=lambda parent, text: Reading("invalid" if text.startswith("x") else "complete"),
    )
    with pytest.raises(EngineUnavailable, match="held back for the decision: scripted"):
        await search(down, task, strategy=Greedy(), journal=Kept())
    outcome = await search(ScriptedEngine(script), task, strategy=Greedy(), log=log)
    assert outcome.stop == StopReason.EXHAUSTED and outcome.decision is not None and outcome.decision.text == "a\n"


async def test_cancelling_from_outside_gives_the_best_so_far() -> None:
    engine = make_engine()
    run = Search(engine, make_task(engine, solvable=False), BestFirst(k=3), ledger=Ledger(Budget(calls=99)), seed=1)
    while not run.done:
        await run.chunk(max_events=10)
        run.cancel()
    assert run.outcome().stop == StopReason.CANCELLED and run.outcome().decision is not None


async def test_carried_thoughts_cost_nothing_and_a_carried_solution_ends_the_search() -> None:
    engine = make_engine()
    task = make_task(engine)
    ids = engine.encode("ab\n")
    open_ = Carried(Thought(1, 0, -1, ids, "ab\n", status="open"), Verdict(0.9))
    outcome = await search(engine, task, strategy=BestFirst(k=2), carried=[open_], budget=Budget(calls=3))
    assert any(isinstance(e, Planned) and e.request.parent in (0, 1) for e in outcome.log)
    solved = Carried(Thought(2, 1, -1, ids, "cab\n", status="solved"), Verdict(1.0))
    before = engine.served
    outcome = await search(engine, task, strategy=BestFirst(k=2), carried=[open_, solved], budget=Budget(calls=3))
    assert outcome.solved and len(outcome.path) == 2 and engine.served == before and outcome.usage == Usage()


async def test_hints_are_part_of_the_childs_ids() -> None:
    class Hinting(Greedy):
        def propose(self, state: Any, allowance: Any, rng: Any) -> Sequence[Expansion]:
            return [
                Expansion(request.parent, request.n, append_ids=tuple(map(ord, "hint ")))
                for request in Greedy.propose(self, state, allowance, rng)
            ]

    engine = make_engine()
    outcome = await search(engine, make_task(engine, max_depth=2), strategy=Hinting())
    first = outcome.path[0]
    assert engine.decode(first.ids) == "hint " + first.text
    assert engine.requests[1][0] == outcome.tree.root.extend(first.ids).extend(map(ord, "hint "))


async def test_an_end_token_never_stays_in_a_prefix() -> None:
    end = ord("$")
    engine = ScriptedEngine(lambda prefix, seed: "ab$" if "ab" not in prefix else "c\n")
    task = Task(
        Prefix(engine.encode("root\n")), Sampling(max_tokens=4, stop_ids=(NEWLINE, end)), end_ids=frozenset((end,))
    )
    outcome = await search(engine, task, strategy=BestOfN(n=2, width=2, unit="thought"), budget=Budget(calls=9))
    assert all(end not in t.ids and t.status == "complete" for t in outcome.tree.thoughts.values())


async def test_a_prompt_longer_than_the_context_is_refused_and_a_full_branch_is_not_grown() -> None:
    engine = make_engine(context=5)
    with pytest.raises(PromptError, match="the prompt has 5 tokens, the context of engine 'scripted' is 5"):
        await search(engine, make_task(engine), strategy=Greedy())
    engine = make_engine(context=16)
    outcome = await search(engine, make_task(engine, max_depth=9), strategy=BestFirst(k=2), budget=Budget(calls=20))
    assert "context full" in outcome.tree.pruned.values()


def test_unknown_strategies_and_options_are_listed() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'mcts'; known: beam, best_first, best_of_n, greedy"):
        make_strategy("mcts")
    with pytest.raises(ConfigError, match=r"unknown options \['width'\] of strategy 'beam'; known: k, keep, depth"):
        make_strategy("beam", width=3)
    with pytest.raises(ConfigError, match="beam keep=0 must be at least 1"):
        make_strategy("beam", keep=0)
    with pytest.raises(ConfigError, match="have no effect on a finished strategy"):
        make_strategy(Beam(), k=3)


async def test_many_searches_share_one_ledger_under_concurrency() -> None:
    run = Ledger(Budget(calls=60))
    engine = make_engine()
    outcomes = await asyncio.gather(
        *(search(engine, make_task(engine), strategy=BestFirst(k=2), ledger=run, seed=seed) for seed in range(8))
    )
    assert engine.served.calls <= 60 and run.spent.calls == engine.served.calls
    assert not any(run.reserved) and {outcome.stop for outcome in outcomes} <= {StopReason.BUDGET, StopReason.SOLVED}


def test_reading_defaults_to_an_open_thought() -> None:
    assert Reading().status == "open"


@pytest.mark.parametrize(("budget", "stop"), [(Budget(calls=2), StopReason.BUDGET), (None, StopReason.EXHAUSTED)])
async def test_where_whole_answers_decide_an_open_path_is_none_and_the_commit_is_a_whole_answer(
    budget: Budget | None, stop: StopReason
) -> None:
    engine = make_engine()
    task = replace(make_task(engine, max_depth=9, solvable=False), decision="answer")
    outcome = await search(engine, task, strategy=Beam(k=2, keep=2, depth=2), budget=budget, seed=1)
    assert outcome.stop == stop
    assert any(thought.status == "open" for thought in outcome.tree.thoughts.values())
    (decision,) = outcome.path
    assert decision.status == "complete" and decision.parent == ROOT
    assert isinstance(outcome.log[-1], Chosen) and outcome.log[-1].committed
    planned = [event for event in outcome.log if isinstance(event, Planned) and event.commit]
    assert [(event.request.unit, event.max_tokens) for event in planned] == [("answer", 8)]


def test_a_task_whose_answers_decide_says_how_they_are_sampled() -> None:
    with pytest.raises(ConfigError, match="decision='answer' acts on whole answers"):
        Task(Prefix((1,)), Sampling(max_tokens=1), decision="answer")


@pytest.mark.parametrize("action", [{"a": 10**30}, {1: 2}, object()])
async def test_an_action_that_no_journal_could_keep_is_invalid(action: Any) -> None:
    engine = make_engine()
    task = replace(make_task(engine), read=lambda parent, text: Reading("open", action))
    outcome = await search(engine, task, strategy=Beam(k=2, keep=1, depth=1))
    assert {thought.status for thought in outcome.tree.thoughts.values()} == {"invalid"}
    assert all("its action is no plain JSON" in thought.reason for thought in outcome.tree.thoughts.values())
    log_to_json(outcome.log)
