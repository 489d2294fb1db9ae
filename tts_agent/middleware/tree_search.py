"""A tree of thoughts before the next action of an agent, on an engine that continues in the middle of a turn."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, NotRequired, Unpack

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import ExtendedModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.types import Command

from tts_agent.budget import Ledger
from tts_agent.dialect import Dialect
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.middleware.meter import FREE, BudgetRefusal, current_meter
from tts_agent.nodes.loop import run_sync
from tts_agent.nodes.overrides import know
from tts_agent.nodes.planner import Planner, Settings, Step
from tts_agent.nodes.state import Update
from tts_agent.nodes.transformer import TTSTransformer
from tts_agent.outcome import Outcome


class TreeSearchState(AgentState[Any]):
    """State of an agent that plans by search; `tts` holds its memory, as in `PlanState`."""

    tts: NotRequired[dict[str, Any]]


class TreeSearchMiddleware(AgentMiddleware[TreeSearchState, Any, Any]):
    """Decides with a search on `engine` instead of a call of the agent's model.

    The conversation is read and the decision written by `dialect`; `settings` are those of `make_plan_node`
    (`strategy`, `verifier`, `budget` of a step, ...). What a step computed is carried over to the next, as in a plan
    node. The decision goes through the middleware inside this one and through structured output as if the model had
    said it. For limits of a run put a `BudgetMiddleware` around (before) this one; the search is charged to it.

    Without a decision the agent ends with a message that says why. A step that is interrupted is searched anew when it
    is resumed; where that must not be paid twice, plan in a graph (`create_planning_agent`).
    """

    state_schema = TreeSearchState
    transformers = (TTSTransformer,)

    def __init__(self, engine: Engine, *, dialect: Dialect, **settings: Unpack[Settings]) -> None:
        super().__init__()
        if settings.get("run_budget") is not None:
            raise ConfigError(f"run_budget={settings['run_budget']!r}: an agent's run has a BudgetMiddleware; add one")
        self.planner = Planner.of(engine, dialect, settings)
        know(self, self.planner.name)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        update = run_sync(self._decide(request))
        return _memorised(handler(_said(request, update)), update)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ExtendedModelResponse[Any]:
        update = await self._decide(request)
        return _memorised(await handler(_said(request, update)), update)

    async def _decide(self, request: ModelRequest[Any]) -> Update:
        """What a plan node would write into the state."""
        system = [request.system_message] if request.system_message else []
        state: Mapping[str, Any] = {"messages": [*system, *request.messages], "tts": request.state.get("tts")}
        step = self.planner.begin(state)
        if not isinstance(step, Step):
            return step
        meter = current_meter()
        if meter is not None:
            around = meter.ledger
            step = replace(
                step, ledger=Ledger(step.ledger.budget, name="step", parent=around, prices=self.planner.prices)
            )
            if unit := self.planner.short(step):
                raise BudgetRefusal(unit, around.name)
        update = self.planner.finish(step, await self._search(step))
        if not update["messages"]:
            outcome = update["tts"]["outcome"]
            why = f"the {outcome['limit']} limit is reached" if outcome["limit"] else outcome["stop"]
            note = {"stop": outcome["stop"], "limit": outcome["limit"]}
            message = AIMessage(f"I found no next step: {why}.", response_metadata={"tts": note})
            update = {**update, "messages": [message]}
        return update

    async def _search(self, step: Step) -> Outcome:
        search = self.planner.search(step, ())
        try:
            while not search.done:
                await search.chunk()
                search.confirm()
        finally:
            await search.aclose()
        return search.outcome()


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
    return request.override(model=Decision(message=update["messages"][0], disable_streaming=True))


def _memorised(response: ModelResponse[Any], update: Update) -> ExtendedModelResponse[Any]:
    return ExtendedModelResponse(response, Command(update={"tts": update["tts"]}))
