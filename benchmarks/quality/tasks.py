"""The tasks of the protocol: puzzles, budgets, and how long each arm is run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from training.solver import Solver
from tts_agent.engines import Engine
from tts_agent.errors import ConfigError
from tts_agent.pocket import Puzzle, countdown_task
from tts_agent.pocket.countdown import IllegalStep, apply, parse_step
from tts_agent.pocket.puzzles import Name, Split, load
from tts_agent.task import Task
from tts_agent.thought import Reading, Thought
from tts_agent.tree import Branch

Family = Literal["short", "long", "verdict"]
"""Tasks that share their arms' settings: up to four numbers, more, and those that nothing but verdicts judges."""


@dataclass(frozen=True, slots=True)
class Quest:
    """A task of the protocol.

    `budgets` are limits in computed tokens a puzzle, rising; `caps` are lower largest budgets of single arms. Unless
    `checked`, no step is refused and no answer ends the search because it is right.
    """

    name: str
    title: str
    puzzles: Name
    family: Family
    budgets: tuple[int, ...]
    count: int | None = 400  # held-out puzzles; None = all
    caps: Mapping[str, int] = field(default_factory=dict)

    @property
    def checked(self) -> bool:
        return self.family != "verdict"

    def budgets_of(self, arm: str) -> tuple[int, ...]:
        """The budgets that `arm` is measured at."""
        cap = self.caps.get(arm, self.budgets[-1])
        return tuple(budget for budget in self.budgets if budget <= cap)

    def draw(self, split: Split, count: int | None = None) -> list[Puzzle]:
        """The first `count` puzzles of the split's fixed random order; by default as many as the protocol says."""
        if count is not None and count < 1:
            raise ConfigError(f"puzzles={count!r} must be at least 1")
        return load(self.puzzles, split)[: self.count if count is None else count]


_CONTROLS = ("beam-random", "beam-oracle")

QUESTS: dict[str, Quest] = {
    quest.name: quest
    for quest in (
        Quest("countdown3", "Countdown, 3 numbers", "countdown3", "short", (25, 50, 100, 200, 400)),
        Quest(
            "countdown4",
            "Countdown, 4 numbers",
            "countdown4",
            "short",
            (50, 100, 200, 400, 800, 1600),
            caps={"vote": 800},
        ),
        Quest(
            "countdown5",
            "Countdown, 5 numbers",
            "countdown5",
            "long",
            (125, 250, 500, 1000, 2000, 4000, 8000),
            caps={"vote": 2000, "beam": 4000, "best-first-random": 2000, **dict.fromkeys(_CONTROLS, 1000)},
        ),
        Quest(
            "countdown6",
            "Countdown, 6 numbers",
            "countdown6",
            "long",
            (250, 500, 1000, 2000, 4000, 8000, 16000),
            caps={"vote": 2000, "beam": 8000, "best-first-random": 4000, **dict.fromkeys(_CONTROLS, 2000)},
        ),
        Quest("game24", "Game of 24", "game24", "short", (50, 100, 200, 400, 800, 1600), count=None),
        Quest(
            "game24-verdict",
            "Game of 24, the model's own verdict chooses",
            "game24",
            "verdict",
            (100, 200, 400, 800, 1600),
            count=None,
        ),
    )
}


def quests(names: str | None = None) -> list[Quest]:
    """The tasks of a comma-separated list, all by default. `ConfigError` lists the known ones."""
    chosen = list(QUESTS) if names is None else names.split(",")
    if unknown := [name for name in chosen if name not in QUESTS]:
        raise ConfigError(f"unknown tasks {unknown!r}; known: {', '.join(QUESTS)}")
    return [QUESTS[name] for name in chosen]


def numbers_after(puzzle: Puzzle, text: str) -> tuple[int, ...] | None:
    """The numbers left after the lines of `text`; None if one of them breaks a rule."""
    numbers = puzzle.numbers
    for line in text.splitlines():
        step = parse_step(line)
        if step is None:
            return None
        try:
            numbers = apply(numbers, step)
        except IllegalStep:
            return None
    return numbers


def solves(puzzle: Puzzle, text: str) -> bool:
    """Whether the lines of `text` lead, by the rules, from the puzzle's numbers to its target alone."""
    return numbers_after(puzzle, text) == (puzzle.target,)


def reachable(puzzle: Puzzle, solver: Solver, branch: Branch) -> bool:
    """The oracle's verdict: whether the branch is legal and the target can still be reached."""
    numbers = numbers_after(puzzle, branch.text)
    return numbers is not None and solver.solutions(numbers, puzzle.target) > 0


def unchecked_task(engine: Engine, puzzle: Puzzle, *, temperature: float) -> Task:
    """Countdown as an open-ended task: the form of an answer is known, nothing of what makes one right.

    An answer is complete after as many lines as the puzzle needs. Only a line that says the same after the same branch
    is the same thought, since which numbers a false line leaves means nothing.
    """
    checked = countdown_task(engine, puzzle, temperature=temperature)

    def read(parent: Thought | None, text: str) -> Reading:
        return Reading(key=f"{parent.id if parent else 0}:{' '.join(text.split())}")

    return Task(
        root=checked.root,
        thought=checked.thought,
        answer=checked.answer,
        read=read,
        end_ids=checked.end_ids,
        max_depth=len(puzzle.numbers) - 1,
    )
