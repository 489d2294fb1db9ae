"""SGLang in this process as an engine, without a server."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tts_agent.engines.sglang.local import LocalServer
from tts_agent.engines.sglang.served import ServedEngine


class SGLangLocalEngine(ServedEngine):
    """Serves prefixes by `sglang.Engine` in this process: the engine of `SGLangEngine`, with no server between.

    `model` is a Hugging Face folder, which SGLang is started for with `settings` (those of `sglang.Engine`, such as
    `mem_fraction_static=0.8`), or a `LocalServer` that others use as well. The other arguments are those of
    `SGLangEngine`. Must be made behind `if __name__ == "__main__":`, since SGLang starts processes (see `LocalServer`).

    Raises `ModelError` if SGLang is not installed, `ConfigError` if it does not start or does not do what is asked.
    """

    def __init__(
        self,
        model: str | Path | LocalServer,
        *,
        tokenizer: str | Path | None = None,
        end_ids: Sequence[int] | None = None,
        seeds: bool | None = None,
        logprobs: bool = True,
        cache_salt: str | None = None,
        priority: int | None = None,
        max_thinking_tokens: int | None = None,
        attempts: int = 5,
        name: str | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        server = model if isinstance(model, LocalServer) else LocalServer(model, **(settings or {}))
        self._server = server if server is not model else None
        try:
            super().__init__(
                [server],
                name=name or f"sglang-local://{server.folder}",
                tokenizer=tokenizer,
                end_ids=end_ids,
                seeds=seeds,
                logprobs=logprobs,
                cache_salt=cache_salt,
                priority=priority,
                max_thinking_tokens=max_thinking_tokens,
                attempts=attempts,
            )
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    async def aclose(self) -> None:
        """Stop every sample, and SGLang if this engine has started it."""
        await super().aclose()
        await asyncio.to_thread(self._stop)
