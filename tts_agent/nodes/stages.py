"""The planning step as three nodes, so that a graph shows its rounds and any stage can be replaced.

A round is expand, verify, select. All three are the same search as in `make_plan_node`, over the log in the state, and
every stage waits for the slowest of what it started. For a `StagedState`::

    expand --> verify --> select --> expand (another round), or the decision
      |
      +------------------------------> the answer, if there is nothing left to decide

A kill repeats the stage that it interrupted, and what that stage had used is not charged; where a limit must hold
across kills, use `make_plan_node`.
"""

from pathlib import Path
from typing import Any, Literal, Unpack

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.types import Overwrite

from tts_agent.dialect import Dialect
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError, SearchError
from tts_agent.events import Event, Judged, Opened, Pruned
from tts_agent.loop import run_sync
from tts_agent.nodes.attempt import current_attempt
from tts_agent.nodes.overrides import know
from tts_agent.nodes.planner import Planner, Settings, Step
from tts_agent.nodes.standing import Asked, Shelf, Standing
from tts_agent.nodes.state import Log, StagedState, Update, read_log, read_state, write_chunk
from tts_agent.search import Search
from tts_agent.trace.recorder import Recorder


class StageNode(Runnable[StagedState, Update]):
    """One stage of a planning step; made by `make_expand_node`, `make_verify_node` and `make_select_node`."""

    def __init__(self, stage: Literal["expand", "verify", "select"], planner: Planner, trace: Path | None) -> None:
        self.name = stage
        self.planner = planner
        self._stage = stage
        self._trace = trace
        know(self, planner.name)

    def invoke(self, input: StagedState, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        return run_sync(self.ainvoke(input, config))

    async def ainvoke(self, input: StagedState, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        state = read_state(input)
        if "search" not in state:
            raise ConfigError(
                f"the state has no 'search', where stage {self._stage!r} looks for the search under way; build the "
                "graph over StagedState, or give the state of yours its keys"
            )
        log: Log = state["search"] or []
        asked = Asked.here(self.planner, state, config)
        standing = _shelf.take(log, asked, config)
        if standing is not None:
            step, search = standing.step, standing.search
            begun = len(search.log)
        else:
            found = self.planner.begin(state, config)
            if not isinstance(found, Step):
                return {**found, "search": None} if log else found
            step, events = found, self._read(log, found)
            told = len(events) if step.audience is None else self._told(log, len(events))
            search, begun = self.planner.search(step, events, killed=False, told=told), len(events)
        if (attempt := current_attempt()) is not None:
            search.listen(attempt.heartbeat)  # as long as something arrives the stage is not idle
        try:
            await self._work(search)
        except BaseException:
            await search.aclose()
            raise
        if search.done:
            if self._trace is not None:
                await Recorder(self._trace).append(search.log)
            return {**self.planner.finish(step, search.outcome()), "search": None}
        chunk = write_chunk(search.log[begun:], self.planner.engine.decode)
        _shelf.put(Standing(search, step, asked, [*log, chunk] if begun else [chunk]))
        return {"search": [chunk] if begun or not log else Overwrite([chunk])}

    def _read(self, log: Log, step: Step) -> list[Event]:
        """The log of the search under way; empty if `step` begins a new one, which only `expand` does."""
        events = read_log(log, self.planner.engine.decode)
        if self._stage != "expand":
            if not events:
                raise SearchError(f"stage {self._stage!r} has no search under way; put an expand node before it")
            return events
        asked_for = events and isinstance(events[0], Opened) and events[0].root == step.request.task.root
        return events if asked_for else []  # another search was left when other messages came

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
    """A node that prunes and, when the search is over, returns the decision as `make_plan_node` does."""
    return StageNode("select", _planner(engine, dialect, settings), None if trace is None else Path(trace))


def _planner(engine: Engine, dialect: Dialect, settings: Settings) -> Planner:
    # A stage waits for all it started. Where samples have no seeds there is no order that could be promised.
    return Planner.of(engine, dialect, {**settings, "barrier": engine.capabilities.seeds})
