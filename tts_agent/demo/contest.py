"""Searches compared on the same puzzles at equal compute."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf
from random import Random
from typing import Any

from tts_agent.demo.arms import ARMS, BASELINES, SEARCH, Arm, Attempt, attempt
from tts_agent.demo.intervals import Difference, paired_difference
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.pocket import Puzzle
from tts_agent.pocket.puzzles import Name, load

AT_ONCE = 64
"""Puzzles under way at the same time on one engine, so that its forward passes are large."""


@dataclass(frozen=True, slots=True)
class Contest:
    """Held-out puzzles, and what each arm may compute on each of them, verdicts included.

    The same runs also tell what smaller budgets would have solved: an arm that stops once solved has solved within
    every budget of at least what it computed. `marks` are those that are told.
    """

    name: Name
    title: str
    puzzles: int
    computed_tokens: int
    marks: tuple[int, ...]


CONTESTS = (
    Contest("countdown5", "Countdown with 5 numbers", 300, 2500, (300, 600, 1200)),
    Contest("game24", "Game of 24", 120, 600, (100, 200, 400)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One arm over all puzzles of a contest; means are per puzzle."""

    arm: Arm
    attempts: tuple[Attempt, ...]

    def solved(self, within: float = inf) -> float:
        """Share of the puzzles solved with at most `within` tokens computed."""
        return self.mean(lambda one: one.solved and one.computed <= within)

    def mean(self, value: Callable[[Attempt], float]) -> float:
        return sum(map(value, self.attempts)) / len(self.attempts)

    def to_json(self) -> dict[str, Any]:
        means = {name: round(self.mean(lambda one, n=name: getattr(one, n)), 2) for name in asdict(self.attempts[0])}  # type: ignore[misc]
        return {**means, "solved": round(self.solved(), 4)}


@dataclass(frozen=True, slots=True)
class Result:
    """All arms of a contest on the same puzzles."""

    contest: Contest
    puzzles: tuple[Puzzle, ...]
    rows: tuple[Row, ...]

    def differences(self, within: float = inf) -> dict[Arm, Difference]:
        """How far tree search is ahead of each form of best-of-N, with at most `within` tokens computed."""
        won = {row.arm: [float(one.solved and one.computed <= within) for one in row.attempts] for row in self.rows}
        numbers = [tuple(sorted(puzzle.numbers)) for puzzle in self.puzzles]
        return {arm: paired_difference(won[SEARCH], won[arm], numbers) for arm in BASELINES}

    def to_json(self) -> dict[str, Any]:
        def told(within: float) -> dict[str, Any]:
            return {arm: asdict(difference) for arm, difference in self.differences(within).items()}

        return {
            "puzzles": len(self.puzzles),
            "computed_tokens": self.contest.computed_tokens,
            "arms": {row.arm: row.to_json() for row in self.rows},
            "differences": told(inf),
            "within": {
                str(mark): {
                    "solved": {row.arm: round(row.solved(mark), 4) for row in self.rows},
                    "differences": told(mark),
                }
                for mark in self.contest.marks
            },
        }


def choose(contest: Contest, count: int | None, seed: int) -> list[Puzzle]:
    """`count` held-out puzzles (as many as there are at most), by default the contest's number, drawn by `seed`.

    They are those kept for showing: the benchmarks look at others. A smaller draw is the beginning of a larger one.
    """
    count = contest.puzzles if count is None else count
    if count < 1:
        raise ConfigError(f"puzzles={count!r} must be at least 1")
    puzzles = load(contest.name, "shown")
    return Random(seed).sample(puzzles, len(puzzles))[:count]


async def play(
    contest: Contest,
    puzzles: list[Puzzle],
    open_engine: Callable[[], Engine],
    *,
    seed: int = 0,
    on_attempt: Callable[[Arm], None] = lambda arm: None,
) -> Result:
    """Let every arm try every puzzle. `on_attempt` hears of each that has ended."""
    rows = []
    for arm in ARMS:
        # NOTE: an engine of its own for each arm: none profits from what another has left in the cache.
        engine = open_engine()
        try:
            rows.append(Row(arm, await _tries(engine, contest, puzzles, arm, seed, on_attempt)))
        finally:
            await engine.aclose()
    return Result(contest, tuple(puzzles), tuple(rows))


async def _tries(
    engine: Engine, contest: Contest, puzzles: list[Puzzle], arm: Arm, seed: int, on_attempt: Callable[[Arm], None]
) -> tuple[Attempt, ...]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, puzzle: Puzzle) -> Attempt:
        async with places:
            tried = await attempt(
                engine, puzzle, arm, computed_tokens=contest.computed_tokens, seed=seed * 1_000_003 + number
            )
        on_attempt(arm)
        return tried

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number, puzzle)) for number, puzzle in enumerate(puzzles)]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None  # an outage fails all of them alike: one error says it
    return tuple(task.result() for task in tasks)
