"""Searches that stand between two stages, kept in this process so that the next stage need not fold their logs anew.

The log in the graph's state stays the only record. A search is gone on with where the state holds exactly what it has
written, maybe with more at the end that another node added, and asks for the same; wherever that is not so, in another
process, after a fork, with other budgets, the caller resumes from the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, Self

from langchain_core.runnables import RunnableConfig

from tts_agent.budget import Budget
from tts_agent.nodes.account import Account
from tts_agent.nodes.audience import Audience
from tts_agent.nodes.observed import ObservedSearch
from tts_agent.nodes.overrides import RUN, overridden
from tts_agent.nodes.planner import Planner, Step
from tts_agent.nodes.shared import SharedBudget
from tts_agent.nodes.state import Log, read_log
from tts_agent.search import Search

KEPT = 32
"""Searches that are kept; the oldest are forgotten."""


class Asked(NamedTuple):
    """All that a planning step follows from."""

    planner: Planner
    messages: list[Any]
    memory: Any
    budget: Budget
    run_budget: Budget
    account: Account | None

    @classmethod
    def here(cls, planner: Planner, state: Mapping[str, Any], config: RunnableConfig | None) -> Self:
        """What a node is asked for that runs here."""
        budget, run = overridden(planner.budget, planner.name, config, every=True), planner.run_budget
        if isinstance(run, SharedBudget):
            limits, account = run.budget, run.open(state, config)
        else:
            limits, account = overridden(run, RUN, config), None
        return cls(planner, list(state["messages"]), state.get("tts"), budget, limits, account)


@dataclass(frozen=True, slots=True)
class Standing:
    """A search of a planning step, and the log it has written."""

    search: Search
    step: Step
    asked: Asked
    written: Log
    thread: str | None


class Shelf:
    """The searches that stand between two stages; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._standing: dict[int, Standing] = {}  # by the identity of the first chunk, which it holds

    def put(self, standing: Standing) -> None:
        """Keep a search."""
        with self._lock:
            self._standing[id(standing.written[0])] = standing
            while len(self._standing) > KEPT:
                del self._standing[next(iter(self._standing))]

    def take(self, log: Log, asked: Asked, thread: str | None, config: RunnableConfig | None) -> Standing | None:
        """The search that wrote `log`, brought up to what others added to it, if it is here and is asked for."""
        standing = self._find(log, thread)
        # Within a run of a graph all of this is the same objects, so little more than addresses is compared.
        if standing is None or asked != standing.asked:
            return None
        planner, search = asked.planner, standing.search
        audience = Audience.here(config, name=planner.name, candidates=planner.stream_candidates)
        if (audience is None) is isinstance(search, ObservedSearch):
            return None  # a search that somebody listens to is another object
        if audience is not None and isinstance(search, ObservedSearch):
            search.face(audience)  # each stage is a node with listeners of its own
        search.rejoin(read_log(log[len(standing.written) :], planner.engine.decode))
        return standing

    def _find(self, log: Log, thread: str | None) -> Standing | None:
        """What wrote `log`: the very object, or in a `thread` an equal one, where a graph was interrupted meanwhile."""
        if not log:
            return None
        with self._lock:
            place: int | None = id(log[0])
            if place not in self._standing and thread is not None:
                same = (key for key, each in self._standing.items() if each.thread == thread and _wrote(each, log))
                place = next(same, None)
            standing = None if place is None else self._standing.pop(place, None)
        return standing if standing is not None and _wrote(standing, log) else None


def _wrote(standing: Standing, log: Log) -> bool:
    return log[: len(standing.written)] == standing.written
