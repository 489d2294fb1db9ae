"""Budgets that a caller changes at run time.

What is set later counts: the constructor, then the run's context, `context.tts["*"]` and `context.tts[name]`, then
`config["configurable"]["tts"]` in the same order. Each is a part of a `Budget`: fields that are not named stay as they
were, None takes a limit away. `"*"` is the budget of a step of every planning node and every `PlanSearchMiddleware`; a
name is that of one of them, of one `SharedBudget` (an agent's budget is named "agent"), or "run" for a plain
`run_budget`. All names must be read in the graph that is called, or in graphs that it leads to (see `reach.py`). What
cannot be known before it runs is not among them: planners that a node makes itself, and graphs that it finds by a weak
reference or a `ContextVar`. The steps of those are named by `"*"`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import get_runtime
from typing_extensions import TypedDict  # pydantic reads no other one before Python 3.12

from tts_agent.budget import Budget
from tts_agent.errors import ConfigError
from tts_agent.nodes.reach import reached

EVERY = "*"
RUN = "run"


class BudgetOverride(TypedDict, total=False):
    """A part of a `Budget`; see there."""

    calls: int | None
    generated_tokens: int | None
    total_tokens: int | None
    computed_tokens: int | None
    dollars: float | None
    seconds: float | None
    commit_tokens: int | None


class TTSContext(TypedDict, total=False):
    """A context with budgets, for `StateGraph(context_schema=...)`. Any context with a `tts` like this will do."""

    tts: dict[str, BudgetOverride]


FIELDS = {field.name for field in fields(Budget)}
BARE = {str, bytes, bytearray, bool, int, float, complex, list, tuple, set, frozenset}
"""What no context can be; of types of one's own it can."""

_names: "WeakKeyDictionary[object, tuple[str, ...]]" = WeakKeyDictionary()
_lock = Lock()


def know(owner: object, *, steps: tuple[str, ...] = (), runs: tuple[str, ...] = ()) -> None:
    """Let budgets that `owner` reads be overridden as long as it lives, by their names: those of `steps` and of `runs`.

    Raises `ConfigError` for a name that is no text or means something else.
    """
    for name in (*steps, *runs):
        if not isinstance(name, str):
            raise ConfigError(f"name={name!r} must be a text: budgets are changed by it, and traces show it")
        if name in ("", EVERY) or (name == RUN and name in steps):
            raise ConfigError(
                f"name={name!r} is no name of its own: where budgets are changed, {EVERY!r} names that of every step "
                f"and {RUN!r} that of the run; choose another name"
            )
    with _lock:
        _names[owner] = (*steps, *runs)


def overridden(
    budget: Budget | None, name: str, config: RunnableConfig | None = None, *, every: bool = False
) -> Budget:
    """`budget` as the running graph's context and `config` change it for `name`, and for `"*"` if `every`.

    Raises `ConfigError` for fields that do not exist, for names that nothing here reads, and for a context of the wrong
    shape.
    """
    changed = Budget() if budget is None else budget
    for source, overrides in _sources(name, config):
        _check(source, overrides, name, config)
        for key in (EVERY, name) if every else (name,):
            if key in overrides:
                try:
                    changed = changed.override(overrides[key])
                except ConfigError as error:
                    raise ConfigError(f"{source}[{key!r}]: {error}") from error
    return changed


def _sources(name: str, config: RunnableConfig | None) -> Iterator[tuple[str, Any]]:
    """Where overrides come from, the later ones last. Raises `ConfigError` for a context of the wrong shape."""
    try:
        context = get_runtime().context
    except RuntimeError:  # outside a graph
        context = None
    if context is not None:
        is_mapping = isinstance(context, Mapping)
        tts = context.get("tts") if is_mapping else getattr(context, "tts", None)
        if tts is not None:
            yield "context.tts", tts
        elif is_mapping:
            _check_keys(context, name, config)
        elif type(context) in BARE:
            raise ConfigError(
                f"context={context!r} is no context: one with budgets is a mapping with 'tts' or an object with an "
                "attribute `tts`, as context={'tts': {'*': {'calls': 5}}}"
            )
    if config is None:
        try:
            config = get_config()
        except RuntimeError:
            return
    tts = config.get("configurable", {}).get("tts")
    if tts is not None:
        yield "config['configurable']['tts']", tts


def _check_keys(context: Mapping[Any, Any], name: str, config: RunnableConfig | None) -> None:
    """Raise `ConfigError` for a context that was meant to change budgets and has no 'tts'; `name` is read."""
    for key, change in context.items():
        if not (isinstance(change, dict) and change and FIELDS.issuperset(change)):
            continue
        if key in (EVERY, name) or key in _here(config, anew=False):
            raise ConfigError(
                f"context={context!r} changes no budget, for they are changed under 'tts'; did you mean "
                f"context={{'tts': {{{key!r}: {change!r}}}}}?"
            )


def _check(source: str, overrides: Any, name: str, config: RunnableConfig | None) -> None:
    """Raise `ConfigError` for overrides of the wrong shape, and for names that nothing reads; `name` is read."""
    if not isinstance(overrides, Mapping) or not all(isinstance(change, Mapping) for change in overrides.values()):
        raise ConfigError(
            f"{source}={overrides!r} must map names of nodes to parts of a budget, as {{'*': {{'calls': 5}}}}"
        )
    known = {EVERY, name}
    if not known.issuperset(overrides):
        for anew in (False, True):  # the graph may have come to lead to more since it was looked at
            known |= _here(config, anew=anew)
            if known.issuperset(overrides):
                return
        raise ConfigError(_unread(source, set(overrides) - known, known))


def _unread(source: str, unknown: set[Any], known: set[str]) -> str:
    """Why `unknown` names are refused, and what to do."""
    why = f"{source} names {sorted(unknown, key=str)!r}, which have no budget here; known: {', '.join(sorted(known))}"
    if RUN in unknown:
        why += f"; {RUN!r} is a plain run_budget, and a SharedBudget is changed by its own name"
    if elsewhere := sorted((unknown & _everywhere()) - {RUN}):
        why += f"; this graph does not lead to {elsewhere!r}: change a budget in the call that runs its graph"
    return f"{why}; use {EVERY!r} for planners that a node makes itself"


def _here(config: RunnableConfig | None, *, anew: bool) -> set[str]:
    """The names that are read in the running graph and in those it leads to, or in the process if that is not known."""
    with _lock:
        names = dict(_names)
    return {name for owner in reached(names, config, anew=anew) for name in names.get(owner, ())}


def _everywhere() -> set[str]:
    """The names that are read in the process."""
    with _lock:
        return {name for names in _names.values() for name in names}
