"""A planning node killed with SIGKILL goes on from its checkpoint, in SQLite and in PostgreSQL."""

import json
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import pytest
from langchain_core.messages import HumanMessage

from tests.nodes.savers import saver_at
from tests.nodes.victim import MORE, SMALL, Victim, stored
from tests.nodes.world import BUDGET, STRATEGIES, make_engine, make_graph
from tts_agent import Ledger, ThoughtTree, Usage
from tts_agent.budget import NOTHING, Amounts
from tts_agent.events import Chosen, Deepened, Sampled, log_from_json
from tts_agent.loop import run_sync
from tts_agent.nodes.journal import is_chunk
from tts_agent.nodes.review import CHOSE
from tts_agent.search.dice import thought_seed
from tts_agent.search.state import SearchState
from tts_agent.trace.recorder import Log, read
from tts_agent.usage import total_usage

MOMENTS = 20
ALL_MOMENTS = 100


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def kill_after(process: BaseProcess, folder: Path, answers: int, pause: float) -> None:
    """SIGKILL the process `pause` seconds after its engine gave `answers` answers; it may have ended by then."""
    before = len(lines(folder / "engine.jsonl"))
    while process.is_alive() and len(lines(folder / "engine.jsonl")) < before + answers:
        time.sleep(0.001)
    time.sleep(pause)
    process.kill()
    process.join()


def durable_seeds(victim: Victim) -> set[str]:
    """Seeds of the samples whose results lie in the checkpoint."""
    if not victim.saver.startswith("postgresql:") and not Path(victim.saver).exists():
        return set()
    decode = make_engine().decode
    with saver_at(victim.saver) as saver:
        chunks = {value["after"]: value for value in stored(saver, victim.config) if is_chunk(value)}
    seeds, tip = set(), ""
    while tip in chunks:
        for event in log_from_json(chunks[tip]["events"], decode):
            if isinstance(event, Sampled):
                seeds.add(str(thought_seed(victim.seed, event.thought.id)))
        tip = chunks[tip]["id"]
    return seeds


def spent(folder: Path) -> Usage:
    """All that the engines of all processes computed, by their own record."""
    return total_usage(Usage.from_json(json.loads(line)) for line in lines(folder / "engine.jsonl"))


def whole_run(folder: Path, strategy: str, seed: int) -> Log:
    """The log of the same search, never interrupted."""
    engine = make_engine(record=folder / "engine.jsonl")
    trace = folder / "trace.jsonl"
    graph = make_graph(engine, strategy=STRATEGIES[strategy], solvable=seed % 2 == 0, seed=seed, trace=trace)
    graph.compile().invoke({"messages": [HumanMessage("go")]})
    (log,) = read(trace)
    run_sync(engine.aclose())
    return log


def kill_and_resume(victim: Victim, rng: Random) -> None:
    """Kill once or twice at random, resume to the end, and check the account and the tree."""
    folder, seed = victim.folder, victim.seed
    (folder / "whole").mkdir()
    whole = whole_run(folder / "whole", victim.strategy, seed)
    answers = len(lines(folder / "whole" / "engine.jsonl"))
    for _ in range(rng.choice((1, 1, 2))):
        kill_after(victim.start(), folder, rng.randrange(answers), rng.random() * 0.01)
    durable, asked = durable_seeds(victim), len(lines(folder / "heard.txt"))
    last = victim.start()
    last.join(60)
    assert last.exitcode == 0

    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    again = {line.split()[1] for line in lines(folder / "heard.txt")[asked:]}
    assert not durable & again
    log = [log for log in read(folder / "trace.jsonl") if log.complete][-1]
    assert ThoughtTree(log.events).to_json() == ThoughtTree(whole.events).to_json()
    assert result["outcome"]["stop"] == chosen(whole).stop == chosen(log).stop
    assert chosen(log).thought == chosen(whole).thought

    totals, used = result["totals"], Amounts.of(spent(folder))
    charged = Amounts.of(Usage.from_json(totals["usage"])).plus(Amounts(**totals["lost"]))
    for unit, limit, engine, account in zip(Amounts._fields, BUDGET.limits, used, charged, strict=True):
        assert limit is None or engine <= account <= limit, unit
    ledger = Ledger(BUDGET)
    SearchState(STRATEGIES[victim.strategy], ledger, judged=True, events=log.events)
    assert ledger.reserved == NOTHING


def chosen(log: Log) -> Chosen:
    last = log.events[-1]
    assert isinstance(last, Chosen)
    return last


def victim(folder: Path, saver: str, moment: int) -> Victim:
    return Victim(folder, saver, ("beam", "best_first")[moment % 2], moment, asynchronous=moment % 4 < 2)


def moments(first: int, last: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("moment", range(first, last))


def kill_a_review(victim: Victim, rng: Random) -> None:
    """Kill at random before, at or after the question; the limits hold, and nothing durable is sampled again."""
    folder = victim.folder
    for _ in range(rng.choice((1, 2, 3))):
        kill_after(victim.start(), folder, rng.randrange(40), rng.random() * 0.02)
    durable, asked = durable_seeds(victim), len(lines(folder / "heard.txt"))
    last = victim.start()
    last.join(60)
    assert last.exitcode == 0
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    again = {line.split()[1] for line in lines(folder / "heard.txt")[asked:]}
    assert not durable & again
    assert result["outcome"]["decision"] and CHOSE in result["outcome"]["cut"]
    totals, used = result["totals"], spent(folder).computed
    charged = Usage.from_json(totals["usage"]).computed + totals["lost"].get("computed_tokens", 0)
    assert used <= charged <= SMALL + MORE
    log = [log for log in read(folder / "trace.jsonl") if log.complete][-1]
    assert [event.more for event in log.events if isinstance(event, Deepened)] == [{"computed_tokens": MORE}]
    sampled = [event.thought.id for event in log.events if isinstance(event, Sampled)]
    assert len(sampled) == len(set(sampled))


@moments(0, MOMENTS)
def test_killed_at_a_random_moment_the_step_goes_on_as_if_nothing_had_happened(moment: int, tmp_path: Path) -> None:
    kill_and_resume(victim(tmp_path, str(tmp_path / "checkpoints.db"), moment), Random(moment))


@moments(0, MOMENTS)
def test_killed_at_a_random_moment_it_goes_on_from_postgres(moment: int, tmp_path: Path, postgres: str) -> None:
    kill_and_resume(victim(tmp_path, postgres, moment), Random(moment))


@pytest.mark.parametrize("saver", ["sqlite", "postgres"])
@moments(0, 4)
def test_killed_around_a_review_it_goes_on(
    moment: int, saver: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(saver) if saver == "postgres" else str(tmp_path / "checkpoints.db")
    kill_a_review(replace(victim(tmp_path, address, moment), reviewed=True), Random(moment))


@pytest.mark.verify
@moments(4, ALL_MOMENTS // 2)
def test_killed_around_a_review_at_many_moments(moment: int, tmp_path: Path) -> None:
    checkpoints = str(tmp_path / "checkpoints.db")
    kill_a_review(replace(victim(tmp_path, checkpoints, moment), reviewed=True), Random(moment))


@pytest.mark.verify
@moments(MOMENTS, ALL_MOMENTS)
def test_killed_at_a_hundred_random_moments(moment: int, tmp_path: Path) -> None:
    kill_and_resume(victim(tmp_path, str(tmp_path / "checkpoints.db"), moment), Random(moment))


@pytest.mark.verify
@moments(MOMENTS, ALL_MOMENTS)
def test_killed_at_a_hundred_random_moments_it_goes_on_from_postgres(
    moment: int, tmp_path: Path, postgres: str
) -> None:
    kill_and_resume(victim(tmp_path, postgres, moment), Random(moment))
