"""Seeded draws inside the server: a custom logit processor, sent as source text.

SGLang's own seed does not give the same sample twice. Its custom logit processors (`--enable-custom-logit-processor`)
may change the logits of every step, so ours draws the token itself, with the same numbers as the embedded engine: u is
a hash of seed and position, the token is where u falls in the cumulative distribution. All logits but the drawn one
become minus infinity, and the server's greedy choice takes it.

The raw log-probability of the drawn token travels in the logit of an id that was not drawn, lowered by `OFFSET`: far
enough that it takes no probability, near enough that float32 keeps five digits after the point. `SLOTS` are the ids
whose log-probability is asked for with such a request.
"""

import json
import pickle
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tts_agent.errors import ConfigError

OFFSET = 32.0
SLOTS = (0, 1)

SOURCE = """
import torch

MASK = 2**64 - 1
OFFSET = 32.0


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed, position):
    return (mix((mix(seed & MASK) + position) & MASK) >> 11) * 2.0**-53


def position(request, ahead):
    said = len(request.output_ids)
    if not ahead:
        return said
    # A scheduler that runs ahead tells of ids one step late, so steps are counted. What is drawn in the middle of a
    # prompt that is computed in pieces is not kept.
    step = max(said, getattr(request, "tts_agent_step", 0))
    if request.extend_end >= len(request.full_untruncated_fill_ids):
        request.tts_agent_step = step + 1
    return step


def ranked(probs, top_k, top_p):
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    size = probs.shape[-1]
    ordered = ordered.masked_fill(torch.arange(size, device=probs.device) >= top_k.clamp(max=size).unsqueeze(1), 0.0)
    before = ordered.cumsum(dim=-1) - ordered
    dropped = (before >= top_p.unsqueeze(1) * ordered.sum(dim=-1, keepdim=True)) & (top_p.unsqueeze(1) < 1)
    return torch.zeros_like(probs).scatter_(1, order, ordered.masked_fill(dropped, 0.0))


class Seeded:
    def __call__(self, logits, params):
        if not all(row and "seed" in row for row in params):
            return logits  # lost on the way; an error here would end the server

        def column(name, dtype=torch.float32):
            return torch.tensor([row[name] for row in params], dtype=dtype, device=logits.device)

        steps = [row["start"] + position(row["__req__"], row["ahead"]) for row in params]
        numbers = [uniform(int(row["seed"]), step) for row, step in zip(params, steps)]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        if all(row["temperature"] == 1.0 for row in params):
            probs = logprobs.exp()
        else:
            probs = torch.softmax(logits.float() / column("temperature").unsqueeze(1), dim=-1)
        if any(row["top_k"] or row["top_p"] < 1 for row in params):
            top_k = column("top_k", torch.int64)
            probs = ranked(probs, torch.where(top_k > 0, top_k, probs.shape[-1]), column("top_p"))
        if any(row["min_p"] for row in params):
            least = column("min_p").unsqueeze(1) * probs.max(dim=-1, keepdim=True).values
            probs = probs.masked_fill(probs < least, 0.0)
        cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
        total = cumulative[:, -1]
        target = torch.tensor(numbers, dtype=torch.float64, device=logits.device) * total
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        chosen = torch.searchsorted(cumulative, target.unsqueeze(1), right=True)
        slot = (chosen == 0).long()
        out = torch.full_like(logits, float("-inf"))
        out.scatter_(1, slot, (logprobs.gather(1, chosen) - OFFSET).to(out.dtype))
        return out.scatter_(1, chosen, 0.0)
"""
"""What the server runs; plain text, so that it does not depend on the Python versions of either side."""


class _Made:
    """Unpickles as the class `Seeded` of `SOURCE`."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, (f"(lambda names: (exec({SOURCE!r}, names), names['Seeded'])[1])({{}})",)


@cache
def serialized() -> str:
    """The processor as `/generate` takes it: JSON with the pickle of a class."""
    return json.dumps({"callable": pickle.dumps(_Made(), protocol=4).hex()})


def raw_logprobs(ids: Sequence[int], slots: Sequence[Sequence[Sequence[float]]]) -> tuple[float, ...]:
    """Raw log-probabilities of the drawn `ids`, from what the server says of `SLOTS` at each step.

    Raises `ConfigError` if something between here and the server has dropped what the processor draws with.
    """
    raw = [float(said[0 if token != SLOTS[0] else 1][0]) + OFFSET for token, said in zip(ids, slots, strict=True)]
    if any(value > 1.0 for value in raw):
        raise ConfigError(
            "the server did not draw by the seeds it was sent: a proxy drops custom_params from requests; pass "
            "seeds=False, or the address of the server itself"
        )
    return tuple(min(value, 0.0) for value in raw)
