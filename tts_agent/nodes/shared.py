"""One budget for everything that a run does: nodes, sub-graphs, parallel branches, agents inside tools."""

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from threading import RLock
from typing import Any, Literal, NamedTuple, Self, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import get_runtime

from tts_agent.budget import Budget, Ledger
from tts_agent.errors import ConfigError
from tts_agent.nodes.account import Account, RunLedger
from tts_agent.nodes.overrides import know, overridden
from tts_agent.nodes.reach import loops
from tts_agent.nodes.spent import BUDGETS, NOBODY, Entry, messages_of, newest_turn, read_entry
from tts_agent.usage import Prices

K = TypeVar("K")
V = TypeVar("V")

KEPT = 1024
IDLE = 3600.0
"""An account is forgotten if it is not among the `KEPT` newest and was not used for `IDLE` seconds."""


class Run(NamedTuple):
    """Where the caller runs: the object that all of one `invoke` shares, the thread, and whether it was resumed.

    Of the last only the first nodes know that run after it, and all in the graphs inside them. `path` are the nodes
    around the graph, `read` tells what its state has under a key.
    """

    control: object | None = None
    thread: str | None = None
    resumed: bool = False
    path: str = ""
    read: Callable[[str], Any] | None = None

    @classmethod
    def current(cls) -> Self:
        """The run of the graph that calls; an empty one outside a graph."""
        try:
            runtime, config = get_runtime(), get_config()
        except RuntimeError:
            return cls()
        settings = config.get("configurable", {})
        thread, space = settings.get("thread_id"), settings.get("checkpoint_ns", "")
        # NOTE: LangGraph has no public way to tell a run that goes on from a new one, nor to the state around a node.
        # Without these keys it counts whether somebody wrote since, as for later nodes, in what a node is handed.
        # A graph inside another one that is forked begins anew, so those around it are asked as well.
        resumed = _resumes(config) or ("|" in space and any(_resumes(loop.config) for loop in loops(config)))
        read = settings.get("__pregel_read")
        return cls(runtime.control, None if thread is None else str(thread), resumed, _path(space), read)

    def turn(self, state: Any) -> str | None:
        """What `newest_turn` says of the graph's own messages, whatever its node was handed in `state`."""
        messages = None
        if self.read is not None:
            with suppress(KeyError):  # the graph's state has no such key
                messages = self.read("messages")
        return newest_turn(messages or messages_of(state))


def _resumes(config: RunnableConfig) -> bool:
    return bool(config.get("configurable", {}).get("__pregel_resuming"))


def _path(space: str) -> str:
    """The nodes around the graph that a task of the namespace `space` belongs to, whichever task of theirs it was."""
    if "|" not in space:
        return ""
    parts = (part.partition(":") for part in space.split("|")[:-1])
    return "|".join(node for node, task, _ in parts if task)


class SharedBudget:
    """A budget for all that is given this object, together.

    With `per="run"` a run is one `invoke` and whatever resumes it: what goes on in its thread before somebody wrote
    again (a message that is no model's, tool's or system's, and no summary). Everything inside it counts: nodes,
    sub-graphs, `Send` branches, agents that tools call. With `per="thread"` all runs of a conversation are one account.
    `name` is its place in `state["tts_budgets"]`, which no other budget that writes the same state may have. Limits in
    dollars need `prices`.

    In a process there is one live account a run, so what runs side by side cannot spend the same room twice. Across
    processes what was spent is known from the state: give the state of every graph the key (as `PlanState` has it). Two
    processes that work on one run at the same time do not see each other; the limit then holds in each of them. A fork
    of a thread goes on in the account that it was forked from; in another process one from before anything was spent,
    whose state tells of no account, begins anew.
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
        self._runs: dict[int, tuple[object, str]] = {}  # what an `invoke` shares -> its account
        self._threads: dict[str, str] = {}
        know(self, runs=(name,))

    def open(self, state: Any, config: RunnableConfig | None = None) -> Account:
        """The account of the run that calls; its limits may be changed at run time.

        Raises `LogError` if another version of this package wrote what `state` holds, or it is damaged, and
        `ConfigError` if another budget of this name writes it.
        """
        budget = overridden(self.budget, self.name, config)
        entry = read_entry(state, self.name)
        here = Run.current()
        with self._lock:
            turn = here.turn(state)
            run, found = self._run(here, entry, turn)
            account = self._accounts.pop(run, None)
            if account is None:
                begun = entry["begun"] if entry is not None and entry["run"] == run else time.time()
                account = Account(RunLedger(budget, name=self.name, prices=self.prices), run=run, begun=begun)
                _owners[run] = self
            if turn:
                account.turns[here.path] = turn
            account.ledger.limit(budget)
            account.learn(entry)
            self._accounts[run] = account  # the newest stands last
            account.invoke, account.used = here.control, time.monotonic()
            if not found:
                self._forget()
            return account

    def owns(self, account: Account) -> bool:
        """Whether `account` is one of this budget."""
        with self._lock:
            return self._accounts.get(account.run) is account

    def _run(self, here: Run, entry: Entry | None, turn: str | None) -> tuple[str, bool]:
        """The id of the run that calls, which is remembered for what runs beside it, and whether that had been so."""
        _, run = self._runs.get(id(here.control), (None, None))
        found = run is not None
        if entry is not None and entry["run"] != run:
            self._own(str(entry["run"]), here)
        if run is None:
            known = self._threads.get(here.thread or "") if entry is None else str(entry["run"])
            same_turn = entry is not None and (turn == NOBODY or turn in entry.get("turns", {}).values())
            goes_on = self.per == "thread" or here.resumed or same_turn
            run = known if known is not None and goes_on else uuid4().hex
        if here.control is not None:
            self._runs[id(here.control)] = (here.control, run)
        if here.thread is not None:
            self._threads[here.thread] = run
        return run, found

    def _own(self, run: str, here: Run) -> None:
        """Raise `ConfigError` if `run`, which the state tells of, is that of another budget in this `invoke`."""
        other = _owners.get(run)
        if other is not None and other is not self and other._runs.get(id(here.control)) == (here.control, run):
            raise ConfigError(
                f"two budgets named {self.name!r} write state[{BUDGETS!r}][{self.name!r}] in one run, and each would "
                "take what the other has spent for its own: give one of them another name=, or give both the same "
                "SharedBudget to spend together"
            )

    def _forget(self) -> None:
        """Forget runs that are over, as far as one can tell.

        What comes first in a table is the oldest. It is forgotten or stands last again.
        """
        old = time.monotonic() - IDLE
        for run, account in _oldest(self._accounts):
            del self._accounts[run]
            if not account.idle or account.used >= old:
                self._accounts[run] = account
            elif _owners.get(run) is self:
                del _owners[run]
        for key, (control, run) in _oldest(self._runs):
            del self._runs[key]
            live = self._accounts.get(run)
            if live is not None and (live.invoke is control or not live.idle):
                self._runs[key] = (control, run)
        for thread, run in _oldest(self._threads):
            del self._threads[thread]
            if run in self._accounts:
                self._threads[thread] = run


_owners: "WeakValueDictionary[str, SharedBudget]" = WeakValueDictionary()
"""The budget that has the account of a run, by the id of the run."""


def _oldest(table: dict[K, V]) -> list[tuple[K, V]]:
    """The first of what `table` has beyond `KEPT`: two, so that it shrinks although one comes with each call."""
    return list(islice(table.items(), min(max(len(table) - KEPT, 0), 2)))
