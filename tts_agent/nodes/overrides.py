"""Budgets that a caller changes at run time.

What is set later counts: the constructor, then the run's context, `context.tts["*"]` and `context.tts[name]`, then
`config["configurable"]["tts"]` in the same order. Each is a part of a `Budget`: fields that are not named stay as they
were, None takes a limit away. `"*"` is the budget of a step of every planning node and every `PlanSearchMiddleware`; a
name is that of one of them, of one `SharedBudget` (an agent's budget is named "agent"), or "run" for the budget of the
run.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import get_runtime
from typing_extensions import TypedDict  # pydantic reads no other one before Python 3.12

from tts_agent.budget import Budget
from tts_agent.errors import ConfigError

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


_names: "WeakKeyDictionary[object, str]" = WeakKeyDictionary()


def know(owner: object, name: str) -> None:
    """Let `name` be one that can be overridden, as long as `owner` lives. Raises `ConfigError` if it is no text."""
    if not isinstance(name, str):
        raise ConfigError(f"name={name!r} must be a text: budgets are changed by it, and traces show it")
    _names[owner] = name


def overridden(
    budget: Budget | None, name: str, config: RunnableConfig | None = None, *, every: bool = False
) -> Budget:
    """`budget` as the running graph's context and `config` change it for `name`, and for `"*"` if `every`.

    Raises `ConfigError` for names and fields that do not exist, and for a context of the wrong shape.
    """
    changed = Budget() if budget is None else budget
    for source, overrides in _sources(config):
        _check(source, overrides)
        for key in (EVERY, name) if every else (name,):
            if key in overrides:
                try:
                    changed = changed.override(overrides[key])
                except ConfigError as error:
                    raise ConfigError(f"{source}[{key!r}]: {error}") from error
    return changed


def _sources(config: RunnableConfig | None) -> Iterator[tuple[str, Any]]:
    """Where overrides come from, the later ones last."""
    try:
        context = get_runtime().context
    except RuntimeError:  # outside a graph
        context = None
    tts = context.get("tts") if isinstance(context, Mapping) else getattr(context, "tts", None)
    if tts is not None:
        yield "context.tts", tts
    if config is None:
        try:
            config = get_config()
        except RuntimeError:
            return
    tts = config.get("configurable", {}).get("tts")
    if tts is not None:
        yield "config['configurable']['tts']", tts


def _check(source: str, overrides: Any) -> None:
    if not isinstance(overrides, Mapping) or not all(isinstance(change, Mapping) for change in overrides.values()):
        raise ConfigError(
            f"{source}={overrides!r} must map names of nodes to parts of a budget, as {{'*': {{'calls': 5}}}}"
        )
    known = {EVERY, RUN, *_names.values()}
    if unknown := sorted(set(overrides) - known, key=str):
        raise ConfigError(f"{source} names {unknown!r}, which have no budget here; known: {', '.join(sorted(known))}")
