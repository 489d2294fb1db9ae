"""Verifiers: in-place labels, programmatic checks, cascades."""

from collections.abc import Sequence

import pytest

from tests.scripts import make_engine, make_task
from tts_agent import (
    Beam,
    BestFirst,
    BestOfN,
    Budget,
    CheckVerifier,
    Expansion,
    LabelVerifier,
    Prefix,
    ScriptedEngine,
    Thought,
    Unverified,
    Usage,
    Verdict,
    search,
)
from tts_agent.errors import ConfigError
from tts_agent.events import Opened, Planned, Sampled
from tts_agent.tree import Branch, ThoughtTree
from tts_agent.verifiers import AgreementVerifier, Cascade, RandomVerifier


def branch(text: str, id: int = 1) -> Branch:
    ids = tuple(map(ord, text))
    thought = Thought(id, 0, 0, ids, text)
    return Branch(
        ThoughtTree([Opened("s", 0, Prefix(), ""), Planned(0, id, Expansion(0, 1), 1), Sampled(thought)]),
        thought,
        Prefix(ids),
    )


def labels(engine: ScriptedEngine) -> LabelVerifier:
    return LabelVerifier(engine, question="ok?", good="y", bad="n")


async def test_the_score_is_the_good_labels_share_and_only_the_question_is_new() -> None:
    engine = ScriptedEngine(lambda prefix, seed: "x\n", judge=lambda text: 0.75 if "good" in text else 0.25, cache=True)
    task = make_task(engine)
    outcome = await search(engine, task, strategy=Beam(k=1, keep=1, depth=1), verifier=labels(engine))
    verdict = outcome.tree.verdicts[1]
    assert isinstance(verdict, Verdict) and verdict.score == 0.25 and verdict.verifier == "labels"
    # The branch is computed; its last token and the three of the question are not.
    assert verdict.usage == Usage(prompt_computed=4, prompt_cached=6, calls=1).as_verifier()
    assert (await labels(engine)([branch("good")]))[0] == Verdict(0.75, "", "labels", Usage(7, calls=1).as_verifier())


async def test_a_question_may_be_ids_and_labels_of_several_tokens_are_charged() -> None:
    engine = ScriptedEngine(lambda prefix, seed: "x\n", judge=lambda text: 0.75, cache=True)
    asked = LabelVerifier(engine, question=engine.encode("ok?"), good="yes", bad="no")
    (verdict,) = await asked([branch("good")])
    assert verdict == Verdict(0.75, "", "labels", Usage(4 + 3 + 2 + 1, calls=1).as_verifier())
    # At worst what follows "y", "ye" and "n" is asked each by itself, with nothing in the cache.
    assert asked.bound(4) == Usage(7 + 8 + 9 + 8, calls=1).as_verifier()


async def test_a_verifier_may_have_an_engine_of_its_own() -> None:
    sampler, other = make_engine(), make_engine()
    outcome = await search(sampler, make_task(sampler), strategy=Beam(k=2, keep=1), verifier=labels(other))
    assert all(n > 0 for _, n in sampler.requests) and all(n == 0 for _, n in other.requests)
    assert other.served.computed == outcome.usage.verifier_computed > 0
    assert sampler.served.computed + other.served.computed == outcome.usage.computed


@pytest.mark.parametrize(
    ("question", "good", "bad", "message"),
    [
        ("", "y", "n", "question '' encodes to no token"),
        ("?", "", "n", "label '' encodes to no token"),
        ("?", "y", "y", "labels 'y' and 'y' one is the beginning of the other"),
        ("?", "yes", "ye", "labels 'yes' and 'ye' one is the beginning of the other"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(question: str, good: str, bad: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelVerifier(make_engine(), question=question, good=good, bad=bad)


def test_an_engine_without_label_logprobs_is_refused() -> None:
    with pytest.raises(ConfigError, match="engine 'scripted' gives no label log-probabilities"):
        labels(ScriptedEngine(lambda prefix, seed: "x"))


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_outside_zero_and_one_is_no_verdict(score: float) -> None:
    with pytest.raises(ConfigError, match=r"is not in \[0, 1\]; scale it, or return Unverified"):
        Verdict(score)


async def test_checks_may_say_yes_no_a_number_a_verdict_or_nothing_and_may_fail() -> None:
    answers: dict[str, object] = {"yes": True, "no": False, "half": 0.5, "none": None, "own": Verdict(0.3, "why")}

    def check(branch: Branch) -> object:
        return answers[branch.text]

    verifier = CheckVerifier(check)  # type: ignore[arg-type]
    verdicts = await verifier([branch(text) for text in (*answers, "unknown")])
    assert [v.score if isinstance(v, Verdict) else None for v in verdicts] == [1.0, 0.0, 0.5, None, 0.3, None]
    assert verdicts[-1] == Unverified("KeyError: 'unknown'", "check")
    assert isinstance((await CheckVerifier(lambda b: 7.0)([branch("x")]))[0], Unverified)


async def test_a_cascade_asks_the_expensive_verifier_only_about_what_passed() -> None:
    asked: list[str] = []

    class Expensive:
        name = "expensive"
        scope = "thought"

        def bound(self, prompt: int) -> Usage:
            return Usage(calls=1)

        async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
            asked.extend(branch.text for branch in branches)
            return [Unverified("no idea") if b.text == "d" else Verdict(0.9, usage=Usage(calls=1)) for b in branches]

    cheap = CheckVerifier(lambda branch: {"a": 0.0, "b": 0.4, "c": None, "d": 0.2}[branch.text], name="cheap")
    cascade = Cascade([cheap, Expensive()])  # type: ignore[list-item]
    verdicts = await cascade([branch(text) for text in "abcd"])
    assert asked == ["b", "c", "d"]
    assert [v.score if isinstance(v, Verdict) else None for v in verdicts] == [0.0, 0.9, 0.9, 0.2]
    assert cascade.bound(5) == Usage(calls=1) and cascade.scope == "thought"
    with pytest.raises(ConfigError, match="needs at least one verifier"):
        Cascade([])


async def test_random_scores_are_fixed_by_seed_and_branch() -> None:
    one, two = RandomVerifier(seed=1), RandomVerifier(seed=2)
    branches = [branch(text) for text in ("a", "b")]
    first, again, other = await one(branches), await one(branches[::-1]), await two(branches)
    assert first == again[::-1] != other


async def test_a_better_value_finds_more_at_the_same_budget() -> None:
    """The verdict steers the search: told the truth it grows the branch that leads on, told a lie it does not."""

    found = {}
    for name, truth in (("true", 1.0), ("false", -1.0)):
        engine = make_engine()
        verifier = CheckVerifier(lambda b, t=truth: 0.5 + t * (0.4 if b.text.count("a") >= len(b.path) else -0.4))
        outcome = await search(
            engine,
            make_task(engine, solvable=False),
            strategy=BestFirst(k=4),
            verifier=verifier,
            budget=Budget(calls=60),
        )
        found[name] = sum(t.text.count("a") for t in outcome.path)
    assert found["true"] > found["false"]


async def test_what_most_siblings_say_is_chosen_and_what_breaks_a_rule_has_no_vote() -> None:
    said = ["ab\n", "dd\n", "ba\n", "c\n", "ab\n", "c\n", "ab\n", "dd\n"]
    order = iter(said)
    engine = ScriptedEngine(lambda prefix, seed: next(order))
    outcome = await search(
        engine,
        make_task(engine, max_depth=1),
        strategy=BestOfN(n=8, width=8, unit="thought"),
        verifier=AgreementVerifier(),
        budget=Budget(calls=1, commit_tokens=0),
    )
    scores = {outcome.tree.thoughts[number].text: verdict for number, verdict in outcome.tree.verdicts.items()}
    assert outcome.answer == "ab\n"
    assert {text: verdict.reason for text, verdict in scores.items()} == {
        "ab\n": "4 of 6 siblings say so",  # "ba" is the same as "ab" here
        "c\n": "2 of 6 siblings say so",
    }
    assert outcome.usage.verifier_computed == 0
