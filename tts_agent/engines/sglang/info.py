"""What a server says of itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tts_agent.errors import ConfigError

TESTED_VERSION = "0.5.23"
LEAST_VERSION = "0.5.23"
"""No older one was tried."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The settings of one SGLang server that matter to a search, from its `/server_info`.

    `context` counts prompt and completion together. `capacity` is the number of tokens that its KV cache holds,
    `running` the number of samples that it decodes at once. `chunk` is the number of prompt tokens that it computes in
    one step (None = any). `ahead` says that its scheduler runs one step ahead of what it tells. `workers` is the number
    of such servers behind the router at the address (0 = there is no router).
    """

    address: str
    version: str
    model: str
    tokenizer: str
    context: int
    capacity: int
    running: int | None
    chunk: int | None
    page: int
    ahead: bool
    radix_cache: bool
    cache_report: bool
    metrics: bool
    processors: bool
    hidden_states: bool
    deterministic: bool
    priority: bool
    strict_thinking: bool
    tool_parser: str | None
    reasoning_parser: str | None
    grammar: str | None
    workers: int = 0

    @classmethod
    def from_json(cls, address: str, data: object) -> Self:
        """Read `/server_info`. Raises `ConfigError` for what is no SGLang server, or too old a one."""
        if not isinstance(data, Mapping) or "version" not in data or "model_path" not in data:
            raise ConfigError(
                f"{address!r} answers, but not as an SGLang server; pass the address that `python -m "
                "sglang.launch_server` serves, or that of sglang-router in front of it"
            )
        version = str(data["version"])
        if version_key(version) < version_key(LEAST_VERSION):
            raise ConfigError(
                f"the server at {address!r} is SGLang {version}; at least {LEAST_VERSION} is needed: upgrade it with "
                f"pip install -U 'sglang=={TESTED_VERSION}'"
            )
        state: Mapping[str, Any] = next(iter(data.get("internal_states") or ()), {})
        memory = state.get("memory_usage") or {}
        capacity = data.get("max_total_num_tokens") or memory.get("token_capacity") or data.get("max_total_tokens")
        context = data.get("max_req_input_len") or data.get("context_length")
        if not context or not capacity:
            raise ConfigError(f"the server at {address!r} does not tell its context and the size of its cache")
        chunk = data.get("chunked_prefill_size")
        hidden = bool(data.get("enable_return_hidden_states")) and data.get("return_hidden_states_mode") == "full"
        return cls(
            address=address,
            version=version,
            model=str(data["model_path"]),
            tokenizer=str(data.get("tokenizer_path") or data["model_path"]),
            context=int(context),
            capacity=int(capacity),
            running=state.get("effective_max_running_requests_per_dp") or data.get("max_running_requests"),
            chunk=int(chunk) if chunk and int(chunk) > 0 else None,
            page=int(data.get("page_size") or 1),
            ahead=not data.get("disable_overlap_schedule"),
            radix_cache=not data.get("disable_radix_cache"),
            cache_report=bool(data.get("enable_cache_report")),
            metrics=bool(data.get("enable_metrics")),
            processors=bool(data.get("enable_custom_logit_processor")),
            hidden_states=hidden,
            deterministic=bool(data.get("enable_deterministic_inference")),
            priority=bool(data.get("enable_priority_scheduling")),
            strict_thinking=bool(data.get("enable_strict_thinking")),
            tool_parser=data.get("tool_call_parser"),
            reasoning_parser=data.get("reasoning_parser"),
            grammar=None if data.get("grammar_backend") in (None, "none") else str(data["grammar_backend"]),
        )


def version_key(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparison; what follows them (`.post1`, `rc1`) is left out."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
