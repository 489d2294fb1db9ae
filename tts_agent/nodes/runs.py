"""A search in traces: one child run of LangChain's callback manager for each expansion and each verification.

Whatever listens to LangChain's callbacks (LangSmith, OpenTelemetry through it, handlers of one's own) sees them under
the run of the planning node:

* `tts.expand`: the samples of one expansion. On an engine of tokens it is a run of a language model, so that its
  generated, prompt and cached tokens are counted as such; where each sample is a call of a chat model, a chain in which
  these calls stand. A sample that was aborted leaves no completion, and the run says `cancelled`.
* `tts.verify`: one call of the verifier, a chain in which stand whatever models it calls; its verdicts, their reasons
  and what they used.

The metadata of both name the `tts_search` and the `tts_branches`, of an expansion also the `tts_parent`, `tts_depth`
and `tts_expansion`. An outage and an error of a verifier end a run as an error; what the search itself stops, because
it is over or was cancelled, is none.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackManager
from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun, AsyncCallbackManagerForLLMRun
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, patch_config
from langgraph.constants import TAG_NOSTREAM

from tts_agent.engines.base import Completion, Sampling
from tts_agent.thought import Unverified, Verdict
from tts_agent.tree import Branch
from tts_agent.usage import ZERO, Usage, total_usage

FREE = "tts-agent-decision"
"""Type of a model whose calls cost nothing: what they used was accounted by the search."""


class Runs:
    """Begins the child runs of one search, under the run of `config`."""

    def __init__(self, manager: AsyncCallbackManager, config: RunnableConfig, *, search: str) -> None:
        self._manager, self._config, self._search = manager, config, search

    async def chain(self, name: str, inputs: Mapping[str, Any], *, quiet: bool, **about: Any) -> "ChainRun":
        """Begin a run that others may stand in; if `quiet`, the message stream shows nothing of them."""
        return await _begun(self._chain(name, inputs, quiet, about))

    async def _chain(self, name: str, inputs: Mapping[str, Any], quiet: bool, about: Mapping[str, Any]) -> "ChainRun":
        run = await self._scope(about, quiet).on_chain_start(None, dict(inputs), name=name)
        return ChainRun(run, patch_config(self._config, callbacks=run.get_child()))

    async def model(self, name: str, prompt: str, sampling: Sampling, engine: str, **about: Any) -> "ModelRun":
        """Begin a run of a language model, of which the message stream shows nothing."""
        about |= {
            "ls_provider": "tts_agent",
            "ls_model_name": engine,
            "ls_model_type": "chat",
            "ls_temperature": sampling.temperature,
            "ls_max_tokens": sampling.max_tokens,
        }
        params = {
            "_type": FREE,
            "model": engine,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
        }
        return await _begun(self._model(name, prompt, engine, params, about))

    async def _model(
        self, name: str, prompt: str, engine: str, params: Mapping[str, Any], about: Mapping[str, Any]
    ) -> "ModelRun":
        runs = await self._scope(about, True).on_chat_model_start(
            {"name": engine}, [[HumanMessage(prompt)]], invocation_params=params, options={}, name=name, batch_size=1
        )
        return ModelRun(runs[0], engine)

    def _scope(self, about: Mapping[str, Any], quiet: bool) -> AsyncCallbackManager:
        manager = self._manager.copy()
        manager.add_tags(["tts", *([TAG_NOSTREAM] if quiet else [])])
        prefixed = {key if key.startswith("ls_") else f"tts_{key}": value for key, value in about.items()}
        manager.add_metadata({"tts_search": self._search, **prefixed})
        return manager


def branches_here() -> Sequence[int]:
    """The branches of the run of `Runs` that the code which asks stands in."""
    callbacks = ensure_config().get("callbacks")
    assert isinstance(callbacks, BaseCallbackManager)
    found: Sequence[int] = callbacks.metadata["tts_branches"]
    return found


async def _begun(beginning: "Coroutine[Any, Any, R]") -> "R":
    """The run that is begun by `beginning`. If that is cancelled meanwhile, the run is ended as well."""
    task = asyncio.ensure_future(beginning)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        await (await task).fail(cancelled)
        raise


class Child:
    """A sample of an expansion, as it came."""

    def __init__(self, branch: int, text: str, completion: Completion) -> None:
        self.branch, self.text, self.finish, self.usage = branch, text, completion.finish, completion.usage

    def to_json(self) -> dict[str, Any]:
        return {"branch": self.branch, "text": self.text, "finish": self.finish, "usage": self.usage.to_json()}

    def message(self, engine: str) -> AIMessage:
        note = {"model_name": engine, "finish_reason": self.finish, "tts": {"branch": self.branch}}
        return AIMessage(self.text, response_metadata=note)


class ChainRun:
    """A run that others may stand in; `config` is for what is called in it."""

    def __init__(self, run: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> None:
        self._run = run
        self.config: RunnableConfig | None = config

    async def end(self, children: Sequence[Child], usage: Usage, *, cancelled: bool) -> None:
        """End an expansion that used `usage` in all."""
        outputs = {"children": [child.to_json() for child in children], **_used(usage)}
        await self._run.on_chain_end(outputs | _cancelled(cancelled))

    async def judged(self, branches: Sequence[Branch], verdicts: Sequence[Verdict | Unverified]) -> None:
        """End a verification."""
        said = [_verdict(branch, verdict) for branch, verdict in zip(branches, verdicts, strict=False)]
        usage = total_usage(verdict.usage for verdict in verdicts if isinstance(verdict, Verdict | Unverified))
        await self._run.on_chain_end({"verdicts": said, **_used(usage)})

    async def fail(self, error: BaseException, children: Sequence[Child] = (), usage: Usage = ZERO) -> None:
        """End with an error; with none if the run was cancelled."""
        if isinstance(error, asyncio.CancelledError):
            await self.end(children, usage, cancelled=True)
        else:
            await self._run.on_chain_error(error)


class ModelRun:
    """A run of a language model, which calls nothing else."""

    config: RunnableConfig | None = None

    def __init__(self, run: AsyncCallbackManagerForLLMRun, engine: str) -> None:
        self._run, self._engine = run, engine

    async def end(self, children: Sequence[Child], usage: Usage, *, cancelled: bool) -> None:
        """End an expansion that used `usage` in all."""
        await self._run.on_llm_end(self._result(children, usage, cancelled))

    async def fail(self, error: BaseException, children: Sequence[Child] = (), usage: Usage = ZERO) -> None:
        """End with an error; with none if the run was cancelled."""
        if isinstance(error, asyncio.CancelledError):
            await self.end(children, usage, cancelled=True)
        else:
            await self._run.on_llm_error(error, response=self._result(children, usage, False))

    def _result(self, children: Sequence[Child], usage: Usage, cancelled: bool) -> LLMResult:
        messages = [child.message(self._engine) for child in children]
        if not messages:  # what was used has to be told with something
            messages.append(AIMessage("", response_metadata={"model_name": self._engine}))
        # The usage of all is told with the first, as chat models that say several things do it.
        messages[0] = messages[0].model_copy(update={"usage_metadata": _usage_metadata(usage)})
        output = {"model_name": self._engine, **_cancelled(cancelled)}
        return LLMResult(generations=[[ChatGeneration(message=message) for message in messages]], llm_output=output)


Run = ChainRun | ModelRun
R = TypeVar("R", ChainRun, ModelRun)


def _cancelled(cancelled: bool) -> dict[str, Any]:
    return {"cancelled": True} if cancelled else {}


def _used(usage: Usage) -> dict[str, Any]:
    return {"usage": usage.to_json(), "usage_metadata": _usage_metadata(usage)}


def _usage_metadata(usage: Usage) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=usage.prompt,
        output_tokens=usage.generated,
        total_tokens=usage.total,
        input_token_details=InputTokenDetails(cache_read=usage.prompt_cached),
    )


def _verdict(branch: Branch, verdict: Verdict | Unverified) -> dict[str, Any]:
    score = verdict.score if isinstance(verdict, Verdict) else None
    reason = getattr(verdict, "reason", repr(verdict))  # a verifier that returns something else is told so elsewhere
    return {"branch": branch.thought.id, "score": score, "reason": reason}
