"""Golden trees: each strategy grows exactly the tree it grew when the file was written and read by eye."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import Beam, BestFirst, BestOfN, Budget, Greedy, search

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, tuple[Any, Budget | None]] = {
    "greedy": (Greedy(), None),
    "best_of_n_answers": (BestOfN(n=6, width=3), None),
    "best_of_n_steps": (BestOfN(n=4, width=2, unit="thought"), Budget(calls=40)),
    "beam": (Beam(k=3, keep=2), None),
    "best_first": (BestFirst(k=3), Budget(computed_tokens=900)),
    "best_first_parallel": (BestFirst(k=2, parallel=3, discount=0.25), Budget(generated_tokens=90)),
}


@pytest.mark.parametrize("case", CASES)
async def test_tree_is_the_golden_one(case: str) -> None:
    strategy, budget = CASES[case]
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine, solvable=False),
        strategy=strategy,
        verifier=make_verifier(engine),
        budget=budget,
        seed=7,
    )
    tree = {
        "stop": outcome.stop,
        "limit": outcome.limit,
        "answer": outcome.answer,
        "computed": outcome.usage.computed,
        "thoughts": outcome.tree.to_json(),
    }
    assert tree == json.loads((GOLDEN / f"{case}.json").read_text())


async def test_same_seed_same_tree_other_seed_other_tree() -> None:
    trees = []
    for seed in (1, 1, 2):
        engine = make_engine()
        outcome = await search(engine, make_task(engine), strategy=Beam(k=3, keep=2), seed=seed)
        trees.append(outcome.tree.to_json())
    assert trees[0] == trees[1] != trees[2]
