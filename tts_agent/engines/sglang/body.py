"""Requests as `/generate` takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tts_agent.engines.base import Sampling
from tts_agent.engines.sglang.processor import SLOTS, serialized

Json = dict[str, Any]

AT_THE_END = 1 << 20
"""Tokens between two events of a stream: the first is told at once, the rest when a sample ends."""

AT_ONCE = 1
"""The same for a request that is listened to."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What goes with every request of an engine: fields of the body, and whether seeds are drawn with.

    `ahead` is for the processor: whether the server's scheduler runs ahead.
    """

    fields: Json
    seeded: bool = False
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One sample of a request: it continues `ids`, of which the last `said` are its own."""

    ids: tuple[int, ...]
    seed: int
    said: int = 0


def new_id() -> str:
    """An id for one sample. All are of one length: the server stops every id that begins with the one it is given."""
    return uuid4().hex


def draws(sampling: Sampling, extras: Extras) -> bool:
    """Whether the processor draws these samples."""
    return extras.seeded and sampling.temperature > 0


def has_logprobs(sampling: Sampling, extras: Extras) -> bool:
    """Whether the log-probabilities that come back are the model's own, at temperature 1 and with nothing cut."""
    if sampling.constrained or sampling.penalises:
        return False
    return draws(sampling, extras) or sampling.temperature in (0.0, 1.0)


def sampling_body(
    parts: Sequence[Part], sampling: Sampling, extras: Extras, *, logprobs: bool, interval: int = AT_THE_END
) -> Json:
    """A streamed request for one sample of each part, with an event every `interval` tokens."""
    drawn = draws(sampling, extras)
    body: Json = {
        **extras.fields,
        "input_ids": [part.ids for part in parts],
        "rid": [new_id() for _ in parts],
        "stream": True,
        "sampling_params": [_params(part, sampling, extras, interval) for part in parts],
    }
    if drawn:
        body["custom_logit_processor"] = serialized()
    if logprobs and has_logprobs(sampling, extras):
        body["return_logprob"] = True
        if drawn:
            body["token_ids_logprob"] = [SLOTS] * len(parts)
    return body


def _params(part: Part, sampling: Sampling, extras: Extras, interval: int) -> Json:
    params: Json = {
        "max_new_tokens": sampling.max_tokens - part.said,
        "skip_special_tokens": False,
        "stream_interval": interval,
    }
    if sampling.stop_ids:
        params["stop_token_ids"] = sampling.stop_ids
    elif not sampling.constrained:
        # NOTE: the server then takes no notice of stop ids either, so it is only set where there are none.
        params["ignore_eos"] = True
    if sampling.stop_texts:
        params["stop"] = sampling.stop_texts
    for name in ("json_schema", "regex", "ebnf"):
        if (grammar := getattr(sampling, name)) is not None:
            params[name] = grammar
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(sampling, name):
            params[name] = value
    if draws(sampling, extras):
        params["temperature"] = 0.0
        params["custom_params"] = {
            "seed": str(part.seed),
            "start": part.said,
            "ahead": extras.ahead,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
        }
    else:
        params["temperature"] = sampling.temperature
        if sampling.temperature:
            params |= {"top_p": sampling.top_p, "top_k": sampling.top_k or -1, "min_p": sampling.min_p}
    return params


def scoring_body(
    prompts: Sequence[tuple[int, ...]], extras: Extras, *, tokens: Sequence[Sequence[int]] | None = None
) -> Json:
    """A request that computes prompts and samples nothing; with `tokens`, it asks for the log-probability of these
    after each prompt.
    """
    body: Json = {
        **extras.fields,
        "input_ids": list(prompts),
        "rid": [new_id() for _ in prompts],
        "stream": True,
        "sampling_params": [{"max_new_tokens": 0, "temperature": 0.0}] * len(prompts),
    }
    if tokens is not None:
        body |= {"return_logprob": True, "token_ids_logprob": list(tokens)}
    return body


def reading_body(prompts: Sequence[tuple[int, ...]], extras: Extras) -> Json:
    """A request for the hidden state of each prompt's last token, which the server gives with a sampled one only."""
    params = {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True}
    return {
        **extras.fields,
        "input_ids": list(prompts),
        "rid": [new_id() for _ in prompts],
        "stream": True,
        "return_hidden_states": True,
        "sampling_params": [params] * len(prompts),
    }
