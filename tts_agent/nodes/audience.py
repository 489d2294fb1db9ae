"""Who listens to a search: LangGraph's `custom` stream, and the handlers of LangChain's callbacks."""

from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_async_callback_manager_for_config
from langgraph.config import get_config
from langgraph.runtime import Runtime, get_runtime

from tts_agent.nodes.progress import Narrator, Tell
from tts_agent.nodes.runs import Runs
from tts_agent.thought import Unit


@dataclass(frozen=True, slots=True)
class Audience:
    """Who listens to the searches of one planning step. `tell` and `manager` are None where nobody does.

    With `candidates`, what thoughts say is told too, token by token where the engine tells it, and candidates that an
    agent's own model says are not kept from the `messages` stream. Of a log that is resumed they were `told` so many
    events; None if nobody knows, and they are told again, as such.
    """

    tell: Tell | None
    manager: AsyncCallbackManager | None
    config: RunnableConfig
    node: str
    task: str
    candidates: bool
    told: int | None = None
    _narrators: dict[str, Narrator] = field(default_factory=dict)

    @classmethod
    def here(
        cls,
        config: RunnableConfig | None = None,
        *,
        name: str,
        candidates: bool = False,
        runtime: Runtime[Any] | None = None,
    ) -> "Audience | None":
        """Who listens to the node that runs here, called with `config`; None if nobody does. `runtime` is the node's.

        `name` is what the node is called outside of a graph. Handlers that ignore both chains and language models do
        not count.
        """
        runtime = runtime or _runtime()
        writer = None if runtime is None or is_silent(runtime.stream_writer) else runtime.stream_writer
        if writer is None and _has_no_handlers(config):
            return None  # as most often; what follows takes longer than a small decision should
        config = ensure_config(config)
        manager = _manager(config)
        if writer is None and manager is None:
            return None
        info = None if runtime is None else runtime.execution_info
        tell, task = None if writer is None else _telling(writer), "" if info is None else info.task_id
        node = str(config.get("metadata", {}).get("langgraph_node", name))
        return cls(tell, manager, config, node, task, candidates)

    def narrator(self, search: str, *, decision: Unit) -> Narrator:
        """What tells the events of one search; only if there is somebody to `tell`."""
        assert self.tell is not None
        if search not in self._narrators:
            narrator = Narrator(self.tell, self.about(search), decision=decision, candidates=self.candidates)
            self._narrators[search] = narrator
        return self._narrators[search]

    def about(self, search: str) -> dict[str, str]:
        """What everything that is told of `search` here says of where it comes from."""
        return {"node": self.node, "search": search, "task": self.task}

    def runs(self, search: str) -> Runs | None:
        """What traces one search; None if nobody does."""
        if self.manager is None:
            return None
        return Runs(self.manager, self.config, search=search)


def _runtime() -> Runtime[Any] | None:
    """That of the graph's task that runs here."""
    try:
        return get_runtime()  # None in a runnable that is no node of a graph
    except RuntimeError:
        return None


def _telling(writer: Tell) -> Tell:
    # LangGraph looks up in the context where a write comes from, and the search runs in other threads and tasks.
    context = copy_context()
    return lambda data: context.run(writer, data)


def is_silent(writer: Callable[[Any], None]) -> bool:
    """Whether nothing comes of what is written.

    Where nobody reads `custom`, LangGraph gives a node a function that does nothing, which nothing marks as such. A
    function that refers to no name and closes over nothing can have no effect; one that a timeout guards is seen
    through. What is not understood counts as being read, which costs time and is never wrong.
    """
    if not isinstance(writer, FunctionType):
        return False
    names = writer.__code__.co_freevars
    if not names:
        return not writer.__code__.co_names
    guarded = dict(zip(names, writer.__closure__ or (), strict=True)).get("stream_writer")
    return guarded is not None and is_silent(guarded.cell_contents)


def _has_no_handlers(config: RunnableConfig | None) -> bool:
    """Whether the callbacks of what runs here, called with `config`, are known to be none."""
    callbacks = None if config is None else config.get("callbacks")
    if callbacks is None:
        with suppress(RuntimeError):  # outside of a runnable
            callbacks = get_config().get("callbacks")
    return isinstance(callbacks, BaseCallbackManager) and not callbacks.handlers


def _manager(config: RunnableConfig) -> AsyncCallbackManager | None:
    if _has_no_handlers(config):
        return None
    manager = get_async_callback_manager_for_config(config)
    return None if all(map(_is_deaf, manager.handlers)) else manager


def _is_deaf(handler: BaseCallbackHandler) -> bool:
    """Whether `handler` listens to none of the runs of a search: its expansions and verifications (see `Runs`)."""
    return handler.ignore_chain and handler.ignore_llm and handler.ignore_chat_model
