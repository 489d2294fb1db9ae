"""A tree of thoughts before the next action of an agent, on an engine that continues in the middle of a turn."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, Unpack

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import ExtendedModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langgraph.types import Command

from tts_agent.budget import Ledger
from tts_agent.dialect import Dialect
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.events import Event
from tts_agent.middleware.meter import FREE, current_meter
from tts_agent.middleware.request import changed
from tts_agent.nodes.account import JointLedger
from tts_agent.nodes.attempt import KEPT
from tts_agent.nodes.plan import PlanNode
from tts_agent.nodes.planner import Planner, Settings, Step
from tts_agent.nodes.state import Update
from tts_agent.nodes.transformer import TTSTransformer
from tts_agent.prefix import Prefix
from tts_agent.search import Search
from tts_agent.search.driver import FLUSH_EVENTS, FLUSH_SECONDS
from tts_agent.search.run import GRANT


class TreeSearchState(AgentState[Any]):
    """State of an agent that plans by search; `tts` holds its memory, as in `PlanState`."""

    tts: NotRequired[dict[str, Any]]


class TreeSearchMiddleware(AgentMiddleware[TreeSearchState, Any, Any]):
    """Decides with a search on `engine` instead of a call of the agent's model.

    The conversation is read and the decision written by `dialect`; the other settings are those of `make_plan_node`
    (`strategy`, `verifier`, `budget` of a step, ...). What a step computed is carried over to the next, as in a plan
    node. The decision goes through the middleware inside this one and through structured output as if the model had
    said it. For limits of a run put a `BudgetMiddleware` around (before) this one; the search is charged to it.

    Without a decision the agent ends with a message that says why, and without structured output. With a checkpointer
    the search is journaled as in a plan node: an agent that was killed goes on with `invoke(None, config)`, and what
    was settled is neither sampled nor charged again.
    """

    state_schema = TreeSearchState
    transformers = (TTSTransformer,)

    def __init__(
        self,
        engine: Engine,
        *,
        dialect: Dialect,
        trace: str | Path | None = None,
        grant: float = GRANT,
        flush_events: int = FLUSH_EVENTS,
        flush_seconds: float = FLUSH_SECONDS,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__()
        if settings.get("run_budget") is not None:
            raise ConfigError(f"run_budget={settings['run_budget']!r}: an agent's run has a BudgetMiddleware; add one")
        self._node = PlanNode(
            AgentPlanner.of(engine, dialect, settings),
            trace=trace,
            grant=grant,
            flush_events=flush_events,
            flush_seconds=flush_seconds,
        )

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        update = self._node.invoke(_state(request))
        return _memorised(handler(_said(request, update)) if update["messages"] else _undecided(update), update)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ExtendedModelResponse[Any]:
        update = await self._node.ainvoke(_state(request))
        return _memorised(await handler(_said(request, update)) if update["messages"] else _undecided(update), update)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlanner(Planner):
    """Plans in the account of the agent around it."""

    charged: dict[str, Ledger] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Ledgers of the newest searches by the keys of their steps. The node of a step may run again, even after its end;
    then a log tells again what was charged, so it is taken back."""

    # NOTE: a dataclass with slots is another class than the one its methods were written in, so there is no super().

    def begin(
        self, state: Any, config: RunnableConfig | None = None, *, key: Callable[[str, Prefix], str] | None = None
    ) -> Step | Update:
        """See `Planner.begin`."""
        step, meter = Planner.begin(self, state, config, key=key), current_meter()
        if not isinstance(step, Step) or meter is None:
            return step
        return replace(step, ledger=Ledger(step.ledger.budget, name="step", parent=meter.scope, prices=self.prices))

    def search(self, step: Step, log: Sequence[Event], **options: Any) -> Search:
        """See `Planner.search`. Raises `BudgetRefusal` if the agent's budget leaves no room for a first decision."""
        around = _around(step.ledger)
        with step.ledger.held():
            before = self.charged.pop(step.key, None)
            if before is not None and around is not None and log:
                known = _around(before)
                for run in around.runs:
                    if known is not None and run in known.runs:
                        run.withdraw(before)
            if around is not None and not log and self.short(step):
                self._refuse(step)
            search = Planner.search(self, step, log, **options)
            self.charged[step.key] = search.ledger
            while len(self.charged) > KEPT:
                del self.charged[next(iter(self.charged))]
            return search

    def _refuse(self, step: Step) -> None:
        """Raise the refusal of the agent's budget that leaves no room for the decision of `step`, if one does.

        The step's own may do so too, which the search reports.
        """
        meter = current_meter()
        assert meter is not None, "who asked for the step is metered"
        meter.check(step.ledger.priced(self.least(step)))


def _around(ledger: Ledger) -> JointLedger | None:
    """The scope in the accounts of the agent's runs that the ledger of a step stands in."""
    scope = ledger.parent
    while scope is not None and not isinstance(scope, JointLedger):
        scope = scope.parent
    return scope


def _state(request: ModelRequest[Any]) -> Any:
    """The state of a plan node."""
    system = [request.system_message] if request.system_message else []
    return {"messages": [*system, *request.messages], "tts": request.state.get("tts")}


def _undecided(update: Update) -> ModelResponse[Any]:
    """What the agent ends with if nothing was decided. It is no answer, so nobody reads structured output in it."""
    outcome = update["tts"]["outcome"]
    why = f"the {outcome['limit']} limit is reached" if outcome["limit"] else outcome["stop"]
    note = {"stop": outcome["stop"], "limit": outcome["limit"]}
    return ModelResponse(result=[AIMessage(f"I found no next step: {why}.", response_metadata={"tts": note})])


class Decision(BaseChatModel):
    """Says what was decided already."""

    message: AIMessage

    @property
    def _llm_type(self) -> str:
        return FREE

    def bind_tools(self, tools: Any, **kwargs: Any) -> "Decision":
        """Tools change nothing of what was decided."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.message)])


def _said(request: ModelRequest[Any], update: Update) -> ModelRequest[Any]:
    return changed(request, model=Decision(message=update["messages"][0], disable_streaming=True))


def _memorised(response: ModelResponse[Any], update: Update) -> ExtendedModelResponse[Any]:
    return ExtendedModelResponse(response, Command(update={"tts": update["tts"]}))
