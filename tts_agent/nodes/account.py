"""The live account of a run: one in a process, for whatever runs side by side in it."""

import time
from collections.abc import Sequence
from threading import RLock
from uuid import uuid4

from langgraph.config import get_config

from tts_agent.budget import Amounts, Budget, Ledger
from tts_agent.nodes.place import Place
from tts_agent.nodes.spent import VERSION, Counter, Entry
from tts_agent.usage import Prices, Usage

KEPT = 1024
"""Planning steps that are done and may be told again, of one account; the oldest are forgotten."""

_lock = RLock()
"""Held while any account of a run changes, so that several can be asked and charged as one."""


class RunLedger(Ledger):
    """The account of a run, which other processes may have begun.

    Between `enter` and `leave` it looks at the clock itself: what scopes inside tell of is the same time, and is not
    counted again.
    """

    def __init__(self, budget: Budget, *, name: str, prices: Prices | None = None) -> None:
        super().__init__(budget, name=name, prices=prices)
        self._lock = _lock
        self._active, self._since = 0, 0.0

    @property
    def active(self) -> bool:
        """Whether the clock runs."""
        return self._active > 0

    def enter(self) -> None:
        """Something begins."""
        with self._lock:
            self.tick()
            self._active += 1

    def leave(self) -> None:
        """It has ended."""
        with self._lock:
            self.tick()
            self._active -= 1

    def tick(self) -> None:
        """Charge the time since the last tick."""
        with self._lock:
            now = time.monotonic()
            if self._active:
                super()._pass(now - self._since)
            self._since = now

    def _pass(self, seconds: float) -> None:
        if self._active:
            self.tick()
        else:
            super()._pass(seconds)

    def carry(self, amounts: Amounts, seconds: float) -> None:
        """Count against the limits what was spent elsewhere."""
        with self._lock:
            self._charged = list(Amounts(*self._charged).plus(amounts))
            self.seconds += seconds

    def spend(self, usage: Usage) -> None:
        """Charge what nothing was reserved for: it was spent in another process, which could not say so."""
        with self._lock:
            self._charged = list(Amounts(*self._charged).plus(Amounts.of(self.priced(usage))))
            self._spent = [a + b for a, b in zip(self._spent, self.priced(usage), strict=True)]

    def withdraw(self, scope: Ledger) -> None:
        """Take back what `scope`, which was closed, has charged here: its work is told again from its own log.

        Its seconds are not taken back while the clock runs, since they are not told again either.
        """
        with self._lock:
            spent = scope.spent._replace(seconds=0.0) if self._active else scope.spent
            self._charged = list(Amounts(*self._charged).minus(Amounts(*scope._charged)))
            self._lost = list(Amounts(*self._lost).minus(scope.lost))
            self._excess = list(Amounts(*self._excess).minus(scope.excess))
            self._spent = [max(a - b, 0) for a, b in zip(self._spent, spent, strict=True)]
            self.seconds = max(self.seconds - spent.seconds, 0.0)


class JointLedger(Ledger):
    """A scope inside several accounts at once: what it reserves has to fit into all of them, and is charged to all.

    A model costs what the innermost account with prices says.
    """

    def __init__(self, accounts: "Sequence[Account]") -> None:
        ledgers = [account.ledger for account in accounts]
        priced = (ledger.prices for ledger in reversed(ledgers) if ledger.prices is not None)
        super().__init__(
            name=" and ".join(ledger.name for ledger in ledgers), parent=ledgers[-1], prices=next(priced, None)
        )
        self._chain = (self, *ledgers)
        self.runs = tuple(ledgers)


class Account:
    """What one run may spend and has spent, live in this process; made by `SharedBudget.open`.

    Its seconds are those in which anything of the run is under way here, each counted once: `enter` when something
    begins, `leave` when it ends.
    """

    def __init__(self, ledger: RunLedger, *, run: str, begun: float) -> None:
        self.ledger, self.run, self.begun = ledger, run, begun
        self.soft: dict[str, None] = {}
        """Why a limit may be passed all the same, in words."""
        self.turns: dict[str, str] = {}
        """The messages that the run works on, by the nodes around the graph that has them."""
        self.limit: str | None = None
        """The unit that refused something last."""
        self.invoke: object | None = None
        """What all of the newest `invoke` shares."""
        self.used = time.monotonic()
        self._counter = uuid4().hex
        self._elsewhere = Counter()
        self._calls: set[str] = set()
        self._steps: dict[str, Ledger] = {}  # of planning steps that are not done, by the task that works on them
        self._paid: dict[str, Amounts] = {}  # of steps that are done, and are told again if their task runs again
        self._again: dict[str, Ledger] = {}  # of those of them that are being told again

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self.ledger.active and not any(self.ledger.reserved)

    @property
    def charged(self) -> Amounts:
        """What was charged, here and in other processes."""
        with self.ledger.held():
            return self.ledger.committed.minus(self.ledger.reserved)

    # --- time

    def enter(self) -> None:
        """Something begins."""
        self.ledger.enter()

    def leave(self) -> None:
        """It has ended."""
        self.ledger.leave()
        self.used = time.monotonic()

    def tick(self) -> None:
        """Charge the time since the last tick."""
        self.ledger.tick()

    # --- planning steps

    def step(self, task: str, budget: Budget, prices: Prices | None = None) -> Ledger:
        """The ledger of a planning step that `task` works on.

        A step that failed and is resumed charges anew what its own log tells, so what it charged before is taken back.
        One that is done is paid. It is told again beside the account, as if it were alone: what it once reserved may
        not fit any more into what others have left.
        """
        with self.ledger.held():
            if task in self._paid:
                around = Ledger(self.ledger.budget, name=self.ledger.name, prices=self.ledger.prices)
                again = self._again[task] = Ledger(budget, name="step", parent=around, prices=prices)
                return again
            before = self._steps.pop(task, None)
            if before is not None:
                self.ledger.withdraw(before)
            ledger = self._steps[task] = Ledger(budget, name="step", parent=self.ledger, prices=prices)
            return ledger

    def paid(self, task: str) -> bool:
        """Whether the step of `task` is done, so that it is told again, if at all, and costs nothing."""
        return task in self._paid

    def finish(self, task: str) -> None:
        """The step of `task` is done: what it spent is the run's, once, also if its node breaks off and runs again."""
        with self.ledger.held():
            ledger, again = self._steps.pop(task, None), self._again.pop(task, None)
            if again is not None:  # it charged more than before if the end of its log was lost and sampled anew
                ledger = again
                self.ledger.write_off(again.committed.minus(self._paid.get(task, again.committed)))
            if ledger is not None and _is_told_again(task):
                self._paid[task] = ledger.committed
                while len(self._paid) > KEPT:
                    del self._paid[next(iter(self._paid))]

    # --- what was stored outside of the state

    def learn_call(self, call: str, usage: Usage | None) -> None:
        """Know of a call that was stored under this id: one made here if `usage` is None, else it is charged, once."""
        with self.ledger.held():
            if call not in self._calls:
                self._calls.add(call)
                if usage is not None:
                    self.ledger.spend(usage)

    # --- what the state knows

    def learn(self, entry: Entry | None) -> None:
        """Count what other processes spent on this run."""
        if entry is None or entry["run"] != self.run:
            return
        counters = {name: counter for name, counter in entry["counters"].items() if name != self._counter}
        with self.ledger.held():
            known = self._elsewhere
            self._elsewhere = now = Counter.total(counters.values()).larger(known)
            more = Amounts.of(now.usage).plus(now.lost).minus(Amounts.of(known.usage).plus(known.lost))
            self.ledger.carry(more, now.usage.seconds - known.usage.seconds)

    def entry(self) -> Entry:
        """What is to be written into the state."""
        with self.ledger.held():
            self.tick()
            # A step that is not done has its own log; whoever resumes it charges it anew.
            here = Counter(self.ledger.spent, self.ledger.lost)
            for step in self._steps.values():
                here = here.less(Counter(step.spent, step.lost))
            said = here.to_json()
            return {
                "version": VERSION,
                "run": self.run,
                "begun": self.begun,
                "budget": self.ledger.budget.to_json(),
                "turns": dict(self.turns),
                "limit": self.limit,
                "soft": sorted(self.soft),
                "counters": {self._counter: said},
                **said,
            }


def _is_told_again(step: str) -> bool:
    """Whether the log of `step`, which ends here, is stored, and so told, not searched anew, if its task runs again."""
    try:
        config = get_config()
    except RuntimeError:  # outside a graph
        return False
    # The key of a step that is stored begins with the task around; others, such as those of stages, may come twice.
    around, task = config.get("configurable", {}).get("checkpoint_ns", ""), step.partition("/")[0]
    return f":{task}" in around and Place.find(config) is not None
