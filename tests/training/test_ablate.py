"""The ablations: small runs end to end, and late labels go on from one common trunk."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from training.ablate import ABLATIONS, BASE, Ablation, measured, trained
from training.network import Shape
from training.solver import Solver
from training.train import Recipe

TINY = Recipe(shape=Shape(width=32, layers=1, heads=2, inner=48), steps=4, batch=2, warmup=1, own_from=100)


def test_each_ablation_changes_one_thing() -> None:
    for name, ablation in ABLATIONS.items():
        changed = [
            field.name for field in fields(Recipe) if getattr(ablation.recipe, field.name) != getattr(BASE, field.name)
        ]
        assert len(changed) == (0 if name in ("base", "late labels: solver") else 1), name


def test_late_labels_share_a_trunk_and_differ_after_it(tmp_path: Path) -> None:
    solver = Solver()
    ways = {"solver": Ablation(TINY, late=True), "rollouts": Ablation(replace(TINY, rollouts=2), late=True)}
    made = {name: trained(way, tmp_path / name, solver, compiled=False) for name, way in ways.items()}
    assert torch.load(tmp_path / "without-verdicts.pt", weights_only=False)["step"] == 3
    assert not torch.equal(made["solver"].embedding, made["rollouts"].embedding)
    again = trained(ways["solver"], tmp_path / "solver", solver, compiled=False)
    assert torch.equal(again.embedding, made["solver"].embedding)
    assert measured(again, solver, puzzles=2)["game24"]["pass@1"] == pytest.approx(0)
