"""What the engine needs of a model: a forward pass that leaves attention to the engine."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context: int  # most tokens of a sequence


class Attend(Protocol):
    """Attention over the step's plan: stores keys and values, returns what each query reads."""

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """`query` is `[tokens, heads, head_dim]`, `key` and `value` `[tokens, kv_heads, head_dim]`, positions
        applied; returns `[tokens, heads * head_dim]`. Scores are multiplied by `scale` (None: `head_dim ** -0.5`) and
        saturate at +-`softcap` (None: they do not)."""
        ...


class Model(Protocol):
    """A causal language model over packed tokens: one row per token, of whatever sequences."""

    @property
    def shape(self) -> Shape: ...

    @property
    def device(self) -> torch.device:
        """Where its weights are; everything of a step is there."""
        ...

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Final hidden states `[tokens, hidden]` of `ids` at `positions`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits `[rows, vocab]` of final hidden states."""
        ...
