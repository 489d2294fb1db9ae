"""Drawing the next token of many branches at once.

The token of sample j at position t is where a uniform number u(seed_j, t) falls in the cumulative distribution.
u is a hash of seed and position, not the state of a generator, so a sample does not depend on how many siblings it
has or on what else the engine runs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tts_agent.engines.base import Sampling

BLOCK = 128
"""Tokens whose shares are summed before they are accumulated; it divides the vocabularies of most models."""


class Wish(NamedTuple):
    """What decides the next token of one branch, beside its logits and its number."""

    sampling: Sampling
    prompt: tuple[int, ...]
    said: Sequence[int]  # the branch's own ids
    allowed: Tensor | None = None  # [vocab] bool: the ids that a constraint allows


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each pair: SplitMix64 (Steele, Lea and Flood, 2014) of seed, then of position."""
    mixed = _splitmix(_splitmix(seeds) + positions)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def draw(logits: Tensor, wishes: Sequence[Wish], uniform: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """A token for each row of `logits` `[rows, vocab]`, and its raw log-probability."""
    top = logits.amax(dim=-1, keepdim=True)
    odds = (logits - top).exp_()  # of each token, against the likeliest
    scale = top.squeeze(1) + odds.sum(dim=-1).log()
    weights = _adjusted(logits, wishes)
    temperatures = [wish.sampling.temperature for wish in wishes]
    if any(temperatures):
        plain = weights is logits and all(temperature == 1.0 for temperature in temperatures)
        shares = odds if plain else _heated(weights, temperatures)
        _cut(shares, [wish.sampling for wish in wishes])
        chosen = _inverse_cdf(shares, torch.from_numpy(uniform).to(shares.device))
        if not all(temperatures):
            greedy = torch.tensor([temperature == 0 for temperature in temperatures], device=chosen.device)
            chosen = torch.where(greedy, weights.argmax(dim=-1), chosen)
    else:
        chosen = weights.argmax(dim=-1)
    logprobs = logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - scale
    return chosen.tolist(), logprobs.tolist()


def _adjusted(logits: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """`logits` after penalties and constraints; the same tensor if there are none."""
    rows = [i for i, wish in enumerate(wishes) if wish.allowed is not None or wish.sampling.penalises]
    if not rows:
        return logits
    logits = logits.clone()
    for i in rows:
        if wishes[i].sampling.penalises:
            _penalise(logits[i], wishes[i])
        if (allowed := wishes[i].allowed) is not None:
            logits[i].masked_fill_(~allowed.to(logits.device), float("-inf"))
    return logits


def _penalise(row: Tensor, wish: Wish) -> None:
    """Change one row of logits in place."""
    sampling = wish.sampling
    if sampling.repetition_penalty != 1:
        seen = torch.from_numpy(np.unique(np.array((*wish.prompt, *wish.said)))).to(row.device)
        said = row[seen]
        row[seen] = torch.where(said > 0, said / sampling.repetition_penalty, said * sampling.repetition_penalty)
    if wish.said and (sampling.presence_penalty or sampling.frequency_penalty):
        ids, counts = np.unique(np.array(wish.said), return_counts=True)
        penalty = sampling.presence_penalty + sampling.frequency_penalty * counts
        row[torch.from_numpy(ids).to(row.device)] -= torch.from_numpy(penalty).to(row)


def _heated(weights: Tensor, temperatures: Sequence[float]) -> Tensor:
    divisor = torch.tensor([temperature or 1.0 for temperature in temperatures], device=weights.device)
    return torch.softmax(weights / divisor.unsqueeze(1), dim=-1)


def _cut(probs: Tensor, samplings: Sequence[Sampling]) -> None:
    """Zero in place what top-k, top-p and min-p leave out (not normalised: the inverse CDF scales by the total)."""
    rows = [i for i, s in enumerate(samplings) if s.temperature and (s.top_k or s.top_p < 1)]
    if rows:
        probs[rows] = _ranked(probs[rows], [samplings[i] for i in rows])
    if any(sampling.min_p for sampling in samplings):
        share = torch.tensor([sampling.min_p for sampling in samplings], device=probs.device).unsqueeze(1)
        probs.masked_fill_(probs < share * probs.max(dim=-1, keepdim=True).values, 0.0)


def _ranked(probs: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """`probs` without what top-k, then top-p leave out."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    vocab, device = probs.shape[-1], probs.device
    ranks = torch.tensor([sampling.top_k or vocab for sampling in samplings], device=device).unsqueeze(1)
    ordered = ordered.masked_fill(torch.arange(vocab, device=device) >= ranks, 0.0)
    top_p = torch.tensor([sampling.top_p for sampling in samplings], device=device).unsqueeze(1)
    before = ordered.cumsum(dim=-1) - ordered
    # A token stays if the ones before it do not reach top_p yet; the first always stays.
    dropped = (before >= top_p * ordered.sum(dim=-1, keepdim=True)) & (top_p < 1)
    return torch.zeros_like(probs).scatter_(1, order, ordered.masked_fill(dropped, 0.0))


def _inverse_cdf(shares: Tensor, uniform: Tensor) -> Tensor:
    """Where each number of `uniform` falls in a row of `shares` `[rows, vocab]`, which need not add up to one.

    First the block of `BLOCK` tokens is found, then the token in it: most of a row is only summed, not accumulated.
    """
    vocab = shares.shape[-1]
    padded = F.pad(shares, (0, -vocab % BLOCK)) if vocab % BLOCK else shares
    blocks = padded.view(len(shares), -1, BLOCK)
    ends = blocks.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    target = _below(uniform * ends[:, -1], ends[:, -1])
    place = torch.searchsorted(ends, target.unsqueeze(1), right=True)
    found = blocks.gather(1, place.unsqueeze(2).expand(-1, 1, BLOCK)).squeeze(1).cumsum(dim=-1, dtype=torch.float64)
    before = F.pad(ends, (1, 0)).gather(1, place).squeeze(1)
    rest = _below(target - before, found[:, -1])
    return (place * BLOCK + torch.searchsorted(found, rest.unsqueeze(1), right=True)).squeeze(1)


def _below(target: Tensor, total: Tensor) -> Tensor:
    """`target`, or the next number below `total`: rounding must not lift it past the last token with a share."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
