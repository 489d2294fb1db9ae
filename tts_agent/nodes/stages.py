"""The planning step as three nodes, so that a graph shows its rounds and any stage can be replaced.

A round is expand, verify, select. All three are the same search as in `make_plan_node`, over the log in the state, and
every stage waits for the slowest of what it started. For a `StagedState`::

    expand --> verify --> select --> expand (another round), or the decision
      |
      +------------------------------> the answer, if there is nothing left to decide

A kill repeats the stage that it interrupted, and what that stage had used is not charged; where a limit must hold
across kills, use `make_plan_node`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack

from langchain_core.runnables import Runnable, RunnableConfig

from tts_agent.dialect import Dialect
from tts_agent.engines.base import Engine
from tts_agent.errors import SearchError
from tts_agent.events import Decode, Judged, Merged, Pruned, Sampled, log_from_json, log_to_json, to_json
from tts_agent.nodes.loop import run_sync
from tts_agent.nodes.overrides import know
from tts_agent.nodes.planner import Planner, Settings, Step
from tts_agent.nodes.state import StagedState, Update, read_state
from tts_agent.search import Search
from tts_agent.thought import Unverified, Verdict
from tts_agent.trace.recorder import Recorder
from tts_agent.tree import Branch, ThoughtTree
from tts_agent.usage import ZERO, Usage
from tts_agent.verifiers.base import Scope


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
        step = self.planner.begin(state, config)
        if not isinstance(step, Step):
            return step
        decode = self.planner.engine.decode
        log = log_from_json(state.get("search", []), decode)
        if not log and self._stage != "expand":
            raise SearchError(f"stage {self._stage!r} has no search under way; put an expand node before it")
        search = self.planner.search(step, log, killed=False)
        try:
            await self._work(search)
        except BaseException:
            await search.aclose()
            raise
        if not search.done:
            return {"search": log_to_json(search.log[len(log) :], decode)}
        if self._trace is not None:
            await Recorder(self._trace).append(search.log)
        return {**self.planner.finish(step, search.outcome()), "search": None}

    async def _work(self, search: Search) -> None:
        if self._stage == "expand":
            await search.expand()
            return
        # NOTE: before the selection too: verdicts that another node gave leave expansions to be settled.
        await search.verify()
        if self._stage == "select":
            await search.select()


def make_expand_node(engine: Engine, *, dialect: Dialect, **settings: Unpack[Settings]) -> StageNode:
    """A node that samples what the strategy proposes for this round; it opens the search of a planning step.

    Like `make_plan_node` for `settings` and errors. All three stages must be given the same.
    """
    return StageNode("expand", Planner.of(engine, dialect, {**settings, "barrier": True}), None)


def make_verify_node(engine: Engine, *, dialect: Dialect, **settings: Unpack[Settings]) -> StageNode:
    """A node that asks the verifier about every thought without a verdict; `unjudged` and `judge` make another one."""
    return StageNode("verify", Planner.of(engine, dialect, {**settings, "barrier": True}), None)


def make_select_node(
    engine: Engine, *, dialect: Dialect, trace: str | Path | None = None, **settings: Unpack[Settings]
) -> StageNode:
    """A node that prunes and, when the search is over, returns the decision as `make_plan_node` does."""
    return StageNode(
        "select", Planner.of(engine, dialect, {**settings, "barrier": True}), None if trace is None else Path(trace)
    )


class OutsideVerifier:
    """Stands for a verifier that is a node of the graph: its `name`, and a bound on what one verdict may use.

    Thoughts that the node leaves out are unverified, and charged at the bound.
    """

    scope: ClassVar[Scope] = "siblings"

    def __init__(self, *, name: str = "outside", bound: Usage = ZERO) -> None:
        self.name = name
        self._bound = bound

    def bound(self, prompt: int) -> Usage:
        return self._bound

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        return [Unverified("the graph gave no verdict", self.name, self._bound) for _ in branches]


def unjudged(state: Mapping[str, Any], decode: Decode) -> list[Branch]:
    """The branches of the search under way that wait for a verdict, in the order of ids. `decode` is the engine's."""
    log = log_from_json(state["search"], decode)
    tree = ThoughtTree(log)
    settled = {event.thought for event in log if isinstance(event, (Judged, Pruned, Merged))}
    waiting = (event.thought for event in log if isinstance(event, Sampled) and event.thought.id not in settled)
    return [tree.branch(thought.id) for thought in waiting if thought.status in ("open", "complete")]


def judge(branches: Sequence[Branch], verdicts: Sequence[Verdict | Unverified]) -> Update:
    """The state's update that gives `branches` these `verdicts`, one each."""
    pairs = zip(branches, verdicts, strict=True)
    return {"search": [to_json(Judged(branch.thought.id, verdict)) for branch, verdict in pairs]}
