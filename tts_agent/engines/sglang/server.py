"""What an engine asks of a server, wherever it runs, and what the server's complaints mean."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from tts_agent.engines.sglang.info import ServerInfo
from tts_agent.errors import ConfigError, PromptError

Json = dict[str, Any]

FLUSH_SECONDS = 5.0
"""How long a server may wait for its last samples to end before it empties its cache."""


class Refused(Exception):
    """The server has not begun with a request, and may be asked again. `gone` says that nobody was there at all."""

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class Server(Protocol):
    """SGLang's native API: the paths and bodies of its HTTP server, over a connection or in this process.

    Usable from any number of event loops. What does not answer is an `EngineUnavailable`.
    """

    @property
    def address(self) -> str:
        """By which people and `Pool` tell servers apart."""
        ...

    def info(self) -> ServerInfo:
        """Ask for the server's settings."""
        ...

    def ask(self, path: str, body: Json | None) -> Any:
        """The JSON answer of a path, while the caller waits; GET without a `body`. Raises `ConfigError` if it is
        refused.
        """
        ...

    async def aask(self, path: str, body: Json | None, *, seconds: float = ...) -> Any:
        """The same, without blocking the event loop; `seconds` bounds the wait."""
        ...

    def generate(self, body: Json, headers: Mapping[str, str]) -> AsyncGenerator[Json, None]:
        """The events of a streamed `/generate`. Raises `Refused` if nothing was computed and it may be asked again, or
        what was wrong with the request.
        """
        ...

    async def flush(self) -> None:
        """Empty the cache. Raises `EngineUnavailable` if the server stays busy."""
        ...

    async def abort(self, request: str) -> None:
        """Ask for the sample with this id to be stopped. Whether it was is told by its own events."""
        ...

    def close(self) -> None:
        """Free what was opened while callers waited."""
        ...

    async def aclose(self) -> None:
        """Free what this event loop and waiting callers have opened."""
        ...


def complaint(error: Json) -> Exception:
    """What an error in the place of an event means. It comes before anything was computed."""
    message, code = str(error.get("message", error)), int(error.get("code") or 400)
    return Refused(message) if code >= 500 or code == 429 else asked_wrongly(message)


def asked_wrongly(message: str) -> ConfigError:
    """The error for a request that the server will never serve."""
    if "context length" in message or "maximum allowed length" in message:
        return PromptError(f"the server refuses the prompt: {message}")
    return ConfigError(f"the server refuses the request: {message}")
