"""Planners of two sizes at equal FLOPs."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks.quality import sizes
from benchmarks.quality.run import model
from benchmarks.quality.sizes import Cost
from benchmarks.quality.tasks import QUESTS


def test_flops_count_every_matrix_once() -> None:
    planner = model("large")
    with safe_open(str(planner.folder / "model.safetensors"), "pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    cost = Cost.of(planner)
    assert cost.weights == sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)  # the output matrix is tied
    quest = QUESTS["game24"]
    # A prompt of 8 tokens, lines of 10, 9 and 8: half of 35 on average.
    assert cost.flops(3, quest) == pytest.approx(3 * (2 * cost.weights + 4 * cost.layers * cost.width * 17.5))


def test_a_planner_beside_itself_costs_and_solves_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--large", "large", "--small", "large", "--split", "dev", "--puzzles", "2", "--tasks", "game24"]
    assert sizes.main([*options, "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["game24"]
    assert told["token_cost_ratio"] == 1.0 and not told["larger_is_better"]
    assert list(told["budgets"]) == ["50", "100", "200", "400", "800", "1600"]
    for row in told["budgets"].values():
        assert row["small"]["steps"] == row["large"]["steps"]
    assert "| large, greedy |" in (tmp_path / "sizes.md").read_text()


def test_a_planner_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sizes.main(["--split", "dev", "--small", "no/such", "--large", "large", "--out", str(tmp_path)]) == 2
    assert "'no/such' has no config.json" in capsys.readouterr().err
