"""The searches that are compared, and one puzzle tried by one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tts_agent.budget import Budget
from tts_agent.engines.base import Engine
from tts_agent.pocket import Puzzle, countdown_task, countdown_verifier
from tts_agent.pocket.countdown import IllegalStep, apply, parse_step
from tts_agent.search import BestFirst, BestOfN, Greedy, Strategy, search

Arm = Literal["greedy", "best-of-N answers", "best-of-N steps", "tree search"]
"""`greedy`: one answer at temperature 0; more compute is of no use to it. `best-of-N answers`: whole answers until one
is right or the budget is used. `best-of-N steps`: the same step by step, and a step that breaks a rule is sampled
again. `tree search`: best-first, led by verdicts. All check their steps by the same rules and stop once solved."""

ARMS: tuple[Arm, ...] = get_args(Arm)
SEARCH: Arm = "tree search"
BASELINES: tuple[Arm, ...] = ("best-of-N answers", "best-of-N steps")


@dataclass(frozen=True, slots=True)
class Setting:
    """How an arm searches, and how it samples."""

    strategy: Strategy[Any]
    temperature: float = 1.0


SETTINGS: dict[Arm, Setting] = {
    # Those of the long tasks in benchmarks/quality/arms.py, chosen on 100 dev puzzles of Countdown with 5 numbers;
    # what is shown chose nothing.
    "greedy": Setting(Greedy(), 0.0),
    "best-of-N answers": Setting(BestOfN(n=None, width=1, unit="answer"), 0.7),
    "best-of-N steps": Setting(BestOfN(n=None, width=1, unit="thought"), 0.7),
    "tree search": Setting(BestFirst(k=1, discount=0.9, greedy_first=True, reheat=1.0), 0.7),
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one arm did on one puzzle, in tokens."""

    solved: bool
    computed: int
    verifier: int  # part of `computed`
    cached: int
    generated: int
    thoughts: int


async def attempt(engine: Engine, puzzle: Puzzle, arm: Arm, *, computed_tokens: int, seed: int) -> Attempt:
    """Search to the end under one budget. The answer is checked again here, by the rules alone."""
    setting = SETTINGS[arm]
    outcome = await search(
        engine,
        countdown_task(engine, puzzle, temperature=setting.temperature),
        strategy=setting.strategy,
        verifier=countdown_verifier(engine) if arm == SEARCH else None,
        # A puzzle is solved or it is not: nothing is held back for a last guess.
        budget=Budget(computed_tokens=computed_tokens, commit_tokens=0),
        seed=seed,
        name=arm,
        barrier=True,  # the numbers depend on the seed, not on how fast the machine is
    )
    usage = outcome.usage
    return Attempt(
        solved=solves(puzzle, outcome.answer.splitlines()),
        computed=usage.computed + outcome.lost.get("computed_tokens", 0),
        verifier=usage.verifier_computed,
        cached=usage.prompt_cached,
        generated=usage.generated,
        thoughts=len(outcome.tree),
    )


def solves(puzzle: Puzzle, lines: Sequence[str]) -> bool:
    """Whether `lines` are legal steps, every one of them, from the puzzle's numbers to its target alone."""
    numbers = puzzle.numbers
    for line in lines:
        step = parse_step(line)
        if step is None:
            return False
        try:
            numbers = apply(numbers, step)
        except IllegalStep:
            return False
    return numbers == (puzzle.target,)
