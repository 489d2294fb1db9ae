"""The planning step as one node of a graph."""

from pathlib import Path
from typing import Any, Unpack

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.config import get_config
from langgraph.func import entrypoint, task

from tts_agent.dialect import Dialect
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.nodes.attempt import Attempt, Memo, current_attempt
from tts_agent.nodes.journal import Ask, Chunk, Conversation, Place
from tts_agent.nodes.loop import run_sync
from tts_agent.nodes.overrides import know
from tts_agent.nodes.planner import Planner, Settings, Step
from tts_agent.nodes.state import PlanState, Update
from tts_agent.search.driver import FLUSH_EVENTS, FLUSH_SECONDS
from tts_agent.search.run import GRANT
from tts_agent.trace.recorder import Recorder


class PlanNode(Runnable[PlanState, Update]):
    """Searches for the next decision; made by `make_plan_node`."""

    def __init__(
        self, planner: Planner, *, grant: float, trace: Path | None, flush_events: int, flush_seconds: float
    ) -> None:
        self.planner = planner
        self.name = planner.name
        self._grant, self._trace = grant, trace
        self._flush_events, self._flush_seconds = flush_events, flush_seconds
        self._memo = Memo()
        know(self, planner.name)

    def invoke(self, input: PlanState, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        attempt = current_attempt()
        step = self.planner.begin(input, config, key=attempt.task if attempt else None)
        if not isinstance(step, Step):
            return step

        @entrypoint()
        def search(_: dict[str, Any]) -> entrypoint.final[Update, None]:
            place = Place.find(get_config())
            talk = self._conversation(step, attempt, durable=place is not None)

            @task
            def journal() -> Chunk:
                return run_sync(talk.advance())

            try:
                for ask in talk.asks():
                    if ask is Ask.CHUNK:
                        talk.take(journal().result())
                    elif place is not None:
                        place.wait(talk.confirmed)
            except BaseException:
                run_sync(talk.aclose())
                self._memo.keep(attempt, talk.settled())
                raise
            return entrypoint.final(value=self.planner.finish(step, talk.outcome()), save=None)

        update: Update = search.invoke({}, ensure_config(config))
        return update

    async def ainvoke(self, input: PlanState, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        attempt = current_attempt()
        step = self.planner.begin(input, config, key=attempt.task if attempt else None)
        if not isinstance(step, Step):
            return step

        @entrypoint()
        async def search(_: dict[str, Any]) -> entrypoint.final[Update, None]:
            place = Place.find(get_config())
            talk = self._conversation(step, attempt, durable=place is not None)

            @task
            async def journal() -> Chunk:
                return await talk.advance()

            try:
                for ask in talk.asks():
                    if ask is Ask.CHUNK:
                        talk.take(await journal())
                    elif place is not None:
                        await place.await_(talk.confirmed)
            except BaseException:
                await talk.aclose()
                self._memo.keep(attempt, talk.settled())
                raise
            return entrypoint.final(value=self.planner.finish(step, talk.outcome()), save=None)

        update: Update = await search.ainvoke({}, ensure_config(config))
        return update

    def _conversation(self, step: Step, attempt: Attempt | None, *, durable: bool) -> Conversation:
        grant = self._grant if durable else None
        return Conversation(
            lambda log: self.planner.search(step, log, grant=grant),
            known=self._memo.take(attempt),
            decode=self.planner.engine.decode,
            recorder=None if self._trace is None else Recorder(self._trace),
            flush_events=self._flush_events,
            flush_seconds=self._flush_seconds,
        )


def make_plan_node(
    engine: Engine,
    *,
    dialect: Dialect,
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

    Raises `ConfigError` for settings that cannot work.
    """
    if not 0 < grant <= 1:
        raise ConfigError(f"grant={grant!r} is a share of each limit; choose one in (0, 1]")
    if flush_events < 1 or not flush_seconds > 0:
        raise ConfigError(
            f"flush_events={flush_events!r} must be at least 1 and flush_seconds={flush_seconds!r} positive"
        )
    planner = Planner.of(engine, dialect, settings)
    path = None if trace is None else Path(trace)
    return PlanNode(planner, grant=grant, trace=path, flush_events=flush_events, flush_seconds=flush_seconds)
