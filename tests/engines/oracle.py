"""What a model says, computed the plain way: one sequence at a time, with nothing shared and nothing kept."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tts_agent import Prefix, Sampling
from tts_agent.engines import Completion, Label

NEAR = 2e-4
"""How far a uniform number may lie outside the interval of the token that it drew, both being rounded."""


class Oracle:
    """Plain forwards of a model with its own eager attention."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._logits = lru_cache(256)(self._forward)

    @classmethod
    def of(cls, folder: Path) -> "Oracle":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        return cls(model.eval())

    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities `[len(ids), vocabulary]` of the token after each of `ids`."""
        return torch.log_softmax(self._logits(tuple(ids)), dim=-1)

    def _forward(self, ids: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0]

    def label(self, ids: Sequence[int], label: Label) -> float:
        """Log-probability of `label` after `ids`."""
        said = (label,) if isinstance(label, int) else label
        rows = self.logprobs((*ids, *said))[len(ids) - 1 : -1]
        return float(sum(rows[i, token] for i, token in enumerate(said)))

    def check(self, prefix: Prefix, completion: Completion, seed: int, sampling: Sampling) -> None:
        """The completion's tokens are those that its seed draws, its log-probabilities those of a plain forward."""
        ids = completion.ids
        assert 0 < len(ids) <= sampling.max_tokens
        assert not set(ids[:-1]) & set(sampling.stop_ids)
        if not sampling.constrained and not sampling.stop_texts:
            stopped = ids[-1] in sampling.stop_ids
            assert completion.finish == ("stop" if stopped else "length")
            assert stopped or len(ids) == sampling.max_tokens
        raws = self._logits(prefix.ids + ids)[len(prefix) - 1 : -1]
        rows = torch.log_softmax(raws, dim=-1)
        plain = [float(rows[i, token]) for i, token in enumerate(ids)]
        assert completion.logprobs == pytest.approx(plain, abs=1e-4)
        for place, token in enumerate(ids):
            logits = raws[place].double()
            if sampling.penalises:
                logits = penalised(logits, prefix.ids, ids[:place], sampling)
            self.check_draw(logits, token, uniform(seed, place), sampling)

    def hidden(self, ids: Sequence[int]) -> list[float]:
        """Final hidden state of the last of `ids`."""
        with torch.inference_mode():
            out = self.model.base_model(torch.tensor([list(ids)])).last_hidden_state[0, -1]
        return [float(value) for value in out]

    def check_draw(self, logits: torch.Tensor, token: int, number: float, sampling: Sampling) -> None:
        """`token` is the one whose interval of the cumulative distribution holds `number`."""
        if sampling.constrained:
            return  # which ids were allowed is not known here
        if not sampling.temperature:
            assert float(logits[token]) >= float(logits.max()) - 1e-4
            return
        probs = torch.softmax(logits / sampling.temperature, dim=-1)
        places = []
        for left in cuts(probs, sampling):
            shares = left.cumsum(0) / left.sum()
            places.append(
                (float(shares[token] - left[token] / left.sum()), float(shares[token]) if left[token] else -1)
            )
        fits = any(below - NEAR <= number <= above + NEAR for below, above in places)
        assert fits, f"{token} was drawn by {number}, its place is one of {places}"


def penalised(logits: torch.Tensor, prompt: Sequence[int], said: Sequence[int], sampling: Sampling) -> torch.Tensor:
    """`logits` with every id's own penalties."""
    out = logits.clone()
    for token in {*prompt, *said}:
        factor = sampling.repetition_penalty
        out[token] = out[token] / factor if out[token] > 0 else out[token] * factor
    for token in set(said):
        out[token] -= sampling.presence_penalty + sampling.frequency_penalty * list(said).count(token)
    return out


def cuts(probs: torch.Tensor, sampling: Sampling) -> list[torch.Tensor]:
    """`probs` without what top-k, then top-p, then min-p leave out.

    What lies on the edge of a cut but for rounding may be in or out, so there may be several.
    """
    if not sampling.top_k and sampling.top_p == 1 and not sampling.min_p:
        return [probs]
    orders = [probs.argsort(descending=True, stable=True).tolist()]
    k = sampling.top_k
    if k and probs[orders[0][k]] > (1 - NEAR) * probs[orders[0][k - 1]]:
        orders.append([*orders[0][: k - 1], orders[0][k]])
    return [kept(probs, order[: k or len(order)], sampling, slack) for order in orders for slack in (-NEAR, 0.0, NEAR)]


def kept(probs: torch.Tensor, order: list[int], sampling: Sampling, slack: float) -> torch.Tensor:
    """`probs` of the ids in `order` that top-p and min-p keep, if both are `slack` off."""
    values = probs.tolist()
    total, before, stay = sum(values[i] for i in order), 0.0, []
    for i in order:
        if stay and sampling.top_p < 1 and before >= (sampling.top_p + slack) * total:
            break
        stay.append(i)
        before += values[i]
    stay = [i for i in stay if values[i] >= sampling.min_p * (1 + slack) * values[order[0]] or i == order[0]]
    out = torch.zeros_like(probs)
    out[stay] = probs[stay]
    return out


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that draws the token at `position` of the sample of `seed`."""
    return (_mix((_mix(seed & MASK) + position) & MASK) >> 11) * 2.0**-53


MASK = 2**64 - 1


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)
