"""SGLang servers over HTTP."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tts_agent.engines.sglang.http import HttpServer
from tts_agent.engines.sglang.router import RoutedServer, behind
from tts_agent.engines.sglang.served import ServedEngine
from tts_agent.engines.sglang.server import Server
from tts_agent.errors import ConfigError


class SGLangEngine(ServedEngine):
    """Serves prefixes by the SGLang server at `address`, or by several that serve the same model (see `ServedEngine`).
    An address may also be that of sglang-router, if its workers can be reached from here.

    `tokenizer` is the folder of the tokenizer; without it the served folder is used where it is readable here, else the
    server encodes and decodes. `end_ids` are the tokens with which the model ends its answer, by default as the served
    folder says, or as the server shows. `seeds=False` leaves the server's own sampling alone, which cannot repeat a
    sample; by default seeds are used where the server takes custom logit processors. Without `logprobs`, completions
    carry none. `cache_salt` keeps the cache apart from that of others, `priority` and `max_thinking_tokens` are for
    servers that obey them. `timeout` bounds the seconds between two pieces of an answer; what a server has refused is
    tried `attempts` times in all.

    Raises `EngineUnavailable` if no server answers, `ConfigError` for what is no SGLang server, is too old, or does not
    do what is asked of it.
    """

    def __init__(
        self,
        *address: str,
        tokenizer: str | Path | None = None,
        end_ids: Sequence[int] | None = None,
        seeds: bool | None = None,
        logprobs: bool = True,
        cache_salt: str | None = None,
        priority: int | None = None,
        max_thinking_tokens: int | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        attempts: int = 5,
        name: str | None = None,
    ) -> None:
        if not address:
            raise ConfigError("an SGLang engine needs the address of a server, such as 'http://127.0.0.1:30000'")
        if not timeout > 0:
            raise ConfigError(f"timeout={timeout!r} must be above 0 seconds")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key is not None else {}
        servers = [_open(_url(one), timeout=timeout, headers=headers) for one in address]
        super().__init__(
            servers,
            name=name or "sglang://" + ",".join(server.address.partition("://")[2] for server in servers),
            tokenizer=tokenizer,
            end_ids=end_ids,
            seeds=seeds,
            logprobs=logprobs,
            cache_salt=cache_salt,
            priority=priority,
            max_thinking_tokens=max_thinking_tokens,
            attempts=attempts,
        )


def _open(address: str, *, timeout: float, headers: Mapping[str, str]) -> Server:
    """The server at `address`, or those behind it."""
    server = HttpServer(address, timeout=timeout, headers=headers)
    if workers := behind(server):
        return RoutedServer(server, [HttpServer(one, timeout=timeout, headers=headers) for one in workers])
    return server


def _url(address: str) -> str:
    rest = address.removeprefix("sglang://")
    return rest if "://" in rest else f"http://{rest}"
