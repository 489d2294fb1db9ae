"""`search()`: one search from beginning to end, without any workflow around it."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, get_args

from tts_agent.budget import Budget, Ledger
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.events import Carried, Event
from tts_agent.outcome import Outcome
from tts_agent.search.base import Strategy
from tts_agent.search.beam import Beam
from tts_agent.search.best_first import BestFirst
from tts_agent.search.best_of_n import BestOfN
from tts_agent.search.driver import FLUSH_EVENTS, FLUSH_SECONDS, Search
from tts_agent.search.greedy import Greedy
from tts_agent.task import Task
from tts_agent.usage import Prices
from tts_agent.verifiers.base import Scope, Verifier

STRATEGIES: dict[str, type[Any]] = {kind.name: kind for kind in (BestFirst, Beam, BestOfN, Greedy)}
"""Strategies by name."""

GRANT = 0.125
"""Share of each limit that may be spent between two durable chunks, and so be lost by a kill."""


class Journal(Protocol):
    """Where a search's log is made durable."""

    async def append(self, chunk: Sequence[Event]) -> None:
        """Write `chunk` and return when it is durable."""
        ...


def make_strategy(strategy: str | Strategy[Any], **options: Any) -> Strategy[Any]:
    """A strategy by name with its options; one that is an object already is returned as it is.

    Raises `ConfigError` for what is neither; for unknown names and options it lists the known ones.
    """
    if isinstance(strategy, type):
        raise ConfigError(f"strategy {strategy.__name__} is a class; pass an instance, {strategy.__name__}(...)")
    if not isinstance(strategy, str):
        lacks = _lacks(strategy, "name", "unit", "bounded", "start", "update", "propose", "choose")
        if lacks or not is_dataclass(strategy):
            raise ConfigError(
                f"strategy {strategy!r} is neither a name ({', '.join(sorted(STRATEGIES))}) nor a Strategy: "
                + (f"it has no {', '.join(lacks)}" if lacks else "its settings are to be the fields of a dataclass")
            )
        if options:
            raise ConfigError(f"options {sorted(options)!r} have no effect on a finished strategy; set them on it")
        return strategy
    kind = STRATEGIES.get(strategy)
    if kind is None:
        raise ConfigError(f"unknown strategy {strategy!r}; known: {', '.join(sorted(STRATEGIES))}")
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"unknown options {unknown!r} of strategy {strategy!r}; known: {', '.join(known)}")
    return kind(**options)  # type: ignore[no-any-return]


def check_settings(verifier: Verifier | None, seed: int) -> None:
    """Raise `ConfigError` for a verifier or a seed that a search could not use."""
    if isinstance(verifier, type):
        raise ConfigError(f"verifier {verifier.__name__} is a class; pass an instance, {verifier.__name__}(...)")
    if verifier is not None and (lacks := _lacks(verifier, "name", "scope", "bound", "__call__")):
        raise ConfigError(
            f"verifier {verifier!r} is no Verifier: it has no {', '.join(lacks)}; CheckVerifier makes one of a function"
        )
    if verifier is not None and verifier.scope not in get_args(Scope):
        raise ConfigError(f"scope {verifier.scope!r} of verifier {verifier.name!r} is none of {get_args(Scope)!r}")
    if not isinstance(seed, int):
        raise ConfigError(f"seed={seed!r} must be a whole number")


def _lacks(given: object, *members: str) -> list[str]:
    return [member for member in members if not hasattr(given, member)]


async def search(
    engine: Engine,
    task: Task,
    *,
    strategy: str | Strategy[Any] = "best_first",
    verifier: Verifier | None = None,
    budget: Budget | None = None,
    prices: Prices | None = None,
    ledger: Ledger | None = None,
    seed: int = 0,
    name: str = "search",
    carried: Sequence[Carried] = (),
    journal: Journal | None = None,
    log: Sequence[Event] = (),
    barrier: bool = False,
    grant: float = GRANT,
    flush_events: int = FLUSH_EVENTS,
    flush_seconds: float = FLUSH_SECONDS,
    on_event: Callable[[Event], None] | None = None,
) -> Outcome:
    """Search for a good continuation of `task.root` and return the best found within `budget`.

    A budget in dollars needs `prices`. `ledger` nests the search in a larger account. `journal` makes the log durable
    chunk by chunk; `log` resumes from what such a journal kept: durable thoughts are neither sampled nor charged
    again. `on_event` sees every event once it is durable. With `barrier` the tree depends on the seed alone, at the
    price of waiting for the slowest sibling.

    Running out of budget is a result (`Outcome.stop`), not an error. Raises `ConfigError` for bad settings,
    `BudgetError` for a budget that cannot pay for the prompt and one decision, `EngineUnavailable` on an outage.
    """
    check_settings(verifier, seed)
    scope = Ledger(budget, name=name, parent=ledger, prices=prices)
    run = Search(
        engine,
        task,
        make_strategy(strategy),
        verifier=verifier,
        ledger=scope,
        seed=seed,
        search=name,
        carried=carried,
        log=log,
        grant=grant if journal is not None else None,
        barrier=barrier,
    )
    try:
        while not run.done:
            chunk = await run.chunk(max_events=flush_events, max_seconds=flush_seconds)
            if journal is not None:
                await journal.append(chunk)
            run.confirm()
            if on_event is not None:
                for event in chunk:
                    on_event(event)
    finally:
        await run.aclose()
    return run.outcome()
