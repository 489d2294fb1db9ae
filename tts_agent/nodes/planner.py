"""One planning step: what to search for, in which account, and what becomes of the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict
from uuid import uuid4

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from tts_agent.budget import Amounts, Budget, Ledger
from tts_agent.dialect import Answer, Decided, Dialect, Request
from tts_agent.engines.base import Engine, sample_bound
from tts_agent.errors import ConfigError
from tts_agent.events import Carried, Event
from tts_agent.nodes.account import Account
from tts_agent.nodes.audience import Audience
from tts_agent.nodes.observed import open_search
from tts_agent.nodes.overrides import RUN, know, overridden
from tts_agent.nodes.shared import SharedBudget
from tts_agent.nodes.spent import BUDGETS
from tts_agent.nodes.state import Memory, Update, forgets, read_state, subtree, summary
from tts_agent.outcome import Outcome
from tts_agent.prefix import Prefix
from tts_agent.search import Search, make_strategy
from tts_agent.search.base import Strategy
from tts_agent.search.dice import thought_seed
from tts_agent.search.run import check_settings
from tts_agent.thought import StopReason, Verdict
from tts_agent.usage import ZERO, Prices, Usage
from tts_agent.verifiers.base import Verifier


class Settings(TypedDict, total=False):
    """Settings that every planning node takes, with the defaults of `Planner`.

    * `strategy`: which thoughts to grow, by name or as an object.
    * `verifier`: how good a branch is.
    * `budget` limits each planning step, `run_budget` all steps of a run together. A run begins with a message of a
      human. `prices` are needed for limits in dollars. A plain `run_budget` counts the steps that come one after the
      other, as `state["tts"]` tells them: steps side by side do not see each other, and of their totals one remains. A
      `SharedBudget` as `run_budget` holds there too. It is spent together with all that is given the same object: other
      nodes, sub-graphs, `Send` branches, agents. Both can be changed at run time (see `overrides.py`).
    * `seed`: the same seed gives the same samples, step by step.
    * `barrier`: wait for all that is under way before anything is handled, so that the tree depends on the seed alone.
    * `name`: what the searches are called in traces, followed by the number of the step.
    * `stream_candidates`: tell what candidates say, token by token where the engine tells it, not only how they do (see
      `progress.py`).
    """

    strategy: str | Strategy[Any]
    verifier: Verifier | None
    budget: Budget | None
    run_budget: Budget | SharedBudget | None
    prices: Prices | None
    seed: int
    barrier: bool
    name: str
    stream_candidates: bool


@dataclass(frozen=True, slots=True)
class Step:
    """A planning step that is to be searched."""

    request: Request
    memory: Memory
    ledger: Ledger
    carried: tuple[Carried, ...]
    account: Account | None = None  # of a shared budget, in which the step is called `key`
    key: str = ""
    audience: Audience | None = None

    @property
    def number(self) -> int:
        """Planning steps of the run are counted from 1."""
        return self.memory.step + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Settings of planning (see `Settings`), and the two ends of a step: `begin` and `finish`."""

    engine: Engine
    dialect: Dialect
    strategy: str | Strategy[Any] = "best_first"
    verifier: Verifier | None = None
    budget: Budget | None = None
    run_budget: Budget | SharedBudget | None = None
    prices: Prices | None = None
    seed: int = 0
    barrier: bool = False
    name: str = "plan"
    stream_candidates: bool = False
    made: Strategy[Any] = field(init=False)

    @classmethod
    def of(cls, engine: Engine, dialect: Dialect, settings: Settings) -> "Planner":
        """The planner with `settings`. Raises `ConfigError` for unknown ones, and for what cannot work."""
        if unknown := sorted(set(settings) - set(Settings.__annotations__)):
            raise ConfigError(f"unknown settings {unknown!r}; known: {', '.join(Settings.__annotations__)}")
        return cls(engine=engine, dialect=dialect, **settings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", make_strategy(self.strategy))
        check_settings(self.verifier, self.seed)
        budget = Budget() if self.budget is None else self.budget
        ledger = self._scope(self._run(self.run_budget, Memory()), budget, ())  # raises at once for what is no budget
        if not self.made.bounded and all(limit is None for limit in (*ledger.limits(), ledger.seconds_left())):
            raise ConfigError(
                f"strategy {self.made.name!r} of node {self.name!r} goes on until a budget stops it; there is none: "
                "set budget=Budget(...) for each step or run_budget=Budget(...) for the run"
            )

    def enrol(self, node: object) -> None:
        """Let the budgets that `node` reads for its steps be changed at run time; see `know`."""
        know(node, steps=(self.name,), runs=() if isinstance(self.run_budget, SharedBudget) else (RUN,))

    # --- the beginning

    def begin(
        self, state: Any, config: RunnableConfig | None = None, *, key: Callable[[str, Prefix], str] | None = None
    ) -> Step | Update:
        """The step that `state` asks for; the state's update itself if there is nothing to search.

        `config` may change budgets. `key` gives the step of this name and with this root the name that tells it from
        others in a shared budget and in the journal, also when it is resumed. Without one its own name has to do.
        """
        state = read_state(state)
        memory = Memory.read(state, self.engine)
        request = self.dialect.request(state["messages"], memory.decided)
        if isinstance(request, Answer):
            return self._answer(memory, request)
        continues = memory.decided is not None and request.continues(memory.decided)
        carried = memory.subtree if continues else ()
        budget = overridden(self.budget, self.name, config, every=True)
        account = self.run_budget.open(state, config) if isinstance(self.run_budget, SharedBudget) else None
        run = self._run(overridden(self._own_run_budget, RUN, config), memory) if account is None else account.ledger
        if account is None and run.budget != Budget() and forgets(state, self.name):
            raise ConfigError(
                f"the run_budget of node {self.name!r} cannot hold: the state has no 'tts', which tells a step what "
                "the run has used; give the graph's state the keys of PlanState, or hand 'tts' down with the messages"
            )
        number = f"{self.name}/{memory.step + 1}"
        name = number if key is None else key(number, request.task.root)
        audience = Audience.here(config, name=self.name, candidates=self.stream_candidates)
        step = Step(request, memory, self._scope(run, budget, carried), carried, account, name, audience)
        # One that has begun in stages holds its decision, and one that is done is paid.
        admitted = bool(state.get("search")) or (account is not None and account.paid(name))
        if not admitted and (step.number > 1 or account is not None) and (unit := self.short(step)):
            # NOTE: a first step that nothing can be searched in is a wrong setting, which the search itself reports,
            # unless others may have spent the budget.
            return self.finish(step, Outcome((), StopReason.BUDGET, unit, cut=f"the {unit} limit left no step"))
        return step

    @property
    def _own_run_budget(self) -> Budget | None:
        return None if isinstance(self.run_budget, SharedBudget) else self.run_budget

    def _run(self, budget: Budget | SharedBudget | None, memory: Memory) -> Ledger:
        """The run's account, which is charged with all steps before."""
        if isinstance(budget, SharedBudget):
            return Ledger(budget.budget, name="run", prices=budget.prices or self.prices)
        run = Ledger(budget, name="run", prices=self.prices)
        run.write_off(Amounts.of(run.priced(memory.totals.usage)).plus(memory.totals.lost))
        run.elapse(memory.totals.usage.seconds)
        return run

    def _scope(self, run: Ledger, budget: Budget, carried: Sequence[Carried]) -> Ledger:
        """The step's account, inside the run's."""
        if any(event.thought.status in ("open", "complete", "solved") for event in carried):
            budget = budget.override({"commit_tokens": 0})  # what was carried over is a decision already
        return Ledger(budget, name="step", parent=run, prices=self.prices)

    def short(self, step: Step) -> str | None:
        """The unit of which too little is left for the decision that must be paid for in any case."""
        least = self.least(step)
        return None if least == ZERO else step.ledger.refuses(least)

    def least(self, step: Step) -> Usage:
        """The most that this decision may use; nothing if none is held back."""
        tokens = step.ledger.budget.commit_tokens
        task = step.request.task
        tokens = task.sampling(task.commit).max_tokens if tokens is None else tokens
        return sample_bound(self.engine.capabilities, len(task.root), 1, tokens) if tokens else ZERO

    # --- the search

    def search(
        self,
        step: Step,
        log: Sequence[Event],
        *,
        grant: float | None = None,
        killed: bool = True,
        told: int | None = None,
    ) -> Search:
        """The search of `step`, resumed from `log` if it is not empty.

        Whoever listens was `told` so many of its events; None if that was in another run, and they are told again.
        """
        if step.account is None:
            around = step.ledger.parent
            if around is None or around.parent is None:  # the run's own, of which `log` and the memory tell all
                around = self._run(None if around is None else around.budget, step.memory)
            ledger = Ledger(step.ledger.budget, name="step", parent=around, prices=self.prices)
            return self._search(step, ledger, log, grant, killed, told)
        with step.account.ledger.held():  # what an attempt before this one spent is taken back, and told again by `log`
            ledger = step.account.step(step.key, step.ledger.budget, self.prices)
            if not log and self.short(replace(step, ledger=ledger)):
                # Others were faster. The step ends without a decision, which is a result and no error.
                ledger = step.account.step(step.key, ledger.budget.override({"commit_tokens": 0}), self.prices)
            return self._search(step, ledger, log, grant, killed, told)

    def _search(
        self, step: Step, ledger: Ledger, log: Sequence[Event], grant: float | None, killed: bool, told: int | None
    ) -> Search:
        return open_search(
            None if step.audience is None else replace(step.audience, told=told),
            self.engine,
            step.request.task,
            self.made,
            verifier=self.verifier,
            ledger=ledger,
            seed=self.seed if step.number == 1 else thought_seed(self.seed, -step.number),
            search=f"{self.name}/{step.number}",
            carried=step.carried,
            log=log,
            grant=grant,
            barrier=self.barrier,
            killed=killed,
        )

    # --- the end

    def finish(self, step: Step, outcome: Outcome, *, edit: AIMessage | None = None) -> Update:
        """The update of the state: the decision as a message, and what the next step needs.

        `edit` is a decision that somebody wrote instead; the next step then reads it as history.
        """
        decided = self._decided(step, outcome) if edit is None else self._edited(step, outcome, edit)
        return {**decided, **self._spent(step)}

    def _spent(self, step: Step) -> Update:
        """What is to be written of a shared budget."""
        if step.account is None or not isinstance(self.run_budget, SharedBudget):
            return {}
        step.account.finish(step.key)
        return {BUDGETS: {self.run_budget.name: step.account.entry()}}

    def _decided(self, step: Step, outcome: Outcome) -> Update:
        totals = step.memory.totals.plus(outcome)
        made = step.request.decision(outcome.path)
        if not made:
            memory = Memory(step.number, step.memory.message, totals=totals, turn=step.memory.turn)
            note = {**summary(outcome), "decision": None}
            return self._update([], memory, note, carried=bool(step.carried))
        decision = made[-1]
        message = self.dialect.decide(decision)
        verdict = outcome.tree.verdicts.get(decision.id)
        score = verdict.score if isinstance(verdict, Verdict) else None
        message = self._signed(message, outcome, score, step.number)
        decided = Decided(outcome.tree.prefix(decision.id), decision)
        found, turn = subtree(outcome.tree, decision), step.memory.turn
        memory = Memory(step.number, str(message.id), decided, found, totals, turn)
        note = {**summary(outcome), "decision": "".join(thought.text for thought in made)}
        return self._update([message], memory, note, carried=bool(step.carried))

    def _edited(self, step: Step, outcome: Outcome, edit: AIMessage) -> Update:
        message = self._signed(edit, outcome, None, step.number)
        totals = step.memory.totals.plus(outcome)
        memory = Memory(step.number, str(message.id), totals=totals, turn=step.memory.turn)
        return self._update(
            [message], memory, {**summary(outcome), "decision": message.text}, carried=bool(step.carried)
        )

    def _answer(self, memory: Memory, answer: Answer) -> Update:
        outcome = Outcome((), StopReason.CONVERGED)
        message = self._signed(AIMessage(answer.text), outcome, None, memory.step + 1)
        after = Memory(memory.step + 1, str(message.id), totals=memory.totals, turn=memory.turn)
        note = {**summary(outcome), "decision": answer.text, "solved": answer.solved}
        return self._update([message], after, note, carried=False)

    def _signed(self, message: AIMessage, outcome: Outcome, score: float | None, number: int) -> AIMessage:
        note = {
            "search": f"{self.name}/{number}",
            "stop": outcome.stop.value,
            "limit": outcome.limit,
            "usage": outcome.usage.to_json(),
            "score": score,
        }
        metadata = {**message.response_metadata, "tts": note}
        return message.model_copy(update={"id": message.id or f"tts-{uuid4().hex}", "response_metadata": metadata})

    def _update(self, messages: list[AIMessage], memory: Memory, outcome: dict[str, Any], *, carried: bool) -> Update:
        return {
            "messages": messages,
            "tts": {**memory.write(self.engine), "outcome": outcome, "carried": carried},
        }
