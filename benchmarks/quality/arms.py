"""The arms of the protocol and their settings, chosen on dev puzzles."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from benchmarks.quality.tasks import Family, Quest, reachable, unchecked_task
from training.solver import Solver
from tts_agent import Beam, BestFirst, BestOfN, CheckVerifier, Greedy, Task
from tts_agent.engines import Engine
from tts_agent.errors import ConfigError
from tts_agent.pocket import Puzzle, countdown_task, countdown_verifier
from tts_agent.search import Strategy
from tts_agent.verifiers import RandomVerifier, Verifier

ArmName = Literal[
    "greedy",
    "answers",
    "steps",
    "vote",
    "beam",
    "beam-random",
    "beam-oracle",
    "best-first",
    "best-first-random",
    "best-first-oracle",
]
Judge = Literal["planner", "random", "oracle"]
"""Whose verdicts lead: the planner's own (a token each), a random number, the exact solver (no tokens)."""

ARMS: tuple[ArmName, ...] = get_args(ArmName)
SEARCH: ArmName = "best-first"
BASELINES: tuple[ArmName, ...] = ("answers", "steps")
IN_VERDICT: tuple[ArmName, ...] = ("greedy", "answers", "vote", "best-first", "best-first-random", "best-first-oracle")
"""The arms of a task that nothing but verdicts judges."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How an arm searches. `judge` is whose verdicts lead; `sized` says that it is run for each budget."""

    strategy: Strategy[Any]
    temperature: float
    judge: Judge | None = None
    sized: bool = False
    votes: bool = False  # the commonest answer is chosen, and nothing is checked

    def fingerprint(self, quest: Quest, model: str) -> str:
        """Names everything that decides what the arm does on a puzzle, but for the budget, the puzzle and the seed."""
        said = {
            "model": model,
            "family": quest.family,
            "budgets": quest.budgets,
            "strategy": [self.strategy.name, asdict(self.strategy)],  # type: ignore[call-overload]
            "setting": [self.temperature, self.judge, self.sized, self.votes],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


# Chosen on dev puzzles by `python -m benchmarks.quality.tune`, as the protocol says.
_ONE_BY_ONE: dict[str, Any] = {"n": None, "width": 1}
_ENOUGH = 0.98  # the value of an answer that nothing but verdicts judges, from which on no better one is looked for
_BEAM_K = 8
_TREE: dict[Family, BestFirst] = {
    "short": BestFirst(k=1, discount=0.9, greedy_first=True, reheat=1.0),
    "long": BestFirst(k=1, discount=0.9, greedy_first=True, reheat=1.0),
    "verdict": BestFirst(k=1, discount=0.9, greedy_first=True, reheat=1.0, enough=_ENOUGH),
}
_TEMPERATURE: dict[Family, dict[str, float]] = {
    "short": {"answers": 0.85, "steps": 0.85, "vote": 1.0, "beam": 1.0, "best-first": 0.85},
    "long": {"answers": 0.7, "steps": 0.7, "vote": 1.0, "beam": 0.7, "best-first": 0.7},
    "verdict": {"answers": 1.0, "vote": 1.0, "best-first": 0.7},
}


def arms(quest: Quest, names: str | None = None) -> list[ArmName]:
    """The arms of a comma-separated list that the task has, all by default. `ConfigError` lists the known ones."""
    chosen: Sequence[str] = ARMS if names is None else names.split(",")
    if unknown := [name for name in chosen if name not in ARMS]:
        raise ConfigError(f"unknown arms {unknown!r}; known: {', '.join(ARMS)}")
    known = ARMS if quest.checked else IN_VERDICT
    return [name for name in known if name in chosen]


def setting(quest: Quest, arm: ArmName, budget: int) -> Setting:
    """How `arm` tries a puzzle of the task; only sized arms look at `budget`."""
    family = quest.family
    if arm == "greedy":
        return Setting(Greedy(), 0.0)
    kind, _, control = arm.rpartition("-") if arm.endswith(("-random", "-oracle")) else (arm, "", "planner")
    judge: Judge = "random" if control == "random" else "oracle" if control == "oracle" else "planner"
    temperature = _TEMPERATURE[family][kind]
    if kind == "vote":
        return Setting(BestOfN(**_ONE_BY_ONE), temperature, votes=True)
    if kind == "answers":
        if not quest.checked:
            return Setting(BestOfN(**_ONE_BY_ONE, enough=_ENOUGH), temperature, "planner")
        return Setting(BestOfN(**_ONE_BY_ONE, unit="thought", retry="answer"), temperature)
    if kind == "steps":
        return Setting(BestOfN(**_ONE_BY_ONE, unit="thought"), temperature)
    if kind == "beam":
        strategy = Beam(k=_BEAM_K, keep=beam_width(quest, budget, _BEAM_K))
        return Setting(strategy, temperature, judge, sized=True)
    return Setting(_TREE[family], temperature, judge)


def budgets(quest: Quest, arm: ArmName) -> tuple[int, ...]:
    """The limits that an arm is run with: its largest if it does the same under any, else all that it is measured at.

    Beams of long tasks are measured at every second budget.
    """
    measured = quest.budgets_of(arm)
    if not setting(quest, arm, measured[-1]).sized:
        return measured[-1:]
    return measured[::-2][::-1] if quest.family == "long" else measured


def beam_width(quest: Quest, budget: int, k: int) -> int:
    """How many thoughts a level a beam of `k` children a parent keeps, so that it is expected to compute `budget`.

    A line that leaves m numbers has m + 7 tokens, the question about it one more. A level has as many parents as are
    kept, or as there are thoughts on it if all children differ. At least 1.
    """
    size = len(quest.draw("dev", 1)[0].numbers)

    def cost(keep: int) -> int:
        parents, total = 1, size + 4  # the prompt
        for left in range(size - 1, 0, -1):
            total += parents * k * (left + 8)
            parents = min(parents * k, keep)
        return total

    keep = 1
    while cost(keep + 1) <= budget and cost(keep + 1) > cost(keep):
        keep += 1
    return keep


def make_task(engine: Engine, quest: Quest, puzzle: Puzzle, chosen: Setting) -> Task:
    """The puzzle as `chosen` meets it: with the rules checked, unless nothing is to be."""
    if chosen.votes or not quest.checked:
        return unchecked_task(engine, puzzle, temperature=chosen.temperature)
    return countdown_task(engine, puzzle, temperature=chosen.temperature)


def make_verifier(engine: Engine, puzzle: Puzzle, judge: Judge | None, solver: Solver, seed: int) -> Verifier | None:
    """Whoever gives the verdicts."""
    if judge is None:
        return None
    if judge == "planner":
        return countdown_verifier(engine)
    if judge == "random":
        return RandomVerifier(seed=seed)
    return CheckVerifier(lambda branch: reachable(puzzle, solver, branch), name="oracle")
