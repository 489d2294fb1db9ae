"""Searches whose logs the tests of this folder read."""

from typing import Any

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import Budget, Outcome, search
from tts_agent.trace import Log


async def run(strategy: Any, seed: int = 3, limit: int = 2500, solvable: bool = True) -> Outcome:
    engine = make_engine(cache=True)
    return await search(
        engine,
        make_task(engine, solvable=solvable),
        strategy=strategy,
        verifier=make_verifier(engine),
        budget=Budget(computed_tokens=limit),
        seed=seed,
    )


def log_of(outcome: Outcome) -> Log:
    return Log("search", tuple(outcome.log))
