"""`sglang.Engine` in this process, asked as its HTTP server is."""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson

from tts_agent.engines.sglang.info import TESTED_VERSION, ServerInfo
from tts_agent.engines.sglang.server import FLUSH_SECONDS, Json, asked_wrongly, complaint
from tts_agent.errors import ConfigError, EngineUnavailable, ModelError

T = TypeVar("T")

ASK_SECONDS = 60.0


class LocalServer:
    """Serves the model in `folder` by SGLang in this process; see `Server`. `settings` are those of `sglang.Engine`.

    SGLang belongs to one event loop, so it has a thread with one of its own, and callers may have any number. It starts
    processes for its scheduler and its detokenizer, from the program's main module, which must do nothing when it is
    imported (`if __name__ == "__main__":`). Of these settings the defaults are what a search wants: seeds by custom
    logit processors, and hidden states. `stop` ends it, and with it, as SGLang does, every child of this process.

    Raises `ModelError` if SGLang is not installed, `ConfigError` if it does not start.
    """

    def __init__(self, folder: str | Path, **settings: Any) -> None:
        self.folder = str(folder)
        self.address = f"sglang.Engine of {self.folder!r}"
        defaults = {"enable_custom_logit_processor": True, "enable_return_hidden_states": True}
        self._settings = {**defaults, **settings, "model_path": self.folder}
        self._loop = asyncio.new_event_loop()
        self._engine: Any = None
        self._info: Json = {}
        self._tokenizes: Any = None
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="sglang", daemon=True)
        self._thread.start()
        started.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _run(self, started: "concurrent.futures.Future[None]") -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._start()
        except BaseException as error:
            self._loop.close()
            started.set_exception(error)
            return
        started.set_result(None)
        self._loop.run_forever()
        # Its processes end with the thread that started them, so it must know before.
        self._engine.shutdown()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _start(self) -> None:
        policy = asyncio.get_event_loop_policy()
        try:
            from sglang.srt.entrypoints.engine import Engine
            from sglang.srt.entrypoints.openai.serving_tokenize import OpenAIServingTokenize
        except ImportError as error:
            raise ModelError(
                f"the engine needs SGLang in this process, which does not import ({error}); pip install "
                f"'tts-agent[sglang-local]', or 'sglang=={TESTED_VERSION}'"
            ) from error
        finally:
            asyncio.set_event_loop_policy(policy)  # SGLang sets another for the whole process
        try:
            self._engine = Engine(**self._settings)
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            raise ConfigError(f"SGLang does not start with {self._settings!r}: {error}") from error
        # This also binds it to the loop of this thread.
        self._info = self._engine.get_server_info()
        self._tokenizes = OpenAIServingTokenize(self._engine.tokenizer_manager, self._engine.template_manager)

    def stop(self) -> None:
        """End SGLang and its processes. Calling it again is harmless."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    # --- asking

    def _submit(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        if not self._thread.is_alive():
            work.close()
            raise EngineUnavailable(f"{self.address} was stopped; make another engine")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def info(self) -> ServerInfo:
        """See `Server.info`."""
        return ServerInfo.from_json(self.address, self._info)

    def ask(self, path: str, body: Json | None) -> Any:
        """See `Server.ask`."""
        try:
            return self._submit(self._answer(path, body)).result(ASK_SECONDS)
        except TimeoutError as error:
            raise self._silent(path, ASK_SECONDS) from error

    async def aask(self, path: str, body: Json | None, *, seconds: float = ASK_SECONDS) -> Any:
        """See `Server.aask`."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._submit(self._answer(path, body))), seconds)
        except TimeoutError as error:
            raise self._silent(path, seconds) from error

    def _silent(self, path: str, seconds: float) -> EngineUnavailable:
        return EngineUnavailable(f"{self.address} does not answer {path} within {seconds} s")

    async def _answer(self, path: str, body: Json | None) -> Any:
        try:
            return await self._serve_path(path, body)
        except ConfigError:
            raise
        except ValueError as error:  # SGLang's own word for a request that is wrong
            raise asked_wrongly(str(error)) from error

    async def _serve_path(self, path: str, body: Json | None) -> Any:
        manager = self._engine.tokenizer_manager
        asked = body or {}
        match path:
            case "/server_info":
                return self._info
            case "/v1/loads":
                return {"loads": [load.to_dict(None) for load in await manager.get_loads()]}
            case "/tokenize":
                return await self._tokenize(asked)
            case "/detokenize":
                skip = asked.get("skip_special_tokens", True)
                return {"text": [manager.tokenizer.decode(ids, skip_special_tokens=skip) for ids in asked["tokens"]]}
            case "/generate":
                return await anext(manager.generate_request(_request(asked), None))
            case "/parse_function_call":
                return _parse_calls(asked, manager.tokenizer)
            case "/separate_reasoning":
                return _separate(asked, manager.tokenizer)
        raise ConfigError(f"{self.address} has no {path!r}")

    async def _tokenize(self, body: Json) -> Json:
        from sglang.srt.entrypoints.openai.protocol import TokenizeRequest, TokenizeResponse

        answer = await self._tokenizes.handle_request(TokenizeRequest(**body), None)
        if not isinstance(answer, TokenizeResponse):
            raise ConfigError(f"{self.address} does not tokenize: {bytes(answer.body).decode()[:300]!r}")
        return {"tokens": answer.tokens}

    # --- sampling

    async def generate(self, body: Json, headers: Mapping[str, str]) -> AsyncGenerator[Json, None]:
        """See `Server.generate`; `headers` are for routers. Closed early, it stops the samples."""
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Json | Exception | None] = asyncio.Queue()

        def tell(what: Json | Exception | None) -> None:
            with suppress(RuntimeError):  # whoever asked has closed the loop
                loop.call_soon_threadsafe(news.put_nowait, what)

        def ended(running: "concurrent.futures.Future[None]") -> None:
            tell(None if running.cancelled() else self._problem(running.exception()))

        running = self._submit(self._serve(body, tell))
        running.add_done_callback(ended)
        try:
            while (what := await news.get()) is not None:
                if isinstance(what, Exception):
                    raise what
                yield what
        finally:
            running.cancel()

    async def _serve(self, body: Json, tell: Callable[[Json], None]) -> None:
        async for event in self._engine.tokenizer_manager.generate_request(_request(body), None):
            # The list of ids goes on growing on this thread.
            tell({**event, "output_ids": tuple(event["output_ids"])})

    def _problem(self, error: BaseException | None) -> Exception | None:
        """What the end of a request means to whoever has asked."""
        if error is None:
            return None
        if isinstance(error, ValueError):
            return complaint({"message": str(error), "code": getattr(error, "status_code", 400)})
        return EngineUnavailable(f"{self.address} failed: {type(error).__name__}: {error}")

    async def flush(self) -> None:
        """See `Server.flush`."""

        async def flush() -> Any:
            return await self._engine.tokenizer_manager.flush_cache(timeout_s=FLUSH_SECONDS)

        result = await asyncio.wrap_future(self._submit(flush()))
        if not result.success:
            raise EngineUnavailable(f"{self.address} does not empty its cache: {result.message!r}")

    async def abort(self, request: str) -> None:
        """See `Server.abort`."""

        async def abort() -> None:
            self._engine.tokenizer_manager.abort_request(rid=request)

        with suppress(EngineUnavailable):  # one that was stopped runs nothing
            await asyncio.wrap_future(self._submit(abort()))

    def close(self) -> None:
        """Nothing: it goes on until `stop`."""

    async def aclose(self) -> None:
        """Nothing: it goes on until `stop`."""


def _request(body: Json) -> Any:
    from sglang.srt.managers.io_struct import GenerateReqInput

    return GenerateReqInput(**orjson.loads(orjson.dumps(body)))  # as over HTTP: lists, and nothing that others change


def _parse_calls(body: Json, tokenizer: Any) -> Json:
    from sglang.srt.entrypoints.openai.protocol import Tool
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    parser = FunctionCallParser([Tool(**tool) for tool in body["tools"]], body["tool_call_parser"], tokenizer)
    text, calls = parser.parse_non_stream(body["text"])
    return {"normal_text": text, "calls": [call.model_dump() for call in calls]}


def _separate(body: Json, tokenizer: Any) -> Json:
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    parser = ReasoningParser(model_type=body["reasoning_parser"], tokenizer=tokenizer)
    reasoning, text = parser.parse_non_stream(body["text"])
    return {"reasoning_text": reasoning, "text": text}
