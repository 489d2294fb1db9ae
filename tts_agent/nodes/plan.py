"""The planning step as one node of a graph."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.config import get_config
from langgraph.constants import TAG_HIDDEN
from langgraph.errors import GraphBubbleUp
from langgraph.func import entrypoint, task
from langgraph.types import interrupt

from tts_agent.dialect import Dialect
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.loop import run_sync
from tts_agent.nodes.attempt import Attempt, Memo, call_key, current_attempt
from tts_agent.nodes.journal import Ask, Chunk, Conversation
from tts_agent.nodes.place import Attempts, Place, own_space
from tts_agent.nodes.planner import Planner, Settings, Step
from tts_agent.nodes.review import Review, Wanted, check, shown
from tts_agent.nodes.shared import Run
from tts_agent.nodes.state import PlanState, Update
from tts_agent.search import Search
from tts_agent.search.driver import FLUSH_EVENTS, FLUSH_SECONDS
from tts_agent.search.run import GRANT
from tts_agent.trace.recorder import Recorder, trace_path

WORKERS = 3
"""LangGraph needs as many for an entrypoint, a task of it, and the wait for that task."""


class Ended(TypedDict):
    """What a search leaves with the checkpointer at its end, besides its journal."""

    of: str  # the key of the plan call
    space: str  # where the newest part of the journal lies
    edit: AIMessage | None  # the decision that a reviewer wrote


class PlanNode(Runnable[PlanState, Update]):
    """Searches for the next decision; made by `make_plan_node`, which says what the settings mean."""

    def __init__(
        self,
        planner: Planner,
        *,
        review: Wanted | None = None,
        trace: str | Path | None = None,
        grant: float = GRANT,
        flush_events: int = FLUSH_EVENTS,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        if not 0 < grant <= 1:
            raise ConfigError(f"grant={grant!r} is a share of each limit; choose one in (0, 1]")
        if flush_events < 1 or not flush_seconds > 0:
            raise ConfigError(
                f"flush_events={flush_events!r} must be at least 1 and flush_seconds={flush_seconds!r} positive"
            )
        check(review)
        self.planner = planner
        self._review = review
        self.name = planner.name
        self._grant, self._trace = grant, None if trace is None else trace_path(trace)
        self._flush_events, self._flush_seconds = flush_events, flush_seconds
        self._memo = Memo()
        planner.enrol(self)

    def invoke(self, input: PlanState, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        attempt = current_attempt()
        step = self.planner.begin(input, config, key=partial(call_key, attempt.task) if attempt else None)
        if not isinstance(step, Step):
            return step
        call, again = None if attempt is None else step.key, self._again(attempt)

        found: list[Update] = []

        @entrypoint()
        def search(_: dict[str, Any]) -> entrypoint.final[Ended, None]:
            place = self._place()
            talk = self._conversation(step, attempt, call, durable=place is not None)

            @task
            def journal() -> Chunk:
                return run_sync(talk.advance())

            try:
                for ask in talk.asks():
                    if ask is Ask.CHUNK:
                        talk.take(journal().result())
                    elif ask is Ask.RECALL:
                        talk.recall(place.others.stored() if place is not None and again else ())
                    elif ask is Ask.REVIEW:
                        talk.answer(interrupt(talk.question()))
                    elif place is not None:
                        place.wait(talk.confirmed)
                found.append(self.planner.finish(step, talk.outcome(), edit=talk.edit))
            except GraphBubbleUp:  # a reviewer is asked: the search is done, and its log is with the checkpointer
                talk.leave()
                raise
            except BaseException:
                try:
                    run_sync(talk.aclose())
                finally:
                    self._memo.keep(call, talk.leave())
                raise
            talk.leave()
            return entrypoint.final(value=self._ended(step, talk), save=None)

        while True:
            ended = search.invoke({}, hidden(config))
            if found:
                return found[0]
            if ended["of"] == step.key:  # else LangGraph gave back another call of the task
                stored = Attempts.of(ensure_config(config), ended["space"]).stored()
                return self._told(step, attempt, call, stored, ended["edit"])

    async def ainvoke(self, input: PlanState, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        attempt = current_attempt()
        step = self.planner.begin(input, config, key=partial(call_key, attempt.task) if attempt else None)
        if not isinstance(step, Step):
            return step
        call, again = None if attempt is None else step.key, self._again(attempt)

        found: list[Update] = []

        @entrypoint()
        async def search(_: dict[str, Any]) -> entrypoint.final[Ended, None]:
            place = self._place()
            talk = self._conversation(step, attempt, call, durable=place is not None)

            @task
            async def journal() -> Chunk:
                return await talk.advance()

            try:
                for ask in talk.asks():
                    if ask is Ask.CHUNK:
                        talk.take(await journal())
                    elif ask is Ask.RECALL:
                        talk.recall(await place.others.astored() if place is not None and again else ())
                    elif ask is Ask.REVIEW:
                        talk.answer(interrupt(talk.question()))
                    elif place is not None:
                        await place.await_(talk.confirmed)
                found.append(self.planner.finish(step, talk.outcome(), edit=talk.edit))
            except GraphBubbleUp:
                talk.leave()
                raise
            except BaseException:
                try:
                    await talk.aclose()
                finally:
                    self._memo.keep(call, talk.leave())
                raise
            talk.leave()
            return entrypoint.final(value=self._ended(step, talk), save=None)

        async with self._memo.turn(call):
            while True:
                ended = await search.ainvoke({}, hidden(config))
                if found:
                    return found[0]
                if ended["of"] == step.key:
                    stored = await Attempts.of(ensure_config(config), ended["space"]).astored()
                    return self._told(step, attempt, call, stored, ended["edit"])

    def _told(
        self, step: Step, attempt: Attempt | None, call: str | None, chunks: Sequence[Any], edit: AIMessage | None
    ) -> Update:
        """The update that a search made in a process that died before the graph had it.

        The entrypoint returns little, because LangGraph stores what it returns besides the update of the state.
        """
        talk = self._conversation(step, attempt, call, durable=True)
        talk.recall(chunks)
        return self.planner.finish(step, talk.told(), edit=edit)

    @staticmethod
    def _again(attempt: Attempt | None) -> bool:
        """Whether there was an attempt before this one, in this process or another."""
        return attempt is not None and (attempt.number > 1 or Run.current().resumed)

    @staticmethod
    def _ended(step: Step, talk: Conversation) -> Ended:
        return {"of": step.key, "space": own_space(get_config()), "edit": talk.edit}

    def _place(self) -> Place | None:
        """Where the journal of the running entrypoint lies. Raises `ConfigError` if a review could not be resumed."""
        config = get_config()
        if self._review is not None and not Place.stores(config):
            raise ConfigError(
                f"node {self.name!r} asks a human (review=...), and nothing here stores what is asked: compile the "
                "graph with a checkpointer"
            )
        return Place.find(config)

    def _conversation(self, step: Step, attempt: Attempt | None, call: str | None, *, durable: bool) -> Conversation:
        grant = self._grant if durable else None
        return Conversation(
            lambda log: self.planner.search(step, log, grant=grant),
            node=self.planner.name,
            of=step.key,
            attempt=attempt,
            left=self._memo.take(call),
            review=lambda search: self._looked_at(search, step),
            decode=self.planner.engine.decode,
            recorder=None if self._trace is None else Recorder(self._trace),
            flush_events=self._flush_events,
            flush_seconds=self._flush_seconds,
        )

    def _looked_at(self, search: Search, step: Step) -> Review | None:
        """The review of a search that is done, if a human is to look at it."""
        number = shown(self._review, search.outcome())
        if not number:
            return None
        return Review(search, step.request, self.planner.dialect, node=self.planner.name, number=number)


def make_plan_node(
    engine: Engine,
    *,
    dialect: Dialect,
    review: Wanted | None = None,
    trace: str | Path | None = None,
    grant: float = GRANT,
    flush_events: int = FLUSH_EVENTS,
    flush_seconds: float = FLUSH_SECONDS,
    **settings: Unpack[Settings],
) -> PlanNode:
    """A node that searches for the next decision and returns it as an `AIMessage`, its tool calls included.

    For a state like `PlanState`: `graph.add_node("plan", make_plan_node(...))`. It works with `invoke` and `ainvoke`,
    also inside a running loop. `settings` are described by `Settings`. Running out of budget is a result, told by
    `state["tts"]["outcome"]`; without any decision no message is added. `trace` names a file that the logs of all
    steps are appended to.

    With a checkpointer the search's log is stored every `flush_events` events or `flush_seconds` seconds, and a run
    that was killed goes on from there with `invoke(None, config)`: what is stored is neither sampled nor charged
    again, and at most the share `grant` of each limit is charged as lost. When the engine gives up
    (`EngineUnavailable`), everything known is stored first.

    What ends a search before its time: its budget; `running_searches(...)[0].stop()`; a graph that is asked to drain
    (`RunControl.request_drain`). Each leaves the best answer so far, and `state["tts"]["outcome"]["cut"]` says which it
    was. A `timeout=` of the node or a cancelled run aborts what the engine works on, and can be resumed; so can, in
    the same process without losing anything, what a `retry_policy` runs again.

    With `review` a human decides, by an interrupt of the graph (see `review.py` for the question and the answers): a
    number of candidates to choose from, or a function that is given the `Outcome` and returns whether, or how many.

    Raises `ConfigError` for settings that cannot work.
    """
    return PlanNode(
        Planner.of(engine, dialect, settings),
        review=review,
        trace=trace,
        grant=grant,
        flush_events=flush_events,
        flush_seconds=flush_seconds,
    )


def hidden(config: RunnableConfig | None) -> RunnableConfig:
    """`config` for what is inside of a node: streams of updates and of sub-graphs, and traces, do not show it."""
    settings = ensure_config(config)
    tagged: RunnableConfig = {**settings, "tags": [*settings.get("tags", ()), TAG_HIDDEN]}
    most = tagged.get("max_concurrency")
    return tagged if most is None else {**tagged, "max_concurrency": max(most, WORKERS)}
