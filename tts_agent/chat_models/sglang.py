"""An SGLang server, or any engine of this package, as a LangChain chat model."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from numbers import Integral, Real
from pathlib import Path
from secrets import randbits
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage
from langchain_core.output_parsers import (
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils import from_env, secret_from_env
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, SkipValidation

from tts_agent.chat_models.answers import read_by
from tts_agent.chat_models.call import Call, ContextOverflow
from tts_agent.chat_models.grammar import (
    answer_schema,
    call_schema,
    read_answer,
    read_calls,
    read_choice,
    tool_name,
)
from tts_agent.chat_models.link import Link
from tts_agent.chat_models.voice import Asked
from tts_agent.engines import load_engine
from tts_agent.engines.base import Engine, Sampling
from tts_agent.errors import ConfigError
from tts_agent.loop import run_sync

if TYPE_CHECKING:
    from tts_agent.middleware.bounds import PromptSize

__all__ = ("ChatSGLang", "ContextOverflow")

ANSWER_TOKENS = 1024
"""Longest answer where `max_tokens` is not set; shorter where the context leaves less."""

_DRAWN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
_SET = (*_DRAWN, "max_tokens", "n", "seed")
_COUNTS = ("top_k", "max_tokens", "n", "seed")
_OPTIONAL = ("max_tokens", "seed")
_BOUND = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "model", "stream")

_TOLD = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
_TOTALS = ("input_tokens", "output_tokens", "total_tokens")

Method = Literal["json_schema", "function_calling", "json_mode"]


class ChatSGLang(BaseChatModel):
    """Talks to the SGLang server at `base_url` by its native API, as `SGLangEngine` does; several addresses are parted
    by commas.

        model = ChatSGLang(base_url="http://127.0.0.1:30000", temperature=0.6)
        model.bind_tools([calculator]).invoke("What is 6 times 7?")

    The server renders conversations and reads tool calls, for which it is launched with a `--tool-call-parser`. With
    `folder`, the model's own, that is done in this process. `engine` is one that is open already, of any kind: an
    `EmbeddedEngine` with its `folder` will do. The server is first asked when the model is first used.

    An answer that must call a tool (`tool_choice`) or be JSON (`response_format`, `with_structured_output`) is bound to
    a grammar. `n` answers to one prompt compute the prompt once; they are not streamed. With a `seed` the same answer
    comes again where the engine has seeds. `usage_metadata` tells how much of a prompt came from the engine's cache.

    How an answer is drawn (`temperature` to `seed`, and `stop`) can be given again with a call. Raises
    `ContextOverflow` for a conversation that is too long, `ConfigError` for what the server cannot do,
    `EngineUnavailable` if it does not answer. The server stops working for a call that is cancelled and for a stream
    that is left early.
    """

    model_config = ConfigDict(populate_by_name=True, extra="forbid", arbitrary_types_allowed=True)

    model_name: str | None = Field(default=None, alias="model")
    """The name in traces and metadata; by default that of the model which is served."""
    base_url: str = Field(default_factory=from_env("SGLANG_BASE_URL", default="http://127.0.0.1:30000"))
    api_key: SecretStr | None = Field(default_factory=secret_from_env("SGLANG_API_KEY", default=None))
    engine: SkipValidation[Engine | None] = Field(default=None, exclude=True, repr=False)
    folder: str | Path | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int | None = None
    n: int = 1
    seed: int | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    timeout: float = 600.0
    """Seconds between two pieces of an answer."""
    max_retries: int = 4
    """How often a request is sent again that the server refused."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as `{"enable_thinking": False}`."""
    streaming: bool = False
    """Whether `invoke` streams as well, for those who listen to tokens by callbacks."""

    _link: Link = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if self.engine is not None and "base_url" in self.model_fields_set:
            raise ConfigError(f"base_url={self.base_url!r} has no effect on an engine that is open; leave it out")
        if self.n < 1:
            raise ConfigError(f"n={self.n!r} must be at least 1")
        self._link = Link(self._open, folder=self.folder, variables=self.chat_template_kwargs)

    def _open(self) -> Engine:
        if self.engine is not None:
            return self.engine
        key = None if self.api_key is None else self.api_key.get_secret_value()
        options = {"timeout": self.timeout, "attempts": self.max_retries + 1, "api_key": key, "logprobs": False}
        return load_engine(f"sglang://{self.base_url}", tokenizer=self.folder, **options)

    # --- what LangChain asks of a model

    @property
    def _llm_type(self) -> str:
        return "sglang-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        served = self.base_url if self.engine is None else self.engine.name
        settings = {name: getattr(self, name) for name in (*_SET, "stop", "chat_template_kwargs")}
        return {"model": self.model_name, "served": served, **settings}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        params["ls_provider"] = "sglang"
        params["ls_model_name"] = kwargs.get("model") or self._known_as()
        return params

    def _known_as(self) -> str:
        """The model's name, as far as it is known without asking."""
        engine = self.engine or self._link.opened
        if self.model_name is not None or engine is None:
            return self.model_name or self.base_url
        return engine.capabilities.info.get("model", engine.name)

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of `text` by the model's own tokenizer."""
        return list(self._link.engine().encode(text))

    def prompt_size(self, messages: Sequence[BaseMessage], params: Mapping[str, Any]) -> "PromptSize":
        """Tokens of the prompt that `messages` become, with the tools in `params`: with
        `BudgetMiddleware(..., prompt_bound=model.prompt_size)` limits on tokens are hard.

        Raises `ConfigError` without a `folder`: whoever asks cannot wait for a server.
        """
        from tts_agent.middleware.bounds import PromptSize

        if self.folder is None:
            raise ConfigError("prompt_size needs the model's own folder; pass folder=, or count bytes with TextBound()")
        given = {name: params[name] for name in _TOLD if params.get(name) is not None}
        return PromptSize(len(self._prepare(list(messages), None, given).asked.prefix), True)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        strict: bool | None = None,
        parallel_tool_calls: bool = True,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with `tools`.

        `tool_choice`: "auto", "none", "any", or the name of the tool that must be called. Without
        `parallel_tool_calls`, an answer that must call calls once.
        """
        made = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        choice = read_choice(tool_choice, made)
        return self.bind(tools=made, tool_choice=choice, parallel_tool_calls=parallel_tool_calls, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model, answering with an object of `schema`.

        `json_schema`: the answer is the object; the model is not told of the schema, so tell it what you want.
        `function_calling`: the object is the arguments of a call that the model must make, and sees described.
        `json_mode`: the answer is some JSON object. Where the engine obeys no grammar, each of them is refused when it
        is called. An answer that was cut raises `OutputParserException`, or is the `parsing_error` beside the raw one;
        a stream raises it at its end.
        """
        if kwargs:
            raise ConfigError(f"unknown arguments {sorted(kwargs)!r}; known: schema, include_raw, method, strict")
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ConfigError(f"unknown method {method!r}; use 'json_schema', 'function_calling' or 'json_mode'")
        traced = {"kwargs": {"method": method}, "schema": schema}
        pydantic = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
        parser: Any
        if method == "function_calling":
            tool = convert_to_openai_tool(schema, strict=strict)
            model = self.bind_tools([tool], tool_choice="any", ls_structured_output_format=traced)
            if pydantic is None:
                parser = JsonOutputKeyToolsParser(key_name=tool_name(tool), first_tool_only=True)
            else:
                parser = PydanticToolsParser(tools=[pydantic], first_tool_only=True)
        else:
            answer: dict[str, Any] = {"type": "json_object"}
            if method == "json_schema":
                made = convert_to_json_schema(schema, strict=strict)
                answer = {"type": "json_schema", "json_schema": {"name": made.get("title", "answer"), "schema": made}}
            model = self.bind(response_format=answer, ls_structured_output_format=traced)
            parser = JsonOutputParser() if pydantic is None else PydanticOutputParser(pydantic_object=pydantic)
        return read_by(model, parser, include_raw=include_raw)

    # --- calls

    def _prepare(self, messages: list[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]) -> Call:
        """The call for `messages`; waits for whoever has to be asked."""
        if unknown := sorted(set(given) - {*_SET, *_BOUND}):
            raise ConfigError(f"unknown arguments {unknown!r} of a chat model; known: {', '.join((*_SET, *_BOUND))}")
        if given.get("model") not in (None, self._known_as()):
            raise ConfigError(f"model={given['model']!r}: a server has one model; make another ChatSGLang for another")
        settings = {name: given.get(name, getattr(self, name)) for name in _SET}
        for name, value in settings.items():
            _check_number(name, value)
        _check_text(messages)
        tools = list(given.get("tools") or ())
        choice = read_choice(given.get("tool_choice"), tools)
        schema = answer_schema(given.get("response_format"))
        if choice == "none":
            tools = []
        if tools and schema is not None:
            raise ConfigError("an answer that must be JSON cannot call tools; bind tools or response_format, or use a "
                              "tool for the answer (method='function_calling', ToolStrategy)")  # fmt: skip
        forced = bool(tools) and choice != "auto"
        if forced:
            schema = call_schema(tools, choice, several=given.get("parallel_tool_calls", True))
        engine, voice = self._link.engine(), self._link.voice(tools)
        asked = voice.ask(cast(list[AnyMessage], messages))
        if schema is not None:
            # The grammar begins with the first token, so the reasoning must be over.
            whole = asked.prefix.extend(engine.encode(asked.closing))
            asked = Asked(whole, read_calls, openers=("[",)) if forced else Asked(whole, read_answer)
        sampling = Sampling(
            max_tokens=self._room(engine, len(asked.prefix), settings["max_tokens"]),
            **{name: settings[name] for name in _DRAWN},
            stop_ids=tuple(voice.end_ids),
            stop_texts=_stop_texts(self.stop if stop is None else stop),
            json_schema=schema,
        )
        return Call(engine, asked, sampling, _seeds(settings["seed"], settings["n"]), self._known_as())

    @staticmethod
    def _room(engine: Engine, prompt: int, max_tokens: int | None) -> int:
        if max_tokens is not None:
            return max_tokens
        context = engine.capabilities.context
        return ANSWER_TOKENS if context is None else max(min(ANSWER_TOKENS, context - prompt), 1)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = await asyncio.to_thread(self._prepare, messages, stop, kwargs)
        spoken = await call.complete()
        usage = {name: sum(int(cast(Any, one.usage)[name]) for one in spoken) for name in _TOTALS}
        generations = [ChatGeneration(message=one.message()) for one in spoken]
        return ChatResult(generations=generations, llm_output={"model_name": call.model, "token_usage": usage})

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run_sync(self._agenerate(messages, stop, **kwargs))

    def _streaming_disabled(self, **kwargs: Any) -> bool:
        # Chunks of several answers would be one text.
        return kwargs.get("n", self.n) != 1 or super()._streaming_disabled(**kwargs)

    async def _chunks(
        self, messages: list[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        call = await asyncio.to_thread(self._prepare, messages, stop, given)
        async with aclosing(call.stream()) as chunks:
            async for chunk in chunks:
                yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(self._chunks(messages, stop, kwargs)) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks = self._chunks(messages, stop, kwargs)
        try:
            while (chunk := run_sync(_next(chunks))) is not None:
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            run_sync(chunks.aclose())

    # --- the end

    def close(self) -> None:
        """Close the connections to the server, if this model has opened them; the server goes on."""
        if self.engine is None and (opened := self._link.opened) is not None:
            run_sync(opened.aclose())

    async def aclose(self) -> None:
        """The same for connections that were opened in this event loop."""
        if self.engine is None and (opened := self._link.opened) is not None:
            await opened.aclose()


def _check_number(name: str, value: Any) -> None:
    if value is None and name in _OPTIONAL:
        return
    kind, words = (Integral, "a whole number") if name in _COUNTS else (Real, "a number")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} must be {words}{' or None' if name in _OPTIONAL else ''}")


def _check_text(messages: Sequence[BaseMessage]) -> None:
    """Raises `ConfigError` for half a surrogate pair, which no engine can be sent."""
    for place, message in enumerate(messages):
        said = (message.content, getattr(message, "tool_calls", ()))
        try:
            json.dumps(said, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ConfigError(
                f"message {place} ({message.type}) has {half!r} in it, half of a character; send the text without it, "
                "such as text.encode(errors='replace').decode()"
            ) from error


def _stop_texts(stop: Any) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"stop={stop!r} must be a list of texts")
    return tuple(texts)


def _seeds(seed: int | None, n: int) -> tuple[int, ...]:
    if n < 1:
        raise ConfigError(f"n={n!r} must be at least 1")
    return tuple(randbits(63) for _ in range(n)) if seed is None else tuple(range(seed, seed + n))


async def _next(chunks: AsyncIterator[ChatGenerationChunk]) -> ChatGenerationChunk | None:
    return await anext(chunks, None)
