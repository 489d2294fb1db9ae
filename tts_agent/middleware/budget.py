"""A budget for any LangChain agent."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, ToolCallRequest
from langchain.agents.middleware.types import ExtendedModelResponse
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.types import Command

from tts_agent.budget import Amounts, Budget, fit
from tts_agent.errors import BudgetError, ConfigError
from tts_agent.middleware.bounds import PromptBound, estimate
from tts_agent.middleware.meter import CAPS, BudgetRefusal, Meter, current_meter, from_model, metering
from tts_agent.middleware.request import changed
from tts_agent.nodes.account import Account
from tts_agent.nodes.shared import Run, SharedBudget
from tts_agent.nodes.spent import BUDGETS, merge_budgets
from tts_agent.usage import ZERO, Prices, Usage

T = TypeVar("T")

LEAST_TOKENS = 64
"""An answer is not cut below this many tokens to make it fit; the call is refused instead."""

OUTPUT_TOKENS = 4096
"""What an answer may have where nobody says."""


class BudgetState(AgentState[Any]):
    """State of an agent with a budget; `tts_budgets` says what was spent."""

    tts_budgets: NotRequired[Annotated[dict[str, Any], merge_budgets]]


class BudgetMiddleware(AgentMiddleware[BudgetState, Any, Any]):
    """Holds an agent to a `Budget`: its model calls, those inside its tools, and the agents that tools run.

    A call is reserved at its worst case before it is made, settled at what the model reports, and the rest released, so
    that calls side by side cannot spend the same room. What fails, is cancelled or reports nothing is charged in full.
    When the budget refuses, the agent ends with a message that says so; a tool that asked for too much answers with the
    error. With `at_limit="raise"` a `BudgetRefusal` is raised instead. `result["tts_budgets"][name]` says what was
    spent, which `limit` refused, and why the budget is `soft`, if it is.

    * Calls are always hard. Tokens and dollars are hard where the answer has a cap and the prompt a bound: the cap is
      the model's own (4096 if it has none) or `output_tokens`, if that is less, cut to what is left, and passed as the
      argument that `cap` names (or that the model has among its fields: `max_tokens` and the like);
      `prompt_bound=TextBound()` counts bytes, `TextBound(tokenizer)` tokens. Otherwise they are soft: reserved at an
      estimate, charged as reported, and warned of once. What a call reserves is out of reach for those beside it until
      it ends, so a cap near what answers need lets more of them run.
    * Seconds are those in which models or tools of the run are at work. In an asynchronous agent they cancel what runs;
      in a synchronous one they are looked at between calls.
    * Dollars need `prices`, in which a `SharedBudget` may come with its own.
    * `per="run"` is one `invoke` and what resumes it, `per="thread"` a whole conversation. Give one `SharedBudget` to
      several agents (or the same middleware) to have them spend together. A sub-agent with a budget of its own is
      held to both.

    Not seen are calls that other middleware makes outside of a model or tool call (summaries), retries inside a
    provider's client, and threads that a tool starts without the context of their caller.
    """

    state_schema = BudgetState

    def __init__(
        self,
        budget: Budget | SharedBudget,
        *,
        per: Literal["run", "thread"] | None = None,
        prices: Prices | None = None,
        prompt_bound: PromptBound | None = None,
        output_tokens: int | None = None,
        cap: str | None = None,
        at_limit: Literal["message", "raise"] = "message",
        name: str | None = None,
    ) -> None:
        super().__init__()
        if output_tokens is not None and output_tokens < 1:
            raise ConfigError(f"output_tokens={output_tokens!r} must be at least 1")
        if at_limit not in ("message", "raise"):
            raise ConfigError(f"at_limit={at_limit!r} is unknown; known: 'message', 'raise'")
        if isinstance(budget, SharedBudget):
            if per is not None or name is not None:
                raise ConfigError(f"per={per!r} and name={name!r} are settings of a SharedBudget; set them there")
            self.budget = budget
        else:
            self.budget = SharedBudget(budget, per=per or "run", name="agent" if name is None else name, prices=prices)
        if self.budget.budget.commit_tokens is not None:
            raise BudgetError(
                f"commit_tokens={self.budget.budget.commit_tokens!r} has no effect on an agent, which ends with a "
                "message of ours; leave it out"
            )
        self._prices, self._prompt_bound, self._output_tokens = prices, prompt_bound, output_tokens
        self._cap, self._at_limit = cap, at_limit
        self.beside = 0
        """Prompt tokens beside the messages (tools), as they were seen last."""
        self._said: set[str] = set()

    @property
    def name(self) -> str:
        return f"BudgetMiddleware[{self.budget.name}]"

    # --- what LangChain calls

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        with self._metered(request.state) as visit:
            turn = _Turn(self, request, visit)
            while attempt := turn.attempt():
                try:
                    turn.take(handler(attempt))
                except BudgetRefusal as refusal:
                    turn.refuse(refusal)
            return turn.result()

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ExtendedModelResponse[Any]:
        with self._metered(request.state) as visit:
            turn = _Turn(self, request, visit)
            while attempt := turn.attempt():
                try:
                    turn.take(await visit.in_time(handler(attempt)))
                except BudgetRefusal as refusal:
                    turn.refuse(refusal)
            return turn.result()

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        with self._metered(request.state) as visit:
            before = visit.account.charged
            try:
                visit.meter.check(ZERO)
                result = handler(request)
            except BudgetRefusal as refusal:
                result = self._tool_error(refusal, request)
            return self._with_entry(result, visit, before)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        with self._metered(request.state) as visit:
            before = visit.account.charged
            try:
                visit.meter.check(ZERO)
                result = await visit.in_time(handler(request))
            except BudgetRefusal as refusal:
                result = self._tool_error(refusal, request)
            return self._with_entry(result, visit, before)

    # --- parts of both ways

    @contextmanager
    def _metered(self, state: Any) -> Iterator["_Visit"]:
        """Admit all model calls of this context in the account of the run."""
        outer = current_meter()
        accounts = () if outer is None else outer.accounts
        own = next((account for account in accounts if self.budget.owns(account)), None)
        if own is None:
            own = self.budget.open(state)
            accounts = (*accounts, own)
        meter = Meter(
            accounts,
            prompt_bound=self._prompt_bound or (outer.prompt_bound if outer else None),
            prices=self._prices or own.ledger.prices or (outer.prices if outer else None),
            output_tokens=self._output_tokens or OUTPUT_TOKENS,
            caps=(self._cap, *CAPS) if self._cap else CAPS,
            said=self._said,
        )
        with metering(meter):
            yield _Visit(own, meter, resumed=Run.current().resumed)

    def cap(self, request: ModelRequest[Any], visit: "_Visit") -> ModelRequest[Any]:
        """`request` with a cap on its answer that fits.

        Raises `BudgetRefusal` if not even the least answer fits and none can be stored.
        """
        meter = visit.meter
        argument = self._cap or next((name for name in CAPS if hasattr(request.model, name)), None)
        if argument is None or not meter.ledger.counts_tokens:
            return request
        own = request.model_settings.get(argument) or getattr(request.model, argument, None)
        wanted = own if isinstance(own, int) and own > 0 else OUTPUT_TOKENS
        wanted = min(wanted, self._output_tokens or wanted)
        least = min(LEAST_TOKENS, wanted)
        prompt = self.prompt_size(request, meter) + self.beside
        fits = fit(
            lambda _, tokens: meter.ledger.refuses(meter.bound(prompt, tokens)) is not None,
            1,
            wanted,
            least_tokens=least,
        )
        if fits is None and not visit.resumed:
            meter.check(meter.bound(prompt, least))
        tokens = least if fits is None else fits.max_tokens  # room may have come free just now
        return changed(request, model_settings={**request.model_settings, argument: tokens})

    @staticmethod
    def prompt_size(request: ModelRequest[Any], meter: Meter) -> int:
        """The bound for the messages of `request`, without tools and what inner middleware adds."""
        system = [request.system_message] if request.system_message else []
        return (meter.prompt_bound or estimate)([*system, *request.messages], {}).tokens

    def refusal_message(self, refusal: BudgetRefusal, account: Account) -> AIMessage:
        """What the agent says at its end. Raises the refusal itself if that was asked for."""
        if self._at_limit == "raise":
            raise refusal
        budget = refusal.budget or account.ledger.budget
        note = {"stop": "budget", "limit": refusal.unit, "budget": budget.to_json()}
        text = f"I have to stop here: {_reason(refusal.unit, budget)}."
        return AIMessage(text, response_metadata={"tts": note})

    def _tool_error(self, refusal: BudgetRefusal, request: ToolCallRequest) -> ToolMessage:
        if self._at_limit == "raise":
            raise refusal
        call = request.tool_call
        text = f"The tool was stopped: the {refusal.unit} limit of budget {refusal.name!r} is reached."
        return ToolMessage(text, tool_call_id=call["id"], name=call["name"], status="error")

    def entry(self, account: Account) -> dict[str, Any]:
        """The state's update: what this budget has spent by now."""
        return {BUDGETS: {self.budget.name: account.entry()}}

    def _with_entry(
        self, result: ToolMessage | Command[Any], visit: "_Visit", before: Amounts
    ) -> ToolMessage | Command[Any]:
        """`result`, and what was spent, if models were called since `before` was what had been charged."""
        visit.meter.close()
        if visit.account.charged == before:
            return result
        if isinstance(result, ToolMessage):
            return Command(update={"messages": [result], **self.entry(visit.account)})
        if isinstance(result, Command) and result.graph is None and isinstance(result.update, dict):
            return replace(result, update={**result.update, **self.entry(visit.account)})
        return result  # the next model call writes it


class _Visit:
    """One model or tool call of the agent: the `account` of its own budget, and the `meter` of the calls inside.

    If the run was `resumed`, answers may be stored that were paid before.
    """

    def __init__(self, account: Account, meter: Meter, *, resumed: bool) -> None:
        self.account, self.meter, self.resumed = account, meter, resumed

    async def in_time(self, work: Awaitable[T]) -> T:
        """What `work` gives. It is cancelled when the run's time is over; raises `BudgetRefusal` then."""
        left = self.meter.seconds_left()
        if left is None:
            return await work
        deadline = asyncio.timeout(left)
        try:
            async with deadline:
                return await work
        except TimeoutError:
            if not deadline.expired():
                raise
            self.meter.time_out()


class _Turn:
    """One model call of the agent, tried again once if the prompt was larger than it looked."""

    def __init__(self, middleware: BudgetMiddleware, request: ModelRequest[Any], visit: _Visit) -> None:
        self._middleware, self._request, self._visit = middleware, request, visit
        self._refusal: BudgetRefusal | None = None
        self._tries = 0
        self._response: ModelResponse[Any] | None = None

    def attempt(self) -> ModelRequest[Any] | None:
        """The request to try now; None once there is a response or a refusal that stands."""
        if self._response is not None or self._refusal is not None:
            return None
        self._tries += 1
        try:
            if self._visit.resumed:  # answers that are stored need no room, and the meter refuses what is called anew
                self._visit.meter.check_time()
            else:
                self._visit.meter.check(Usage(calls=1))
            return self._middleware.cap(self._request, self._visit)
        except BudgetRefusal as refusal:
            self._refusal = refusal
            return None

    def take(self, response: ModelResponse[Any]) -> None:
        """The attempt gave `response`, which may be what retries inside made of a refusal."""
        refusal = self._visit.meter.refused
        said = any(from_model(each) for each in response.result if isinstance(each, AIMessage))
        if refusal is None or said:
            self._response = response
        else:
            self.refuse(refusal)

    def refuse(self, refusal: BudgetRefusal) -> None:
        """The attempt was refused. It stands unless the cut was made for a prompt smaller than it turned out to be."""
        meter = self._visit.meter
        beside = meter.prompt - self._middleware.prompt_size(self._request, meter)
        if self._tries > 1 or meter.admitted or beside <= self._middleware.beside:
            self._refusal = refusal
        else:
            meter.forget()
        self._middleware.beside = max(beside, 0)

    def result(self) -> ExtendedModelResponse[Any]:
        """The response, or the message that ends the agent, and what was spent."""
        self._visit.meter.close()
        response = self._response
        if response is None:
            assert self._refusal is not None
            response = ModelResponse(result=[self._middleware.refusal_message(self._refusal, self._visit.account)])
        return ExtendedModelResponse(response, Command(update=self._middleware.entry(self._visit.account)))


def _reason(unit: str, budget: Budget) -> str:
    limit = budget.to_json().get(unit)
    if limit is None:
        return f"the {unit} limit of a budget around this agent is reached"
    return f"the budget of {limit:,} {unit.replace('_', ' ')} leaves no room for another call"
