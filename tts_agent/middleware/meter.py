"""Every model call in a context is reserved before it begins and settled when it ends.

LangChain asks the handlers of a call before it calls the model, and what they raise stops the call. So a call is
admitted where it happens, however it came about: through middleware that retries or samples several times, in a tool,
or in an agent that a tool runs. For those who listen to the graph a call that is refused ends with the refusal.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, NoReturn
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.callbacks.manager import handle_event
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import ensure_config
from langchain_core.tracers.context import register_configure_hook

from tts_agent.budget import Budget, Ledger
from tts_agent.errors import BudgetError
from tts_agent.loop import in_a_loop
from tts_agent.middleware.bounds import PromptBound, estimate
from tts_agent.middleware.tally import current_tally
from tts_agent.nodes.account import Account, JointLedger
from tts_agent.usage import ZERO, Prices, Usage

CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "max_new_tokens")
"""Names that chat models have for the most tokens of an answer."""

FREE = "tts-agent-decision"
"""Type of a model that only repeats what was decided, which costs nothing."""


class BudgetRefusal(BudgetError):
    """A budget has no room for a model call, which was not made.

    `unit` says which limit refused it, `name` of which budget, and `budget` what that allows, where it is known.
    """

    def __init__(self, unit: str, name: str, budget: Budget | None = None) -> None:
        super().__init__(f"the {unit} limit of budget {name!r} leaves no room for another model call; raise the limit")
        self.unit, self.name, self.budget = unit, name, budget


class Meter(BaseCallbackHandler):
    """Admits and settles the model calls of one context in all its accounts; active inside `metering()`."""

    raise_error = True
    run_inline = True
    ignore_chain = ignore_agent = ignore_retriever = ignore_retry = ignore_custom_event = True

    def __init__(
        self,
        accounts: Sequence[Account],
        *,
        prompt_bound: PromptBound | None = None,
        prices: Prices | None = None,
        output_tokens: int,
        caps: Sequence[str] = CAPS,
        said: set[str] | None = None,
    ) -> None:
        self.accounts = tuple(accounts)
        self.ledger = JointLedger(self.accounts)
        self.prompt_bound, self.prices, self.output_tokens = prompt_bound, prices, output_tokens
        self.prompt = 0
        """Tokens of the largest prompt that was asked for, as it was reserved."""
        self.admitted = 0
        """Calls that were let through."""
        self.refused: BudgetRefusal | None = None
        """Why the newest call was not let through, if it was not."""
        self._caps = caps
        self._said = set() if said is None else said  # warnings given before
        self._open: dict[int, tuple[Usage, Ledger]] = {}  # what was reserved, and in which scope
        self._limits: dict[Account, str] = {}  # what refused calls here, which the accounts know once it stands
        self._late: list[Callable[[], None]] = []  # to be told once LangChain has told what began

    @property
    def scope(self) -> Ledger:
        """The ledger to which work is charged that begins in this context."""
        tally = current_tally()
        return self.ledger if tally is None else tally.scope(self.ledger)

    # --- LangChain calls these

    def on_chat_model_start(
        self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        try:
            self._admit(run_id.int, messages[0], _params(serialized, kwargs))
        except Exception as error:
            self._tell(error, run_id, kwargs)
            raise

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        try:
            self._admit(run_id.int, [HumanMessage(prompt) for prompt in prompts], _params(serialized, kwargs))
        except Exception as error:
            self._tell(error, run_id, kwargs)
            raise

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        with self.ledger.held():
            opened = self._open.pop(run_id.int, None)
            if opened is None:
                return  # given up before, and charged in full
            bound, scope = opened
            scope.charge(run_id.int, self._used(response, bound))
            scope.release(run_id.int)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._lose(run_id.int)

    # --- admitting

    def _admit(self, reservation: int, messages: Sequence[BaseMessage], params: Mapping[str, Any]) -> None:
        if params.get("_type") == FREE:
            return
        bound = self._bound(messages, params)
        with self.ledger.held():
            self.check(bound)
            scope = self.scope
            scope.reserve(reservation, bound)
            self._open[reservation] = bound, scope
            self.admitted += 1
            self.refused = None

    def _bound(self, messages: Sequence[BaseMessage], params: Mapping[str, Any]) -> Usage:
        """The most that a call may use, as far as that is known."""
        if not self.ledger.counts_tokens:
            return Usage(calls=1)
        size = (self.prompt_bound or estimate)(messages, params)
        self.prompt = max(self.prompt, size.tokens)
        if not size.sure:
            self.note(
                "the size of a prompt is estimated before the call; declare it with prompt_bound=TextBound()"
                if self.prompt_bound is None
                else "a message holds something that is no text, whose size is not known before the call"
            )
        cap = next(
            (params[name] for name in self._caps if isinstance(params.get(name), int) and params[name] > 0), None
        )
        if cap is None:
            self.note("a model was called without a cap on its answer; give it one, or name its argument with cap=")
        answers = max(int(params.get("n") or 1), 1)
        return self.bound(size.tokens, (cap or self.output_tokens) * answers)

    def bound(self, prompt: int, generated: int) -> Usage:
        """The most that one call with such a prompt and such an answer may use."""
        return self.priced(Usage(prompt_computed=prompt, generated=generated, decoded=generated, calls=1))

    def check(self, bound: Usage) -> None:
        """Raise `BudgetRefusal` if an account has no room for `bound`, or no time left: the innermost that refuses."""
        with self.ledger.held():
            if self.ledger.refuses(bound) is not None:
                bound = self.ledger.priced(bound)
                for account in reversed(self.accounts):
                    if unit := account.ledger.refuses(bound):
                        self._refuse(account, unit)
            self.check_time()

    def check_time(self) -> None:
        """Raise `BudgetRefusal` if an account has no time left."""
        left = self.seconds_left()
        if left is not None and left <= 0:
            self.time_out()

    def time_out(self) -> NoReturn:
        """Raise the refusal of the account whose time ends first; one of them has a limit."""
        timed = [(left, account) for account in self.accounts if (left := account.ledger.seconds_left()) is not None]
        self._refuse(min(timed, key=lambda each: each[0])[1], "seconds")

    def _refuse(self, account: Account, unit: str) -> NoReturn:
        self._limits[account] = unit
        self.refused = BudgetRefusal(unit, account.ledger.name, account.ledger.budget)
        raise self.refused

    def forget(self) -> None:
        """What was refused here is asked for anew, in a smaller size."""
        self.refused = None
        self._limits.clear()

    def seconds_left(self) -> float | None:
        """Seconds until the nearest time limit of the accounts; None without one."""
        if self.ledger.seconds_left() is None:
            return None
        for account in self.accounts:
            account.tick()
        return self.ledger.seconds_left()

    def priced(self, usage: Usage) -> Usage:
        return usage if self.prices is None else usage._replace(dollars=self.prices.dollars(usage))

    # --- telling

    def _tell(self, error: Exception, run_id: UUID, about: Mapping[str, Any]) -> None:
        """Tell those who heard that a call begins that it ends with `error`, a refusal or what a `prompt_bound` raised.

        LangChain ends no run that a handler stops. Known are the handlers of the graph; those of a model alone are not.
        """
        manager = ensure_config().get("callbacks")
        if not isinstance(manager, BaseCallbackManager):
            return
        heard, late = [each for each in manager.handlers if each is not self], []
        # After this handler LangChain asks those that do not run inline, in an asynchronous call, which then never hear
        # of it; and those that are awaited, in a synchronous one, as soon as this one has raised.
        if in_a_loop():
            heard = [each for each in heard if each.run_inline]
        else:
            late = [each for each in heard if iscoroutinefunction(each.on_llm_error)]
            heard = [each for each in heard if each not in late]
        ids = {name: about.get(name) for name in ("parent_run_id", "tags")}
        handle_event(heard, "on_llm_error", "ignore_llm", error, run_id=run_id, **ids)
        if late:
            self._late.append(partial(handle_event, late, "on_llm_error", "ignore_llm", error, run_id=run_id, **ids))

    # --- settling

    def _used(self, response: LLMResult, bound: Usage) -> Usage:
        reported = _reported(response)
        if reported is None:
            if self.ledger.counts_tokens:
                self.note("a model reports no usage, so its calls are charged at what was reserved for them")
            return bound
        usage = self.priced(reported)
        if self.ledger.counts_tokens and (usage.prompt > bound.prompt or usage.generated > bound.generated):
            self.note("a model used more than was reserved for its call, so a limit may have been passed")
        return usage

    def _lose(self, reservation: int) -> None:
        """Charge a call in full of which nobody knows what it used."""
        with self.ledger.held():
            if (opened := self._open.pop(reservation, None)) is not None:
                _, scope = opened
                scope.lose(reservation)
                scope.release(reservation)

    def close(self) -> None:
        """The context ends: what has not been settled by now (it was cancelled) never will be, and refusals stand."""
        for reservation in list(self._open):
            self._lose(reservation)
        while self._late:
            self._late.pop(0)()
        with self.ledger.held():
            for account, unit in self._limits.items():
                account.limit = unit
            self._limits.clear()

    def note(self, why: str) -> None:
        """Remember why limits on tokens are soft, and say so the first time."""
        for account in self.accounts:
            if any(limit is not None for limit in account.ledger.budget.limits[1:]):
                account.soft[why] = None
        if why not in self._said:
            self._said.add(why)
            warnings.warn(f"budget {self.ledger.name!r} is soft: {why}", stacklevel=2)


_meter: ContextVar[Meter | None] = ContextVar("tts_agent_meter", default=None)
register_configure_hook(_meter, inheritable=False)


def _is_news(record: logging.LogRecord) -> bool:
    """LangChain logs what handlers raise as their error; a refusal is none, and is told where it is handled."""
    return not (
        isinstance(record.args, tuple) and record.args[:1] == (Meter.__name__,) and "Refusal" in str(record.args)
    )


logging.getLogger("langchain_core.callbacks.manager").addFilter(_is_news)


def current_meter() -> Meter | None:
    """The meter of this context."""
    return _meter.get()


@contextmanager
def metering(meter: Meter) -> Iterator[Meter]:
    """Have `meter` admit the model calls of this context, and of the tasks and threads that copy it."""
    before = _meter.set(meter)
    for account in meter.accounts:
        account.enter()
    try:
        yield meter
    finally:
        for account in meter.accounts:
            account.leave()
        _meter.reset(before)
        meter.close()


def _params(serialized: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call: those of the model itself, as far as it tells them, and those of this call."""
    own = serialized.get("kwargs") if isinstance(serialized, Mapping) else None
    return {**(own or {}), **(given.get("invocation_params") or {})}


def _reported(response: LLMResult) -> Usage | None:
    """What a call used, all its answers together; None if the model says nothing."""
    total, counted = ZERO, False
    for answers in response.generations:
        for place, answer in enumerate(answers):
            message = answer.message if isinstance(answer, ChatGeneration) else None
            said = reported(message) if isinstance(message, AIMessage) else None
            if said is not None:
                counted = True
                # Siblings of one call share its prompt.
                total += said if place == 0 else said._replace(prompt_computed=0, prompt_cached=0)
    return total._replace(calls=1) if counted else None


def from_model(message: AIMessage) -> bool:
    """Whether a model said `message`; retries that give up write one of their own, without an id and a usage."""
    return message.id is not None or message.usage_metadata is not None


def reported(message: AIMessage) -> Usage | None:
    """What the model says that `message` used, one call; None if it says nothing."""
    said: Mapping[str, Any] = message.usage_metadata or {}  # NOTE: out of LangChain's cache it may hold a cost alone
    prompt, generated = said.get("input_tokens", 0), said.get("output_tokens", 0)
    if not prompt + generated:
        return None
    cached = min((said.get("input_token_details") or {}).get("cache_read") or 0, prompt)
    return Usage(prompt - cached, cached, generated, max(generated - 1, 0), calls=1)
