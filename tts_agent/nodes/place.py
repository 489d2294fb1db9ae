"""Where the tasks of a running graph are stored, to see whether they are durable."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Self

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

from tts_agent.errors import SearchError

PATIENCE = 60.0
"""Seconds that a checkpointer may take to make a chunk durable."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tasks of a running entrypoint are stored."""

    saver: BaseCheckpointSaver[Any]
    checkpoint: RunnableConfig

    @staticmethod
    def stores(config: RunnableConfig) -> bool:
        """Whether the graph whose config this is has a checkpointer."""
        return isinstance(config.get("configurable", {}).get("__pregel_checkpointer"), BaseCheckpointSaver)

    @classmethod
    def find(cls, config: RunnableConfig) -> Self | None:
        """The place of the entrypoint whose config this is; None if nothing is stored before the graph ends."""
        settings = config.get("configurable", {})
        # NOTE: LangGraph gives a node no public way to its checkpointer. Without these keys nothing counts as
        # durable, which is safe: no grants, and a kill begins the step again.
        saver = settings.get("__pregel_checkpointer")
        if not isinstance(saver, BaseCheckpointSaver) or settings.get("__pregel_durability") == "exit":
            return None
        space = own_space(config)
        address = {
            "thread_id": settings["thread_id"],
            "checkpoint_ns": space,
            "checkpoint_id": settings["checkpoint_map"][space],
        }
        return cls(saver, {"configurable": address})

    @property
    def others(self) -> "Attempts":
        """The other attempts at the task that runs here."""
        address = self.checkpoint["configurable"]
        return Attempts(self.saver, address["thread_id"], address["checkpoint_ns"])

    def wait(self, confirmed: Callable[[CheckpointTuple | None], bool]) -> None:
        """Look at the checkpoint until `confirmed`."""
        pauses = _pauses()
        while not confirmed(self.saver.get_tuple(self.checkpoint)):
            time.sleep(next(pauses))

    async def await_(self, confirmed: Callable[[CheckpointTuple | None], bool]) -> None:
        """Look at the checkpoint until `confirmed`, without blocking the loop."""
        pauses = _pauses()
        while not confirmed(await self.saver.aget_tuple(self.checkpoint)):
            await asyncio.sleep(next(pauses))


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts at one task of a graph, and what their entrypoints stored, each in a space of its own.

    LangGraph numbers the spaces of whatever the task calls, over all attempts at it. It gives a retry nothing of what
    the attempts before it stored, and what a retry stored to nobody.
    """

    saver: BaseCheckpointSaver[Any]
    thread: str
    space: str
    own: bool = False  # whether what lies in `space` counts too

    @classmethod
    def of(cls, config: RunnableConfig, space: str | None = None) -> Self:
        """All attempts at the node whose config this is, of which one stored in `space`, if that is known."""
        settings = config["configurable"]
        space = settings["checkpoint_ns"] if space is None else space
        return cls(settings["__pregel_checkpointer"], settings["thread_id"], space, own=True)

    def stored(self) -> list[Any]:
        """The results of their tasks, in no order."""
        found: list[Any] = []
        for space, known in self._spaces():
            config = self._address(space)
            saved = [] if self.saver.get_tuple(config) is None else list(self.saver.list(config))
            if not saved and not known:
                break
            found += [value for one in saved for _, _, value in one.pending_writes or ()]
        return found

    async def astored(self) -> list[Any]:
        """As `stored`, without blocking the loop."""
        found: list[Any] = []
        for space, known in self._spaces():
            config = self._address(space)
            none = await self.saver.aget_tuple(config) is None
            saved = [] if none else [one async for one in self.saver.alist(config)]
            if not saved and not known:
                break
            found += [value for one in saved for _, _, value in one.pending_writes or ()]
        return found

    def _address(self, space: str) -> RunnableConfig:
        return {"configurable": {"thread_id": self.thread, "checkpoint_ns": space}}

    def _spaces(self) -> Iterator[tuple[str, bool]]:
        """Where they stored, `first`, `first|1`, `first|2`, and whether that is known to be a call's.

        Up to `space` it is, though it may hold nothing: the call may have been of something else. After it the first
        that holds nothing is the end.
        """
        numbered = re.fullmatch(r"(.*)\|(\d+)", self.space)
        first, known = (self.space, 0) if numbered is None else (numbered[1], int(numbered[2]))
        spaces = chain([first], (f"{first}|{later}" for later in count(1)))
        return ((space, place <= known) for place, space in enumerate(spaces) if self.own or space != self.space)


def own_space(config: RunnableConfig) -> str:
    """The space of the entrypoint or the graph whose task this is the config of."""
    space: str = config["configurable"]["checkpoint_ns"]
    return space.rpartition("|")[0]


def _pauses() -> Iterator[float]:
    """Seconds to wait between two looks at the checkpoint. Raises `SearchError` when patience ends."""
    waited, pause = 0.0, 0.001
    while waited < PATIENCE:
        yield pause
        waited += pause
        pause = min(pause * 2, 0.1)
    raise SearchError(f"the checkpointer did not store the search's log in {PATIENCE:.0f} s; see whether it works")
