"""Events of a stream, read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tts_agent.errors import EngineUnavailable
from tts_agent.usage import Usage

Json = dict[str, Any]


class Reply(NamedTuple):
    """What one event says of one sample. `finish` is None while it runs."""

    place: int
    ids: tuple[int, ...]
    finish: str | None
    matched: Any  # the id or text that ended it
    code: int | None  # why the server ended it, as an HTTP status
    message: str
    prompt: int
    cached: int
    again: int  # times it was thrown out for want of room and computed again
    meta: Json


def read_reply(event: Json) -> Reply:
    """Read one event of a batched request. Raises `EngineUnavailable` for anything else."""
    try:
        meta = event["meta_info"]
        finish = meta["finish_reason"] or {}
        return Reply(
            event["index"],
            tuple(event["output_ids"]),
            finish.get("type"),
            finish.get("matched"),
            finish.get("status_code"),
            str(finish.get("message", "")),
            meta["prompt_tokens"],
            meta["cached_tokens"],
            meta.get("num_retractions", 0),
            meta,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineUnavailable(f"the server sent an event that cannot be read: {str(event)[:200]}") from error


def said_logprobs(meta: Json) -> tuple[float, ...]:
    """Log-probabilities of the sampled tokens."""
    return tuple(min(entry[0], 0.0) for entry in meta["output_token_logprobs"])


def asked_logprobs(meta: Json) -> Sequence[Sequence[Sequence[float]]]:
    """At each step, `[log-probability, id, ...]` of the ids that were asked for."""
    rows: Sequence[Sequence[Sequence[float]]] = meta["output_token_ids_logprobs"]
    return rows


def prompt_usage(reply: Reply) -> Usage:
    """What a prompt cost that was computed and continued by nothing."""
    return Usage(prompt_computed=reply.prompt - reply.cached, prompt_cached=reply.cached)
