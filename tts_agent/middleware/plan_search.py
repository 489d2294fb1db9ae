"""The next action of an agent, found by search."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from math import inf
from operator import is_
from pathlib import Path
from typing import Any, cast

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.constants import TAG_NOSTREAM
from langgraph.runtime import Runtime
from langgraph.types import Command

from tts_agent.budget import Budget, Ledger
from tts_agent.errors import ConfigError, SearchError
from tts_agent.loop import run_sync
from tts_agent.middleware.bounds import estimate
from tts_agent.middleware.candidates import Candidate, CandidateEngine, Judge
from tts_agent.middleware.commands import Commands, spent
from tts_agent.middleware.journal import Answer, Ask, akept, kept
from tts_agent.middleware.meter import BudgetRefusal, current_meter
from tts_agent.middleware.request import changed
from tts_agent.nodes.attempt import draining
from tts_agent.nodes.audience import Audience
from tts_agent.nodes.handle import SearchHandle, delist, enlist
from tts_agent.nodes.observed import open_search
from tts_agent.nodes.overrides import know, overridden
from tts_agent.nodes.place import Place
from tts_agent.nodes.spent import BUDGETS
from tts_agent.nodes.transformer import TTSTransformer
from tts_agent.outcome import Outcome
from tts_agent.search import BestOfN, Search, Strategy, make_strategy
from tts_agent.thought import StopReason, Verdict
from tts_agent.trace.recorder import Recorder, trace_path
from tts_agent.usage import Prices
from tts_agent.verifiers import AgreementVerifier
from tts_agent.verifiers.base import Verifier

MARGIN = 0.1
"""Share of the time that is left to a run which is kept for choosing."""


class PlanSearchMiddleware(AgentMiddleware[Any, Any, Any]):
    """Samples several next actions, judges each, and gives the agent the best one, whole.

    Every candidate is a call of the model through the middleware inside this one, with its tools and structured output;
    it is made as whatever comes of it is judged, and one that fails does not touch the others. Only the chosen one
    becomes part of the conversation and of the message stream. Its `response_metadata["tts"]` says how it was found.

    * `judge(candidate)` scores a candidate, or awaits something that does (let it be asynchronous if it waits); what it
      raises leaves the candidate unverified. A `Verifier` may stand in its place. Without a judge the candidates vote:
      the action that most of them want is taken (`AgreementVerifier`).
    * `n` candidates are sampled at once; another `strategy` decides otherwise (`BestOfN(n=16, width=4, enough=0.9)`).
    * `budget` limits each step: calls and seconds are hard (a synchronous agent waits for what is under way); a prompt
      is estimated and an answer counted as `output_tokens` before it comes, so tokens and dollars are soft. The run may
      change it by the name of this middleware and by `"*"`, as it does the budgets of planning nodes. For limits of a
      run put a `BudgetMiddleware` around (before) this one: the candidates it refuses are not sampled.
    * `temperature` is that of the candidates; None leaves it to the model. One that is always sure says the same n
      times.
    * Retries and fallbacks inside (after) this middleware work for each candidate, those around it for the whole step.
      What middleware inside updates the agent's state with is that of the chosen candidate alone, beside what budgets
      spent (`tts_budgets`), which counts whichever candidate they spent it on.
    * `running_searches(node=middleware.name)` stops it with the best candidate so far, or raises the step's limits. A
      graph that is asked to drain stops it so too, as soon as there is a candidate.

    When no candidate can be acted on, the agent gets what it would have got without a search: the first response, or
    the error. What no model said is no candidate to act on: retries that give up answer with a message of their own,
    without an id and a usage. With a checkpointer every candidate that came is stored with what a judge (that is no
    `Verifier`) said of it: an agent that was killed goes on with `invoke(None, config)`, and neither samples nor judges
    nor charges those again. What had failed is tried again.
    """

    transformers = (TTSTransformer,)

    def __init__(
        self,
        n: int | None = None,
        *,
        judge: Judge | Verifier | None = None,
        strategy: str | Strategy[Any] | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
        temperature: float | None = None,
        concurrency: int = 8,
        output_tokens: int = 4096,
        stream_candidates: bool = False,
        trace: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if n is not None and strategy is not None:
            raise ConfigError(f"n={n!r} has no effect beside strategy={strategy!r}; set it there")
        if concurrency < 1 or output_tokens < 1:
            raise ConfigError(f"concurrency={concurrency!r} and output_tokens={output_tokens!r} must be at least 1")
        if budget is not None and budget.commit_tokens:
            raise ConfigError(
                f"commit_tokens={budget.commit_tokens!r} has no effect: any candidate is a decision; leave it out"
            )
        size = 4 if n is None else n
        self._strategy = make_strategy(BestOfN(n=size, width=max(size, 1)) if strategy is None else strategy)
        is_verifier = judge is not None and hasattr(judge, "scope")
        self._judge = None if is_verifier else cast(Judge | None, judge)
        self._verifier = cast(Verifier, judge) if is_verifier else AgreementVerifier() if judge is None else None
        self._budget = (budget or Budget()).override({"commit_tokens": 0})
        self._prices, self._temperature, self._seed = prices, temperature, seed
        self._concurrency, self._output_tokens = concurrency, output_tokens
        self._quiet, self._hushed = not stream_candidates, _Hushed()
        self._trace = None if trace is None else trace_path(trace)
        if not self._strategy.bounded and self._budget == Budget(commit_tokens=0):
            raise ConfigError(
                f"strategy {self._strategy.name!r} goes on until a budget stops it; set budget=Budget(...)"
            )
        know(self, steps=(self.name,))

    # --- what LangChain calls

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        config = _config()
        audience, budget = self._audience(request, config), self._limits(config)
        engine, commands = self._engine(request, audience, budget), Commands(handler)
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="tts-agent-candidate") as pool:

            def answer(attempt: ModelRequest[Any]) -> Answer:
                call, own = commands.apart()
                candidate = engine.heard(call(attempt), own)
                # All judging is done by one thread, as long as it does not wait.
                return Answer(candidate.response, run_sync(engine.judged(candidate)), own)

            def plan(ask: Callable[[ModelRequest[Any]], Answer]) -> Answer:
                async def in_thread(attempt: ModelRequest[Any]) -> Answer:
                    return await asyncio.get_running_loop().run_in_executor(pool, copy_context().run, ask, attempt)

                return run_sync(self._plan(engine, in_thread, request, audience, budget))

            chosen = kept(plan, answer, request) if Place.stores(config) else plan(answer)
        commands.give(chosen.commands)
        return chosen.response

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        config = _config()
        audience, budget = self._audience(request, config), self._limits(config)
        engine, commands = self._engine(request, audience, budget), Commands(handler)

        async def answer(attempt: ModelRequest[Any]) -> Answer:
            call, own = commands.apart()
            candidate = engine.heard(await call(attempt), own)
            return Answer(candidate.response, await engine.judged(candidate), own)

        async def plan(ask: Ask) -> Answer:
            return await self._plan(engine, ask, request, audience, budget)

        chosen = await (akept(plan, answer, request) if Place.stores(config) else plan(answer))
        commands.give(chosen.commands)
        return chosen.response

    # --- the step

    def _limits(self, config: RunnableConfig) -> Budget:
        """The budget of a step, as the run changes it."""
        budget = overridden(self._budget, self.name, config, every=True)
        # `"*"` may tell planning nodes of tokens for an answer.
        return budget if budget is self._budget else budget.override({"commit_tokens": 0})

    def _engine(self, request: ModelRequest[Any], audience: Audience | None, budget: Budget) -> CandidateEngine:
        prompt = 1
        if any(limit is not None for limit in budget.limits[1:]):
            system = [request.system_message] if request.system_message else []
            prompt = max(estimate([*system, *request.messages], {}).tokens, 1)
        asked = self._asked(request, audience)
        runs = None if audience is None or self._judge is None else audience.runs(self.name)
        return CandidateEngine(asked, judge=self._judge, concurrency=self._concurrency, prompt=prompt, runs=runs)

    def _audience(self, request: ModelRequest[Any], config: RunnableConfig) -> Audience | None:
        return Audience.here(config, name=self.name, candidates=not self._quiet, runtime=request.runtime)

    async def _plan(
        self,
        engine: CandidateEngine,
        ask: Ask,
        request: ModelRequest[Any],
        audience: Audience | None,
        budget: Budget,
    ) -> Answer:
        engine.ask = ask
        run = open_search(
            audience,
            engine,
            engine.task(self._output_tokens),
            self._strategy,
            verifier=self._verifier,
            ledger=Ledger(_in_time(budget), name=self.name, prices=self._prices),
            seed=self._seed,
            search=self.name,
        )
        handle = _handle(run, request.runtime, self.name)
        enlist(handle)
        try:
            while not run.done:
                await run.chunk(max_seconds=inf)  # nobody waits for its parts
                run.confirm()
        finally:
            delist(handle)
            await run.aclose()
            await engine.aclose()
        outcome = run.outcome()
        if self._trace is not None:
            await Recorder(self._trace).append(outcome.log)
        if outcome.decision is None:
            chosen = _without_decision(engine, outcome, budget)
            return Answer(chosen.response, commands=_updates(chosen, engine))
        chosen = engine.candidate(outcome.decision)
        return Answer(_signed(chosen, outcome), commands=_updates(chosen, engine))

    def _asked(self, request: ModelRequest[Any], audience: Audience | None) -> ModelRequest[Any]:
        """The request that candidates are sampled with."""
        changes: dict[str, Any] = {}
        if self._quiet and audience is not None and audience.manager is not None:
            changes["model"] = self._hushed.model(request.model)
        if self._temperature is not None:
            changes["model_settings"] = {**request.model_settings, "temperature": self._temperature}
        return changed(request, **changes) if changes else request


class _Hushed:
    """A chat model whose words are kept from LangGraph's message stream: what candidates say is not the agent's answer.

    A copy costs LangChain a new description of the model, so it is made once for a model that stays as it is.
    """

    def __init__(self) -> None:
        self._copies: tuple[BaseChatModel, list[Any], BaseChatModel] | None = None

    def model(self, model: BaseChatModel) -> BaseChatModel:
        if self._copies is not None:
            original, fields, hushed = self._copies
            if original is model and len(fields) == len(vars(model)) and all(map(is_, fields, vars(model).values())):
                return hushed
        hushed = model.model_copy(update={"tags": [*(model.tags or []), TAG_NOSTREAM]})
        self._copies = (model, list(vars(model).values()), hushed)
        return hushed


def _config() -> RunnableConfig:
    """That of the node that runs here."""
    try:
        return get_config()
    except RuntimeError:  # outside a graph
        return {}


def _handle(search: Search, runtime: Runtime[Any] | None, name: str) -> SearchHandle:
    """The handle of `search`. A drain stops it once there is a candidate: without a search it waits for an answer."""
    info = None if runtime is None else runtime.execution_info
    thread, run = (None, None) if info is None else (info.thread_id, info.run_id)
    thoughts = search.state.tree.thoughts

    def asked() -> str | None:
        found = any(thought.status == "complete" for thought in list(thoughts.values()))
        return draining(runtime) if found and runtime is not None else None

    return SearchHandle(search, node=name, thread=thread, run=run, draining=asked)


def _in_time(budget: Budget) -> Budget:
    """The budget of a step, which ends shortly before the time of the run does, so that the best so far is used."""
    meter = current_meter()
    left = None if meter is None else meter.seconds_left()
    if left is None or left <= 0:
        return budget
    seconds = left * (1 - MARGIN)
    return budget.override({"seconds": min(seconds, budget.seconds or seconds)})


def _updates(chosen: Candidate, engine: CandidateEngine) -> Sequence[Command[Any]]:
    """The commands of the chosen candidate. What budgets inside spent counts, whichever candidate they spent it on."""
    budgets = spent(command for candidate in engine.found for command in candidate.commands)
    return [*chosen.commands, Command(update={BUDGETS: budgets})] if budgets else chosen.commands


def _without_decision(engine: CandidateEngine, outcome: Outcome, budget: Budget) -> Candidate:
    """What the agent would have got without a search. Raises what the calls raised."""
    if engine.found:
        return engine.found[0]
    refused = next((error for error in engine.errors if isinstance(error, BudgetRefusal)), None)
    if engine.errors:
        raise refused or engine.errors[0]
    if outcome.stop is StopReason.CANCELLED:
        raise SearchError(f"the search was stopped before a candidate came: {outcome.cut}")
    raise BudgetRefusal(outcome.limit or "calls", "of the planning step", budget)


def _signed(chosen: Candidate, outcome: Outcome) -> ModelResponse[Any]:
    """The chosen response, its message saying how it was found."""
    tree, decision = outcome.tree, outcome.decision
    assert decision is not None
    verdicts = [tree.verdicts.get(number) for number in sorted(tree.thoughts)]
    verdict = tree.verdicts.get(decision.id)
    note = {
        "stop": outcome.stop.value,
        "limit": outcome.limit,
        "usage": outcome.usage.to_json(),
        "score": verdict.score if isinstance(verdict, Verdict) else None,
        "candidates": len(tree),
        "scores": [each.score if isinstance(each, Verdict) else None for each in verdicts],
    }
    message = chosen.message
    signed = message.model_copy(update={"response_metadata": {**message.response_metadata, "tts": note}})
    result = [signed if each is message else each for each in chosen.response.result]
    return ModelResponse(result=result, structured_response=chosen.response.structured_response)
