"""One puzzle tried by one arm, and what smaller budgets would have found."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.quality.arms import ArmName, Setting, make_task, make_verifier, setting
from benchmarks.quality.tasks import Quest, solves
from training.solver import Solver
from tts_agent import Budget, Outcome, search
from tts_agent.engines import Engine
from tts_agent.events import Cancelled, Judged, Lost, Sampled, Settled
from tts_agent.pocket import Puzzle
from tts_agent.pocket.countdown import parse_step
from tts_agent.search import Strategy
from tts_agent.thought import Thought
from tts_agent.tree import ThoughtTree
from tts_agent.usage import ZERO


class Reading(NamedTuple):
    """Where a try stood when a budget was used."""

    solved: bool
    computed: int
    generated: int
    verifier: int  # part of `computed`


class Boundary(NamedTuple):
    """A place in a log where nothing was in flight, and what had been used by then."""

    events: int
    computed: int
    generated: int
    verifier: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one arm did on one puzzle under one limit.

    `readings` is by budget; `found_at` the tokens computed by the time a right answer ended the search, None if none
    did. `samples` says of whole answers that nothing checked which were right (for pass@k).
    """

    readings: dict[int, Reading]
    found_at: int | None
    stop: str
    thoughts: int
    merged: int
    invalid: int
    dead: int
    samples: tuple[bool, ...] = ()


async def attempt(
    engine: Engine,
    quest: Quest,
    arm: ArmName,
    puzzle: Puzzle,
    *,
    limit: int,
    seed: int,
    solver: Solver,
    chosen: Setting | None = None,
) -> Attempt:
    """Search to the end under `limit`, as `chosen` or as the arm is set. The rules alone check the answer again."""
    chosen = chosen or setting(quest, arm, limit)
    outcome = await search(
        engine,
        make_task(engine, quest, puzzle, chosen),
        strategy=chosen.strategy,
        verifier=make_verifier(engine, puzzle, chosen.judge, solver, seed),
        # Sized arms are told the budget by their size: the ledger's worst case must not cut their last level short.
        # A puzzle is solved or it is not, so nothing is held back for a last guess.
        budget=Budget(computed_tokens=4 * limit if chosen.sized else limit, commit_tokens=0),
        seed=seed,
        name=arm,
        barrier=True,  # the numbers depend on the seed, not on how fast the machine is
    )
    budgets = (limit,) if chosen.sized else tuple(budget for budget in quest.budgets_of(arm) if budget <= limit)
    thoughts = [outcome.tree.thoughts[number] for number in sorted(outcome.tree.thoughts)]
    statuses = Counter(thought.status for thought in thoughts)
    right = [solves(puzzle, thought.text) for thought in thoughts] if chosen.votes else []
    used = _boundaries(outcome)
    places = {budget: max((b for b in used if b.computed <= budget), default=used[0]) for budget in budgets}
    if chosen.votes:
        found = _votes(outcome, places, right)
    elif quest.checked:
        found = {budget: outcome.solved and places[budget] == used[-1] for budget in budgets}
    else:
        found = _choices(outcome, chosen.strategy, places, puzzle)
    solved = outcome.solved and solves(puzzle, outcome.answer)
    assert solved == outcome.solved, f"{puzzle!r}: the search calls {outcome.answer!r} right, the rules do not"
    return Attempt(
        readings={
            budget: Reading(found[budget], place.computed, place.generated, place.verifier)
            for budget, place in places.items()
        },
        found_at=used[-1].computed if solved else None,
        stop=str(outcome.stop),
        thoughts=len(thoughts),
        merged=len(outcome.tree.merged),
        invalid=statuses["invalid"],
        dead=statuses["dead"],
        samples=tuple(right),
    )


def _boundaries(outcome: Outcome) -> list[Boundary]:
    """The log's beginning, and the end of every expansion. Siblings in flight are paid for, so none is split.

    A puzzle's prompt counts in full, also where another puzzle with the same first numbers had left some of it in the
    cache: what an arm computes must not depend on which puzzles are tried beside it.
    """
    total, found = ZERO, [Boundary(0, 0, 0, 0)]
    lost, shared = 0, len(outcome.tree.root)
    for place, event in enumerate(outcome.log, start=1):
        match event:
            case Sampled(thought):
                total += thought.usage
                if len(found) == 1:
                    shared -= thought.usage.prompt_computed
            case Judged(_, verdict):
                total += verdict.usage
            case Cancelled():
                total += event.usage
                lost += event.lost.to_json().get("computed_tokens", 0)
            case Lost():
                lost += event.amounts.to_json().get("computed_tokens", 0)
        if isinstance(event, (Settled, Cancelled, Lost)):
            found.append(Boundary(place, total.computed + lost + shared, total.generated, total.verifier_computed))
    spent = outcome.usage.computed + outcome.lost.get("computed_tokens", 0)
    assert found[-1].computed == spent + shared, f"the log adds up to {found[-1]}, the ledger to {spent} + {shared}"
    return found


def _choices(
    outcome: Outcome, strategy: Strategy[object], places: dict[int, Boundary], puzzle: Puzzle
) -> dict[int, bool]:
    """Whether the answer chosen at each budget's place is right; an answer without an end is none."""
    tree = ThoughtTree()
    state, done, found = strategy.start(tree), 0, {}
    for budget, place in sorted(places.items()):
        for event in outcome.log[done : place.events]:
            tree.update(event)
            strategy.update(state, event)
        done = place.events
        chosen = strategy.choose(state)
        found[budget] = chosen is not None and solves(puzzle, tree.branch(chosen).text)
    return found


def _votes(outcome: Outcome, places: dict[int, Boundary], right: Sequence[bool]) -> dict[int, bool]:
    """Whether the commonest answer at each budget's place is right; the earlier one of two equally common."""
    found = {}
    for budget, place in places.items():
        answers = [event.thought for event in outcome.log[: place.events] if isinstance(event, Sampled)]
        kinds = Counter(map(answer_of, answers))
        winner = max(kinds, key=kinds.__getitem__, default=None)  # the first of equals: a counter keeps their order
        found[budget] = any(ok and answer_of(a) == winner for a, ok in zip(answers, right, strict=False))
    return found


def answer_of(thought: Thought) -> Hashable:
    """What a whole answer says, for a vote: its steps in any order; its text where it has another form."""
    said = []
    for line in thought.text.splitlines():
        step = parse_step(line)
        if step is None:
            return thought.text
        operands = sorted((step.a, step.b)) if step.op in "+*" else [step.a, step.b]
        said.append((step.op, *operands, step.result))
    return tuple(sorted(said))
