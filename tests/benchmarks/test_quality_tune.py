"""Trials of settings on dev puzzles."""

from pathlib import Path

import pytest

from benchmarks.quality import tune
from benchmarks.quality.arms import setting
from benchmarks.quality.tasks import QUESTS
from benchmarks.quality.tune import GROUNDS, TEMPERATURES, TUNED, trials


@pytest.mark.parametrize("family", GROUNDS)
def test_every_temperature_of_the_protocol_is_tried_and_none_twice(family: str) -> None:
    ground = GROUNDS[family]  # type: ignore[index]
    for name in ground.tasks:
        quest = QUESTS[name]
        for arm in TUNED:
            if not quest.checked and arm in ("steps", "beam"):
                continue
            tried = trials(quest, arm, ground.limit)
            assert {one.temperature for one in tried} == set(TEMPERATURES)
            assert len({one.fingerprint(quest, "") for one in tried}) == len(tried)
            assert all(one.judge == setting(quest, arm, ground.limit).judge for one in tried)


def test_trials_are_told_in_a_table_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--families", "short", "--arms", "steps", "--puzzles", "1", "--out", str(tmp_path)]
    assert tune.main(options) == 0
    told = capsys.readouterr().out
    assert "game24, steps" in told and "countdown4, steps" in told
    kept = (tmp_path / "rows.jsonl").read_text()
    assert tune.main(options) == 0
    assert (tmp_path / "rows.jsonl").read_text() == kept and kept.count("\n") == 2 * len(TEMPERATURES)


def test_the_changes_of_tree_search_are_told_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main(["--changes", "--puzzles", "1", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    rows = [line for line in told if line.startswith("| k=")]
    assert len(rows) == 2 * len(tune.changes()) and "countdown5, best-first" in "".join(told)
    assert rows[0].startswith("| k=2, discount=0.8, unseen=False, temperature 0.7 |")
    assert "verdicts: oracle" in rows[-1] and rows[-1].startswith("| k=1, discount=0.9, reheat=1.0, greedy_first=True,")


def test_unknown_families_and_arms_list_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--families", "easy"]) == 2 and tune.main(["--arms", "greedy"]) == 2
    said = capsys.readouterr().err
    assert "known: long, short, verdict" in said and "known: answers" in said
