"""The planning step as three nodes, so that a graph shows its rounds and any stage can be replaced.

A round is expand, verify, select. All three are the same search as in `make_plan_node`, over the log in the state, and
every stage waits for the slowest of what it started. For a `StagedState`::

    expand --> verify --> select --> expand (another round), or the decision
      |
      +------------------------------> the answer, if there is nothing left to decide

`running_searches` knows a search while a stage works on it. Stopped from there, it has its decision at the end of the
round. A graph that is asked to drain while a stage works has it at the end of that stage, and if the graph goes on, the
stages after it find nothing to do; a graph that drains between two stages leaves the search as it is, to be resumed.

A stage that a `retry_policy` runs again in the same process goes on from where it was. A kill repeats the stage that it
interrupted, and what that stage had used is not charged; where a limit must hold across kills, use `make_plan_node`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_config
from langgraph.types import Overwrite

from tts_agent.dialect import Dialect
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError, SearchError
from tts_agent.events import Chosen, Event, Judged, Opened, Pruned
from tts_agent.loop import run_sync
from tts_agent.nodes.attempt import Attempt, Left, Memo, current_attempt, stage_key
from tts_agent.nodes.handle import SearchHandle, delist, enlist
from tts_agent.nodes.place import own_space
from tts_agent.nodes.planner import Planner, Settings, Step
from tts_agent.nodes.standing import Asked, Shelf, Standing
from tts_agent.nodes.state import Log, StagedState, Update, read_log, read_state, write_chunk
from tts_agent.search import Search
from tts_agent.trace.recorder import Recorder, trace_path


class StageNode(Runnable[StagedState, Update]):
    """One stage of a planning step; made by `make_expand_node`, `make_verify_node` and `make_select_node`."""

    def __init__(self, stage: Literal["expand", "verify", "select"], planner: Planner, trace: Path | None) -> None:
        self.name = stage
        self.planner = planner
        self._stage = stage
        self._trace = trace
        self._memo = Memo()
        planner.enrol(self)

    def invoke(self, input: StagedState, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        return run_sync(self.ainvoke(input, config))

    async def ainvoke(self, input: StagedState, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        state = read_state(input)
        if "search" not in state:
            raise ConfigError(
                f"the state has no 'search', where stage {self._stage!r} looks for the search under way; build the "
                "graph over StagedState, or give the state of yours its keys"
            )
        attempt = current_attempt()
        async with self._memo.turn(None if attempt is None else attempt.task):
            return await self._advance(state, config, attempt)

    async def _advance(
        self, state: Mapping[str, Any], config: RunnableConfig | None, attempt: Attempt | None
    ) -> Update:
        log: Log = state["search"] or []
        asked = Asked.here(self.planner, state, config)
        thread = None if attempt is None else attempt.thread
        standing = _shelf.take(log, asked, thread, config)
        if standing is not None:
            step, search, begun = standing.step, standing.search, len(standing.search.log)
        else:
            taken = await self._take_up(state, log, config, attempt)
            if isinstance(taken, dict):
                return taken
            step, search, begun = taken
        await self._drive(search, attempt)
        done = self.planner.finish(step, search.outcome()) if search.done else {}
        if search.done and self._stage == "select":
            return {**done, "search": None}
        chunk = write_chunk(search.log[begun:], self.planner.engine.decode)
        if not search.done:
            _shelf.put(Standing(search, step, asked, [*log, chunk] if begun else [chunk], thread))
        return {**done, "search": [chunk] if begun or not log else Overwrite([chunk])}

    async def _take_up(
        self, state: Mapping[str, Any], log: Log, config: RunnableConfig | None, attempt: Attempt | None
    ) -> tuple[Step, Search, int] | Update:
        """The search of the step that `state` asks for, and how much of its log `state` has; the update if none is."""
        events = read_log(log, self.planner.engine.decode)
        if any(isinstance(event, Chosen) for event in events):  # a stage before this one ended it and gave its decision
            if self._stage == "select":
                await self._record(events)
            if self._stage != "expand":
                return {"search": None} if self._stage == "select" else {}
            state, events = {**state, "search": []}, []
        space = None if attempt is None else own_space(get_config())  # of the graph that has these stages
        step = self.planner.begin(state, config, key=None if space is None else partial(stage_key, space))
        if not isinstance(step, Step):
            return {**step, "search": None} if log else step
        events = self._under_way(events, step)
        left = self._left(attempt, events, step)
        if left is not None:
            return step, self.planner.search(step, left, told=len(left)), len(events)
        told = len(events) if step.audience is None else self._told(log, len(events))
        return step, self.planner.search(step, events, killed=False, told=told), len(events)

    async def _drive(self, search: Search, attempt: Attempt | None) -> None:
        """Do what this stage does; if the graph is to come to an end, end the search."""
        handle = SearchHandle.of(search, attempt, node=self.planner.name)
        enlist(handle)
        try:
            if attempt is not None:
                search.listen(attempt.heartbeat)  # as long as something arrives the stage is not idle
            if not search.done:  # else an attempt before this one failed after the search's end
                await self._work(search)
            if not search.done and handle.heed():
                await search.select()
            if search.done and self._stage == "select":
                await self._record(search.log)
        except BaseException:
            await search.aclose()
            if attempt is not None:
                self._memo.keep(attempt.task, Left(search.left(), {}, attempt.number))
            raise
        finally:
            delist(handle)

    async def _record(self, log: Sequence[Event]) -> None:
        if self._trace is not None:
            await Recorder(self._trace).append(log)

    def _under_way(self, events: list[Event], step: Step) -> list[Event]:
        """The log of the search under way; empty if `step` begins a new one, which only `expand` does."""
        if self._stage != "expand":
            if not events:
                raise SearchError(f"stage {self._stage!r} has no search under way; put an expand node before it")
            return events
        asked_for = events and isinstance(events[0], Opened) and events[0].root == step.request.task.root
        return events if asked_for else []  # another search was left when other messages came

    def _left(self, attempt: Attempt | None, events: list[Event], step: Step) -> list[Event] | None:
        """The log that an attempt at this task before this one left in this process, if it is what is asked for."""
        left = None if attempt is None else self._memo.take(attempt.task)
        if left is None or left.log[: len(events)] != events:
            return None
        opened = left.log[0]
        return left.log if isinstance(opened, Opened) and opened.root == step.request.task.root else None

    def _told(self, log: Log, events: int) -> int:
        """How many of the `events` of `log` were told to those who listen: what another node added was not."""
        for chunk in reversed(log if self._stage != "expand" else ()):
            added = read_log([chunk], self.planner.engine.decode)
            if not all(isinstance(event, (Judged, Pruned)) for event in added):
                break
            events -= len(added)
        return events

    async def _work(self, search: Search) -> None:
        if self._stage == "expand":
            await search.expand()
            return
        # NOTE: before the selection too: verdicts that another node gave leave expansions to be settled.
        await search.verify()
        if self._stage == "select":
            await search.select()


_shelf = Shelf()
"""Of all stages in this process."""


def make_expand_node(engine: Engine, *, dialect: Dialect, **settings: Unpack[Settings]) -> StageNode:
    """A node that samples what the strategy proposes for this round; it opens the search of a planning step.

    Like `make_plan_node` for `settings` and errors. All three stages must be given the same.
    """
    return StageNode("expand", _planner(engine, dialect, settings), None)


def make_verify_node(engine: Engine, *, dialect: Dialect, **settings: Unpack[Settings]) -> StageNode:
    """A node that asks the verifier about every thought without a verdict; `unjudged` and `judge` make another one."""
    return StageNode("verify", _planner(engine, dialect, settings), None)


def make_select_node(
    engine: Engine, *, dialect: Dialect, trace: str | Path | None = None, **settings: Unpack[Settings]
) -> StageNode:
    """A node that prunes and, when the search is over, returns the decision as `make_plan_node` does.

    `trace` names a file for the log of each search, which is written when this node comes to its end: that of one that
    a drain ended in a stage before only if the graph goes on.
    """
    return StageNode("select", _planner(engine, dialect, settings), None if trace is None else trace_path(trace))


def _planner(engine: Engine, dialect: Dialect, settings: Settings) -> Planner:
    # A stage waits for all it started. Where samples have no seeds there is no order that could be promised.
    return Planner.of(engine, dialect, {**settings, "barrier": engine.capabilities.seeds})
