"""One budget for everything that a run does: nodes, sub-graphs, parallel branches, agents inside tools."""

import time
from threading import RLock
from typing import Any, Literal, NamedTuple, Self
from uuid import uuid4

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import get_runtime

from tts_agent.budget import Budget, Ledger
from tts_agent.errors import ConfigError
from tts_agent.nodes.account import Account, RunLedger
from tts_agent.nodes.overrides import know, overridden
from tts_agent.nodes.spent import Entry, newest_turn, read_entry
from tts_agent.usage import Prices

KEPT = 1024
IDLE = 3600.0
"""An account is forgotten if it is not among the `KEPT` newest and was not used for `IDLE` seconds."""


class Run(NamedTuple):
    """Where the caller runs: the object that all of one `invoke` shares, the thread, and whether it was resumed.

    Of the last only the first nodes know that run after it.
    """

    control: object | None = None
    thread: str | None = None
    resumed: bool = False

    @classmethod
    def current(cls) -> Self:
        """The run of the graph that calls; an empty one outside a graph."""
        try:
            runtime, settings = get_runtime(), get_config().get("configurable", {})
        except RuntimeError:
            return cls()
        thread = settings.get("thread_id")
        # NOTE: LangGraph has no public way to tell a run that goes on from a new one. Without this key it counts
        # whether somebody wrote since, as it does for later nodes.
        resumed = bool(settings.get("__pregel_resuming"))
        return cls(runtime.control, None if thread is None else str(thread), resumed)


class SharedBudget:
    """A budget for all that is given this object, together.

    With `per="run"` a run is one `invoke` and whatever resumes it: what goes on in its thread before somebody wrote
    again (a message that is no model's and no tool's). Everything inside it counts: nodes, sub-graphs, `Send` branches,
    agents that tools call. With `per="thread"` all runs of a conversation are one account. `name` is its place in
    `state["tts_budgets"]`. Limits in dollars need `prices`.

    In a process there is one live account a run, so what runs side by side cannot spend the same room twice. Across
    processes what was spent is known from the state: give the state of every graph the key (as `PlanState` has it). Two
    processes that work on one run at the same time do not see each other; the limit then holds in each of them. A fork
    of a thread goes on in the account that it was forked from.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        per: Literal["run", "thread"] = "run",
        name: str = "run",
        prices: Prices | None = None,
    ) -> None:
        if per not in ("run", "thread"):
            raise ConfigError(f"a shared budget per={per!r} is unknown; known: 'run', 'thread'")
        Ledger(budget, name=name, prices=prices)  # raises at once for a limit in dollars without prices
        self.budget, self.per, self.name, self.prices = budget, per, name, prices
        self._lock = RLock()
        self._accounts: dict[str, Account] = {}
        self._runs: dict[int, tuple[object, str]] = {}  # a run's shared object -> its account
        self._threads: dict[str, str] = {}
        know(self, name)

    def open(self, state: Any, config: RunnableConfig | None = None) -> Account:
        """The account of the run that calls; its limits may be changed at run time.

        Raises `LogError` if another version of this package wrote what `state` holds, or it is damaged.
        """
        budget = overridden(self.budget, self.name, config)
        entry = read_entry(state, self.name)
        here = Run.current()
        with self._lock:
            turn = newest_turn(state)
            run = self._run(here, entry, turn)
            account = self._accounts.pop(run, None)
            new = account is None
            if account is None:
                begun = entry["begun"] if entry is not None and entry["run"] == run else time.time()
                account = Account(RunLedger(budget, name=self.name, prices=self.prices), run=run, begun=begun)
            if account.turn is None or entry is not None:  # else an agent inside the run, with messages of its own
                account.turn = turn
            account.ledger.limit(budget)
            account.learn(entry)
            self._accounts[run] = account  # the newest stands last
            account.used = time.monotonic()
            if new:
                self._forget()
            return account

    def owns(self, account: Account) -> bool:
        """Whether `account` is one of this budget."""
        with self._lock:
            return self._accounts.get(account.run) is account

    def _run(self, here: Run, entry: Entry | None, turn: str | None) -> str:
        """The id of the run that calls, which is remembered for what runs beside it."""
        _, run = self._runs.get(id(here.control), (None, None))
        if run is None:
            known = self._threads.get(here.thread or "") if entry is None else str(entry["run"])
            same_turn = turn is not None and entry is not None and entry.get("turn") == turn
            goes_on = self.per == "thread" or here.resumed or same_turn
            run = known if known is not None and goes_on else uuid4().hex
        if here.control is not None:
            self._runs[id(here.control)] = (here.control, run)
        if here.thread is not None:
            self._threads[here.thread] = run
        return run

    def _forget(self) -> None:
        """Forget runs that are over, as far as one can tell."""
        if len(self._accounts) <= KEPT:
            return
        old = time.monotonic() - IDLE
        for run, account in list(self._accounts.items())[:-KEPT]:
            if account.idle and account.used < old:
                del self._accounts[run]
        self._runs = {key: (control, run) for key, (control, run) in self._runs.items() if run in self._accounts}
        self._threads = {thread: run for thread, run in self._threads.items() if run in self._accounts}
