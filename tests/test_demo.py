"""The demonstration, with few puzzles, on the planner that ships with the package."""

import json
import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tts_agent import load_engine
from tts_agent.cli import main
from tts_agent.demo import agent, contest, run
from tts_agent.demo.arms import ARMS, BASELINES, SEARCH, attempt, solves
from tts_agent.demo.contest import CONTESTS, choose
from tts_agent.demo.intervals import paired_difference
from tts_agent.errors import ConfigError, LogError, ModelError
from tts_agent.pocket import Puzzle, model_folder
from tts_agent.pocket.countdown import legal_steps
from tts_agent.pocket.puzzles import load
from tts_agent.trace import read

shipped = pytest.mark.skipif(not (model_folder() / "model.safetensors").exists(), reason="the planner is not trained")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """A demonstration with three puzzles of each kind: its numbers, what it printed, and its trace."""
    out = tmp_path_factory.mktemp("demo") / "trace.jsonl"
    console = Console(file=StringIO(), width=160, color_system=None)
    result = run(puzzles=3, seed=5, out=out, console=console)
    assert isinstance(console.file, StringIO)
    return result, console.file.getvalue(), out


@shipped
def test_it_shows_the_agent_its_tree_and_both_comparisons(shown: tuple[dict[str, Any], str, Path]) -> None:
    result, text, out = shown
    assert result["agent"]["puzzle"] in text
    for step in result["agent"]["steps"]:
        assert step["decision"] in text
    assert f"tts-agent tree {out}" in text
    assert "plan/1: best_first" in text
    for one in CONTESTS:
        assert f"{one.title}: 3 held-out puzzles" in text
    for arm in BASELINES:
        assert len(re.findall(f"tree search, against {arm}: .* tokens", text)) == len(CONTESTS)
    assert text.count("Most solved with") == len(CONTESTS)


@shipped
def test_its_trace_holds_the_search_of_every_planning_step(shown: tuple[dict[str, Any], str, Path]) -> None:
    result, _, out = shown
    logs = read(out)
    steps = result["agent"]["steps"]
    assert [log.search for log in logs] == [f"plan/{step['step']}" for step in steps]
    assert all(log.complete for log in logs)


@shipped
def test_its_numbers_keep_the_limits_and_add_up(shown: tuple[dict[str, Any], str, Path]) -> None:
    result, _, _ = shown
    json.dumps(result, allow_nan=False)
    for one in CONTESTS:
        numbers = result["contests"][one.name]
        assert numbers["puzzles"] == 3 and list(numbers["arms"]) == list(ARMS)
        for arm in numbers["arms"].values():
            assert 0 < arm["computed"] <= one.computed_tokens
        for arm, difference in numbers["differences"].items():
            apart = numbers["arms"][SEARCH]["solved"] - numbers["arms"][arm]["solved"]
            assert difference["mean"] == pytest.approx(apart, abs=1e-3)
            assert difference["low"] <= difference["mean"] <= difference["high"]
        solved = [numbers["within"][str(mark)]["solved"] for mark in one.marks] + [
            {arm: values["solved"] for arm, values in numbers["arms"].items()}
        ]
        for arm in ARMS:
            shares = [shares[arm] for shares in solved]
            assert shares == sorted(shares)


@shipped
def test_the_command_prints_its_numbers_as_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trace.jsonl"
    assert main(["demo", "--puzzles", "1", "--json", "--out", str(out)]) == 0
    last = capsys.readouterr().out.rstrip("\n").splitlines()[-1]
    assert set(json.loads(last)) == {"seed", "agent", "contests", "seconds"}


@shipped
async def test_the_same_seed_gives_the_same_attempts() -> None:
    puzzles = choose(CONTESTS[1], 4, 0)
    results = [
        await contest.play(CONTESTS[1], puzzles, lambda: load_engine("embedded://pocket"), seed=seed)
        for seed in (1, 1, 2)
    ]
    assert results[0] == results[1]
    assert results[0].rows[0] == results[2].rows[0]  # greedy samples nothing
    assert results[0].rows[1:] != results[2].rows[1:]


@shipped
async def test_an_attempt_counts_its_own_tokens_and_no_more_than_it_may() -> None:
    (puzzle,) = choose(CONTESTS[0], 1, 3)
    for arm in ARMS:
        engine: Any = load_engine("embedded://pocket")
        try:
            tried = await attempt(engine, puzzle, arm, computed_tokens=400, seed=1)
            assert tried.computed == engine.counters.computed <= 400
            assert (tried.verifier > 0) == (arm == SEARCH)
        finally:
            await engine.aclose()


@shipped
async def test_the_agent_tells_its_steps_in_order(tmp_path: Path) -> None:
    puzzle = Puzzle((2, 3, 4), 24)
    engine = load_engine("embedded://pocket")
    try:
        told = [
            moment
            async for moment in agent.play(engine, puzzle, computed_tokens=2000, seed=0, trace=tmp_path / "trace.jsonl")
        ]
    finally:
        await engine.aclose()
    assert [type(moment) for moment in told] == [agent.Planned, agent.Observed] * 2 + [agent.Answered]
    first, observed, second, _, answer = told
    assert isinstance(first, agent.Planned) and isinstance(second, agent.Planned)
    assert isinstance(observed, agent.Observed) and isinstance(answer, agent.Answered)
    assert first.decision.startswith(f"{observed.expression}={observed.result} ")
    assert second.inherited > 0
    assert answer.solved == ("= 24. Solved." in answer.text)


def test_a_file_that_is_no_trace_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "thesis.txt"
    out.write_text("years of work\n")
    with pytest.raises(LogError, match="not a trace"):
        run(engine="embedded://pocket", puzzles=1, out=out, console=Console(file=StringIO()))
    assert out.read_text() == "years of work\n"


@pytest.mark.parametrize(("asked", "said"), [(10**5, True), (3, False), (None, False)])
def test_it_says_where_there_are_fewer_puzzles_than_were_asked_for(asked: int | None, said: bool) -> None:
    console = Console(file=StringIO(), width=160, color_system=None)
    with pytest.raises(ModelError, match="does not exist"):  # before it plays
        run(engine="embedded://nowhere", puzzles=asked, console=console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    for one in CONTESTS:
        there = len(load(one.name, "shown"))
        assert (f"{one.title}: 100,000 puzzles were asked for, and there are {there:,}.\n" in text) == said
    assert ("were asked for" in text) == said


# --- puzzles


def test_the_puzzles_are_held_out_and_a_smaller_draw_begins_a_larger_one() -> None:
    for one in CONTESTS:
        heldout = load(one.name, "shown")
        drawn = choose(one, None, 7)
        assert len(drawn) == one.puzzles and set(drawn) <= set(heldout)
        assert choose(one, 5, 7) == drawn[:5]
        assert choose(one, 10**6, 7) != heldout and set(choose(one, 10**6, 7)) == set(heldout)
    with pytest.raises(ConfigError, match="puzzles=-1"):
        choose(CONTESTS[0], -1, 0)


@given(st.lists(st.integers(1, 13), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_legal_play_solves_exactly_its_own_target(numbers: list[int], rng: Random) -> None:
    table, lines = tuple(numbers), []
    while len(table) > 1:
        step = rng.choice(legal_steps(table))
        lines.append(step.text().strip())
        table = step.left
    assert solves(Puzzle(tuple(numbers), table[0]), lines)
    assert not solves(Puzzle(tuple(numbers), (table[0] + 1) % 200), lines)
    assert not solves(Puzzle(tuple(numbers), table[0]), lines[:-1])
    assert not solves(Puzzle(tuple(numbers), table[0]), [*lines, "thus solved"])


def test_a_false_step_solves_nothing() -> None:
    assert solves(Puzzle((8, 3), 24), ["8*3=24 left: 24"])
    assert not solves(Puzzle((8, 4), 24), ["8*3=24 left: 24"])
    assert not solves(Puzzle((8, 3), 25), ["8*3=25 left: 25"])
    assert not solves(Puzzle((24,), 25), [])


# --- intervals

Pairs = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40)


def difference(pairs: Sequence[tuple[bool, bool, int]], **options: Any) -> Any:
    ours, theirs, clusters = zip(*pairs, strict=True)
    return paired_difference(ours, theirs, clusters, **options)


@given(Pairs)
@settings(max_examples=20, deadline=None)
def test_the_interval_holds_the_mean_and_mirrors(pairs: list[tuple[bool, bool, int]]) -> None:
    one = difference(pairs)
    assert one.mean == pytest.approx(sum(a - b for a, b, _ in pairs) / len(pairs))
    assert -1 <= one.low <= one.high <= 1
    assert not (one.ahead and one.behind)
    mirrored = difference([(b, a, cluster) for a, b, cluster in pairs])
    assert (mirrored.low, mirrored.high) == (pytest.approx(-one.high), pytest.approx(-one.low))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered = Random(1), 0
    for trial in range(60):
        pairs = [(rng.random() < 0.7, rng.random() < 0.5, puzzle) for puzzle in range(80)]
        one = difference(pairs, seed=trial)
        covered += one.low <= 0.2 <= one.high
    assert 50 <= covered <= 60


def test_puzzles_that_hang_together_widen_the_interval() -> None:
    rng = Random(2)
    alike = [(won, False, cluster) for cluster in range(12) for won in [rng.random() < 0.5] for _ in range(8)]
    apart = [(won, lost, place) for place, (won, lost, _) in enumerate(alike)]
    one, other = difference(alike), difference(apart)
    assert one.high - one.low > 1.5 * (other.high - other.low)


def test_only_a_clear_interval_is_ahead() -> None:
    clear = difference([(True, False, place) for place in range(10)])
    assert clear.ahead and clear.low == clear.high == 1
    level = difference([(True, True, place) for place in range(10)])
    assert not level.ahead and not level.behind
    with pytest.raises(ValueError, match="at least one pair"):
        paired_difference([], [], [])
