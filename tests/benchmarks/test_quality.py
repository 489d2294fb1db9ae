"""The quality benchmark: what it refuses, how it goes on after an interruption, what it reads off a run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import __main__ as cli
from benchmarks.quality.arms import ARMS, ArmName, arms, beam_width, budgets, setting
from benchmarks.quality.attempt import answer_of, attempt
from benchmarks.quality.run import Model, Plan, model, plans, run
from benchmarks.quality.store import Store
from benchmarks.quality.summary import Table, summary
from benchmarks.quality.tasks import QUESTS, numbers_after, quests, reachable, solves
from training.solver import Solver
from tts_agent import Expansion, Prefix, ThoughtTree
from tts_agent.engines import load_engine
from tts_agent.errors import ConfigError, ModelError
from tts_agent.events import Opened, Planned, Sampled
from tts_agent.pocket import Puzzle
from tts_agent.thought import Thought
from tts_agent.tree import Branch

PROTOCOL = Path(__file__).parents[2] / "benchmarks" / "protocol.md"
EIGHT = Puzzle((8, 5, 3, 1), 24)


def test_unknown_tasks_and_arms_list_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="countdown9.*known: countdown3, .*game24"):
        quests("countdown5,countdown9")
    with pytest.raises(ConfigError, match="mcts.*known: greedy, answers"):
        arms(QUESTS["game24"], "greedy,mcts")
    assert cli.main(["--arms", "mcts"]) == 2
    assert "known: greedy" in capsys.readouterr().err
    with pytest.raises(ModelError, match="config.json"):
        model("no/such/folder").digest()
    with pytest.raises(ConfigError, match="puzzles=0"):
        QUESTS["game24"].draw("dev", 0)


def test_the_protocol_says_what_is_run() -> None:
    text = PROTOCOL.read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| \d \| [\d-]+ \| (\d+|all[^|]*) \| [^|]+ \| ([\d, ]+) \|$", text, re.MULTILINE)
    said = {name: (count, tuple(int(b.replace(",", "")) for b in budgets.split(", "))) for name, count, budgets in rows}
    assert list(said) == list(QUESTS)
    for name, (count, sweep) in said.items():
        assert QUESTS[name].budgets == sweep
        assert QUESTS[name].count == (None if count.startswith("all") else int(count))
    named = re.findall(r"^\| `([\w-]+)` \| [^|]+ \| [^|]+ \| (?:anytime|sized) \|", text, re.MULTILINE)
    assert tuple(named) == ARMS


@pytest.mark.parametrize("name", QUESTS)
def test_every_arm_has_a_setting_and_every_cap_is_a_budget(name: str) -> None:
    quest = QUESTS[name]
    for arm in arms(quest):
        for limit in budgets(quest, arm):
            assert limit in quest.budgets and setting(quest, arm, limit).temperature >= 0
    assert all(cap in quest.budgets for cap in quest.caps.values())


def test_beams_grow_with_their_budget_and_fit_it() -> None:
    quest = QUESTS["countdown5"]
    widths = [beam_width(quest, budget, 4) for budget in quest.budgets]
    assert widths == sorted(widths) and widths[0] >= 1 and widths[-1] > 10 * widths[0]
    # After a prompt of 9 tokens: 4 lines of 12 tokens with their questions, then 4 a parent of 11, 10 and 9.
    keep = beam_width(quest, 1000, 4)
    parents = [1, min(4, keep), keep, keep]
    assert 9 + sum(4 * wide * tokens for wide, tokens in zip(parents, (12, 11, 10, 9), strict=True)) <= 1000


def test_what_is_right_is_decided_by_the_rules() -> None:
    right = "5-3=2 left: 2 8 1\n2+1=3 left: 3 8\n8*3=24 left: 24\n"
    assert solves(EIGHT, right) and not solves(EIGHT, right.rpartition("8*3")[0])
    assert numbers_after(EIGHT, "8*3=24 left: 24 5 1\n") == (24, 5, 1)
    assert numbers_after(EIGHT, "8*9=72 left: 72 5 1\n") is None and numbers_after(EIGHT, "so what\n") is None
    solver = Solver()

    def branch(text: str) -> Branch:
        events = [
            Opened("", 0, Prefix((1,)), ""),
            Planned(0, 1, Expansion(0, 1), 9, 0.0),
            Sampled(Thought(1, 0, 0, (), text)),
        ]
        return ThoughtTree(events).branch(1)

    assert reachable(EIGHT, solver, branch("5-3=2 left: 2 8 1\n"))
    assert not reachable(EIGHT, solver, branch("22-2=24 left: 24\n"))


def test_a_vote_counts_steps_in_any_order() -> None:
    def said(text: str) -> Any:
        return answer_of(Thought(1, 0, 0, (), text))

    assert said("5-3=2 left: 2 8 1\n8*1=8 left: 8 2\n") == said("1*8=8 left: 8 5 3\n5-3=2 left: 2 8\n")
    assert said("5-3=2 left: 2 8 1\n") != said("3-5=2 left: 2 8 1\n")
    assert said("no step\n") == "no step\n"


@pytest.fixture(scope="module")
def planner() -> Model:
    return model("large")


async def test_smaller_budgets_are_read_off_one_run(planner: Model) -> None:
    engine, solver, quest = load_engine(planner.url), Solver(), QUESTS["countdown4"]
    try:
        for arm in ("greedy", "answers", "steps", "vote", "best-first", "best-first-oracle"):
            for puzzle in quest.draw("dev", 3):
                tried = await attempt(engine, quest, arm, puzzle, limit=400, seed=1, solver=solver)
                assert list(tried.readings) == [50, 100, 200, 400]
                for budget, reading in tried.readings.items():
                    assert reading.computed <= budget and reading.verifier <= reading.computed
                    if arm != "vote":
                        assert reading.solved == (tried.found_at is not None and tried.found_at <= budget)
                spent = [reading.computed for reading in tried.readings.values()]
                assert spent == sorted(spent)
                assert bool(tried.samples) == (arm == "vote")
    finally:
        await engine.aclose()


async def test_nothing_checked_means_that_only_verdicts_choose(planner: Model) -> None:
    engine, solver, quest = load_engine(planner.url), Solver(), QUESTS["game24-verdict"]
    try:
        for arm in ("answers", "best-first-random", "best-first-oracle"):
            tried = await attempt(engine, quest, arm, quest.draw("dev", 1)[0], limit=400, seed=0, solver=solver)
            assert tried.invalid == tried.dead == 0 and tried.found_at is None
        assert tried.readings[400].solved  # the oracle sees to that
    finally:
        await engine.aclose()


def small_plans(planner: Model, names: str = "steps,vote,beam,best-first") -> list[Plan]:
    quest = QUESTS["countdown3"]
    return plans(quest, arms(quest, names), "dev", quest.draw("dev", 4), 0, planner)


async def count(plan: Plan, store: Store) -> int:
    tried: list[None] = []
    await run(plan, store, Solver(), on_attempt=lambda: tried.append(None))
    return len(tried)


async def test_an_interrupted_benchmark_goes_on_where_it_was(planner: Model, tmp_path: Path) -> None:
    path = tmp_path / "out" / "rows.jsonl"
    for plan in small_plans(planner):
        await run(plan, Store.open(path), Solver())
    whole = Store.open(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:40])  # killed while a line was written
    torn = Store.open(path)
    assert len(torn.rows) == len(lines) - 2
    assert sum([await count(plan, torn) for plan in small_plans(planner)]) == 2
    assert Store.open(path).rows == whole.rows
    assert sum([await count(plan, Store.open(path)) for plan in small_plans(planner)]) == 0


async def test_a_changed_model_or_setting_is_tried_anew(planner: Model, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "rows.jsonl")
    (plan,) = small_plans(planner, "steps")
    assert await count(plan, store) == 4
    (again,) = plans(plan.quest, ["steps"], "dev", plan.puzzles, 1, planner)
    assert await count(again, store) == 4  # another seed
    folder = tmp_path / "model"
    folder.mkdir()
    for file in planner.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    other = Model("mine", folder)
    assert other.digest() != planner.digest()
    assert all(key not in store.rows for changed in small_plans(other, "steps") for key in changed.keys.values())
    fingerprints = {setting(plan.quest, arm, 400).fingerprint(plan.quest, "m") for arm in ARMS}
    assert len(fingerprints) == len(ARMS)


def test_a_file_that_is_not_a_benchmarks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"what": 1}\n')
    with pytest.raises(ConfigError, match="line 1 .*--out"):
        Store.open(path)


async def test_the_summary_tells_of_every_arm_and_says_when_puzzles_are_too_few(planner: Model, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "rows.jsonl")
    todo = small_plans(planner)
    for plan in todo:
        await run(plan, store, Solver())
    told = summary(Table.of(todo, store))
    assert "too few" in told["warning"]
    names: list[ArmName] = ["steps", "vote", "beam", "best-first"]
    for arm in names:
        row = told[arm]
        assert row["budget"] == 400 and row["low"] is None and 0 <= row["accuracy"] <= 1
        assert row["computed_tokens"] <= 400 and row["generated_tokens"] > 0
    assert told["steps"]["verifier_share"] == 0 < told["best-first"]["verifier_share"] < 0.3
    assert told["differences"]["best-first - best-of-N"].keys() == {"25", "50", "100", "200", "400"}
    assert set(told["token_ratio_at_equal_accuracy"]) == {"value", "low", "high", "accuracy", "budget"}
    assert told["pass_at_k"]["1"] <= told["pass_at_k"]["2"]


def test_the_command_writes_tables_pictures_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--json", "--puzzles", "2", "--arms", "greedy,steps,best-first", "--out", str(tmp_path)]
    assert cli.main([*options, "--hard", "200"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["countdown4"]["best-first"]["budgets"].keys() == {"50", "100", "200", "400"}
    route = told["countdown4"]["routing"]["400"]
    assert route["accuracy"]["value"] >= told["countdown4"]["greedy"]["accuracy"]
    assert "routing" not in told["game24-verdict"]
    assert told["bars"] == [] and "token_ratio_at_equal_accuracy" in told["countdown4"]
    assert json.loads((tmp_path / "quality.json").read_text())["model"] == told["model"]
    tables = (tmp_path / "tables.md").read_text()
    assert "| steps |" in tables and "as the limit" in tables
