"""Drawing the next token of many branches at once.

The token of sample j at position t is where a uniform number u(seed_j, t) falls in the cumulative distribution.
u is a hash of seed and position, not the state of a generator, so a sample does not depend on how many siblings it
has or on what else the engine runs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_agent.engines.base import Sampling


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each pair: SplitMix64 (Steele, Lea and Flood, 2014) of seed, then of position."""
    mixed = _splitmix(_splitmix(seeds) + positions)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def draw(logits: Tensor, samplings: Sequence[Sampling], uniform: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """A token for each row of `logits` `[rows, vocab]`, and its raw log-probability."""
    logprobs = torch.log_softmax(logits, dim=-1)
    temperatures = [sampling.temperature for sampling in samplings]
    if any(temperatures):
        chosen = _inverse_cdf(_shaped(logits, logprobs, samplings), torch.from_numpy(uniform))
        if not all(temperatures):
            greedy = torch.tensor([temperature == 0 for temperature in temperatures])
            chosen = torch.where(greedy, logits.argmax(dim=-1), chosen)
    else:
        chosen = logits.argmax(dim=-1)
    return chosen.tolist(), logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()


def _shaped(logits: Tensor, logprobs: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Probabilities after temperature, then top-k, then top-p."""
    temperatures = [sampling.temperature or 1.0 for sampling in samplings]
    if all(temperature == 1.0 for temperature in temperatures):
        probs = logprobs.exp()
    else:
        probs = torch.softmax(logits / torch.tensor(temperatures).unsqueeze(1), dim=-1)
    rows = [i for i, s in enumerate(samplings) if s.temperature and (s.top_k or s.top_p < 1)]
    if rows:
        probs[rows] = _cut(probs[rows], [samplings[i] for i in rows])
    return probs


def _cut(probs: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Zero what top-k and top-p leave out (not normalised: the inverse CDF scales by the total)."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    vocab = probs.shape[-1]
    ranks = torch.tensor([sampling.top_k or vocab for sampling in samplings]).unsqueeze(1)
    ordered = ordered.masked_fill(torch.arange(vocab) >= ranks, 0.0)
    top_p = torch.tensor([sampling.top_p for sampling in samplings]).unsqueeze(1)
    before = ordered.cumsum(dim=-1) - ordered
    # A token stays if the ones before it do not reach top_p yet; the first always stays.
    dropped = (before >= top_p * ordered.sum(dim=-1, keepdim=True)) & (top_p < 1)
    return torch.zeros_like(probs).scatter_(1, order, ordered.masked_fill(dropped, 0.0))


def _inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # Rounding must not lift u * total to the total: nothing lies past the last token with any probability.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
