"""What a running graph leads to: everything that could be called from its nodes, told from their Python objects.

It is generous, so that nothing is missed that a graph can really call: whatever an object holds counts, and whatever
the code of a function names, whether or not it comes to that. Of libraries only what their objects and closures hold
counts, for their own code knows nothing of the graphs of their users.
"""

import gc
import os
import sys
from asyncio import AbstractEventLoop, Future
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures import Future as ThreadFuture
from contextvars import Context
from functools import lru_cache
from logging import Logger
from threading import Thread
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
    TracebackType,
)
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import get_runtime

LIMIT = 100_000
"""Objects that are looked at before nothing more is told apart."""

GRAPHS = ("tts_agent", "langchain", "langgraph")
"""How the names of packages begin that graphs are made with."""

LIBRARIES = {"tts_agent", "langchain", "langchain_core", "langgraph", "langsmith", "pydantic", "torch", "transformers"}
"""Other installed packages are libraries if they import nothing of `GRAPHS`."""

STANDARD = os.path.dirname(os.__file__)
INSTALLED = ("site-packages", "dist-packages")

BY_TEXT = {"getattr", "vars", "attrgetter", "__dict__"}
"""With these a function may take anything from the modules that it names."""

ANYTHING = {"eval", "exec", "globals", "import_module", "__import__", "modules"}
"""With these a function may take anything that there is."""

WORK = (
    AbstractEventLoop,
    AsyncGeneratorType,
    Context,
    CoroutineType,
    Executor,
    FrameType,
    Future,
    GeneratorType,
    Logger,
    ReferenceType,
    Thread,
    ThreadFuture,
    TracebackType,
)
"""What is under way, which leads to whatever else the process does."""

_found: "WeakKeyDictionary[Any, WeakSet[Any] | None]" = WeakKeyDictionary()
"""What graphs were found to lead to, by the first of their nodes; None where that could not be told."""


def reached(owners: Collection[Any], config: RunnableConfig | None = None, *, anew: bool) -> Collection[Any]:
    """Those of `owners` that the running graph and the graphs around it lead to; all of them where that is not known.

    What was found before is told again unless `anew`.
    """
    running = _running(config)
    if not running:
        return owners
    first = next(iter(running[-1].nodes.values()))
    if anew or first not in _found:
        _found[first] = _look(owners, running, anew=anew)
    found = _found[first]
    return owners if found is None else list(found)


def _look(owners: Collection[Any], running: Sequence[Any], *, anew: bool) -> WeakSet[Any] | None:
    """Those of `owners` that the graphs of the loops `running` lead to; None where that cannot be told.

    The state may be large and hardly ever holds a graph, so it is looked at only if something was missed before.
    """
    wanted = {id(owner) for owner in owners}
    found: WeakSet[Any] = WeakSet()
    roots = [*(node for loop in running for node in loop.nodes.values()), *_given(), *(_state(running) if anew else ())]
    try:
        for each in _walk(roots):
            if id(each) in wanted:
                found.add(each)
    except _Unknowable:
        return None
    return found


class _Unknowable(Exception):
    """What a graph leads to cannot be told."""


def _running(config: RunnableConfig | None) -> list[Any]:
    """The loops of the graph that runs here, and of the graphs around it; see `loops`."""
    try:
        config = get_config()
    except RuntimeError:  # a thread without the context of its caller, which may have handed it the settings
        config = config or {}
    return loops(config)


def loops(config: RunnableConfig) -> list[Any]:
    """What runs the graph whose task `config` belongs to, and the graphs around it, the outermost last.

    None outside a graph. Each has the `nodes`, the `channels` and the `config` of its graph.
    """
    running = []
    try:
        # NOTE: LangGraph has no public way to the graph that runs. A task can schedule another one, by a method of the
        # loop that runs its graph. Without this key every name of the process counts, and a fork may begin anew.
        while (call := config.get("configurable", {}).get("__pregel_call")) is not None:
            loop = call.keywords["schedule_task"].__self__
            running.append(loop)
            config = loop.config
    except (AttributeError, KeyError):
        return []
    return running


def _given() -> Iterator[Any]:
    """What a caller may have put graphs in."""
    try:
        yield get_runtime().context
        settings = get_config().get("configurable", {})
    except RuntimeError:
        return
    yield from (value for key, value in settings.items() if not key.startswith("__pregel"))


def _state(running: Iterable[Any]) -> Iterator[Any]:
    """What the states of the graphs of the loops `running` hold."""
    for loop in running:
        yield from (channel.get() for channel in loop.channels.values() if channel.is_available())


def _walk(roots: Iterable[Any]) -> Iterator[Any]:
    """All that `roots` lead to, each object once. Raises `_Unknowable` beyond `LIMIT`."""
    # NOTE: objects are told apart by where they are and taken by their plain types, as code of theirs must not run. The
    # list keeps them where they are.
    found: list[Any] = [list(roots)]
    seen: set[int] = set()
    for each in found:
        yield each
        for other in _held(each):
            if gc.is_tracked(other) and id(other) not in seen:  # what is not tracked holds nothing
                seen.add(id(other))
                found.append(other)
        if len(found) > LIMIT:
            raise _Unknowable


def _held(each: Any) -> Iterable[Any]:
    """What `each` can call or hand on."""
    kind = type(each)
    if issubclass(kind, WORK):
        return ()
    if issubclass(kind, ModuleType):
        inside = _inside(each)
        return inside.values() if _followed(inside.get("__name__")) else ()
    if kind is FunctionType:
        own = (each.__closure__, each.__defaults__, each.__kwdefaults__, each.__dict__)
        return (*own, *_named(each)) if _followed(each.__globals__.get("__name__")) else own
    if issubclass(kind, type) and not _followed(vars(each).get("__module__")):
        return ()
    return gc.get_referents(each)


def _named(function: FunctionType) -> Iterator[Any]:
    """What the code of `function` names: globals, what it imports, and what it takes from modules."""
    space = function.__globals__
    names = _names(function.__code__)
    if names & ANYTHING:
        raise _Unknowable
    package = str(space.get("__package__") or "").split(".")
    around = [".".join(package[:count]) for count in range(1, len(package) + 1)]  # for imports that begin with a dot
    found: list[Any] = [space.get(name) for name in names]
    for name in names:
        found.extend(sys.modules.get(path) for path in (name, *(f"{each}.{name}" for each in around)))
    seen: set[int] = set()
    for each in found:
        if not issubclass(type(each), ModuleType):
            yield each
        elif id(each) not in seen:
            seen.add(id(each))
            inside = _inside(each)
            if _followed(inside.get("__name__")):
                taken = inside if names & BY_TEXT else {*names, "__getattr__"}
                found.extend(inside.get(name) for name in taken)


def _names(code: CodeType) -> set[str]:
    """The names in `code` and in the functions that it makes."""
    names = set(code.co_names)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            names |= _names(each)
    return names


def _followed(module: Any) -> bool:
    """Whether the code of `module` may know graphs by their names."""
    package = str(module).partition(".")[0]
    return package not in LIBRARIES and _knows_graphs(package, len(sys.modules))


@lru_cache(maxsize=1024)
def _knows_graphs(package: str, modules: int) -> bool:
    """Whether `package` is no library, as long as there are so many `modules`."""
    top = _inside(sys.modules.get(package))
    origin = str(top.get("__file__") or list(top.get("__path__", ())))
    if not any(folder in origin for folder in INSTALLED):
        return package not in sys.stdlib_module_names or ("__file__" in top and not origin.startswith(STANDARD))
    own = [each for name, each in list(sys.modules.items()) if name == package or name.startswith(f"{package}.")]
    values = (value for each in own for value in _inside(each).values())
    return not package.startswith(GRAPHS) and any(_made_in(value).startswith(GRAPHS) for value in values)


def _inside(module: Any) -> dict[str, Any]:
    """The attributes of `module`; nothing of what merely stands for one."""
    return vars(module).copy() if issubclass(type(module), ModuleType) else {}


def _made_in(value: Any) -> str:
    """The module that `value`, or else what it is an instance of, was made in."""
    kind = type(value)
    if issubclass(kind, ModuleType):
        return str(_inside(value).get("__name__"))
    if kind is FunctionType:
        return str(value.__module__)
    return str(vars(value if issubclass(kind, type) else kind).get("__module__"))
