"""Runs what the store does not have yet."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.arms import ArmName, Setting, budgets, setting
from benchmarks.quality.attempt import Attempt, attempt
from benchmarks.quality.store import Key, Store
from benchmarks.quality.tasks import Quest
from training.solver import Solver
from tts_agent.engines import Engine, load_engine
from tts_agent.errors import ModelError
from tts_agent.pocket import Puzzle, model_folder
from tts_agent.pocket.puzzles import Split

AT_ONCE = 96
"""Puzzles under way at the same time on one engine, so that its forward passes are large."""

CACHE_TOKENS = 400_000
"""Enough that what running searches come back to is not evicted."""


@dataclass(frozen=True, slots=True)
class Model:
    """A planner: the engine's URL, and a hash of its files."""

    name: str
    folder: Path

    @property
    def url(self) -> str:
        return f"embedded://{self.folder}"

    def digest(self) -> str:
        found = hashlib.sha256()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            path = self.folder / name
            if not path.is_file():
                raise ModelError(f"{str(self.folder)!r} has no {name}; give --model large, small or a planner's folder")
            found.update(path.read_bytes())
        return found.hexdigest()[:16]


def model(name: str) -> Model:
    """`large` is the planner that ships as `embedded://pocket`, `small` the one beside it; else a folder."""
    shipped = {"large": "pocket", "small": "pocket-small"}
    return Model(name, model_folder(shipped[name]) if name in shipped else Path(name))


@dataclass(frozen=True, slots=True)
class Plan:
    """One arm on the puzzles of one task under one limit."""

    quest: Quest
    arm: ArmName
    split: Split
    limit: int
    puzzles: Sequence[Puzzle]
    seed: int
    model: Model
    chosen: Setting
    keys: dict[int, Key]

    @classmethod
    def of(
        cls,
        quest: Quest,
        arm: ArmName,
        split: Split,
        limit: int,
        puzzles: Sequence[Puzzle],
        seed: int,
        model: Model,
        chosen: Setting | None = None,
    ) -> "Plan":
        """With the arm's own setting, unless another is to be tried."""
        chosen = chosen or setting(quest, arm, limit)
        fingerprint = chosen.fingerprint(quest, model.digest())
        keys = {
            place: Key.of(quest.name, split, arm, limit, puzzle, seed, fingerprint)
            for place, puzzle in enumerate(puzzles)
        }
        return cls(quest, arm, split, limit, puzzles, seed, model, chosen, keys)

    def attempts(self, store: Store) -> list[Attempt]:
        """The results, puzzle by puzzle. `KeyError` if one is missing."""
        return [store.rows[self.keys[place]] for place in range(len(self.puzzles))]


def plans(
    quest: Quest, arms: Sequence[ArmName], split: Split, puzzles: Sequence[Puzzle], seed: int, model: Model
) -> list[Plan]:
    """What has to be run for `arms` on one task."""
    return [Plan.of(quest, arm, split, limit, puzzles, seed, model) for arm in arms for limit in budgets(quest, arm)]


def seed_of(puzzle: Puzzle, seed: int) -> int:
    """The seed of a search: it depends on the puzzle, not on which others are tried."""
    said = f"{seed} {puzzle.numbers} {puzzle.target}".encode()
    return int.from_bytes(hashlib.sha256(said).digest()[:6])


async def run(plan: Plan, store: Store, solver: Solver, *, on_attempt: Callable[[], None] = lambda: None) -> None:
    """Try every puzzle of the plan that the store has not, several at once on an engine of the plan's own."""
    missing = [place for place in plan.keys if plan.keys[place] not in store.rows]
    if not missing:
        return
    engine = load_engine(plan.model.url, cache_tokens=CACHE_TOKENS)
    places = asyncio.Semaphore(AT_ONCE)
    try:
        async with asyncio.TaskGroup() as group:
            for place in missing:
                group.create_task(_try(engine, plan, place, store, solver, places, on_attempt))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None  # an outage fails all of them alike: one error says it
    finally:
        await engine.aclose()


async def _try(
    engine: Engine,
    plan: Plan,
    place: int,
    store: Store,
    solver: Solver,
    places: asyncio.Semaphore,
    on_attempt: Callable[[], None],
) -> None:
    async with places:
        puzzle = plan.puzzles[place]
        seed = seed_of(puzzle, plan.seed)
        tried = await attempt(
            engine,
            plan.quest,
            plan.arm,
            puzzle,
            limit=plan.limit,
            seed=seed,
            solver=solver,
            chosen=plan.chosen,
        )
        store.add(plan.keys[place], tried)
    on_attempt()
