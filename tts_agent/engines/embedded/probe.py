"""A small tree of branches that shows how a model calls attention and whether sharing it is exact."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

START, BRANCH = 7, 5

UNSERVED = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "position biases",
    "head_mask": "a mask of heads",
}
"""Arguments of attention that change its result and are not computed."""


class Tree:
    """Random ids on `device`: a start of 7 tokens and two branches of 5, packed."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        size = START + 2 * BRANCH
        self.ids = torch.randint(vocab, (size,), generator=torch.Generator().manual_seed(1)).to(device)
        self.positions = torch.cat((torch.arange(START), torch.arange(START, START + BRANCH).repeat(2))).to(device)
        self.seen = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        self.seen[START + BRANCH :, START : START + BRANCH] = False
        self._rows = [
            torch.arange(START + BRANCH),
            torch.cat((torch.arange(START), torch.arange(START + BRANCH, size))),
        ]

    @property
    def branches(self) -> list[Tensor]:
        """Ids of each branch, from the start's first."""
        return [self.ids[rows] for rows in self._rows]

    def rows(self, packed: Tensor) -> Tensor:
        """The rows of `packed` in the order of `branches`."""
        return packed[torch.cat(self._rows)]


class Probe:
    """Attention over a packed tree, written plainly, that notes how it is called.

    `layers` are the layers that called, in order; `sizes` the heads, key heads and head sizes that they have;
    `windows` what they said of sliding windows; `problem` what cannot be answered exactly.
    """

    def __init__(self, seen: Tensor) -> None:
        self._seen = seen
        self.layers: list[int] = []
        self.sizes: set[tuple[int, int, int]] = set()
        self.windows: set[int] = set()
        self.problem = "its attention is written in a way of its own and cannot be plugged"

    def look(self, key: Tensor, value: Tensor, mask: Tensor | None, extra: Mapping[str, Any]) -> None:
        """Note what a call of attention brings beyond queries, keys and values."""
        if isinstance(window := extra.get("sliding_window"), int):
            self.windows.add(window)
        self.problem = self.problem if self.layers else ""
        asked = [what for name, what in UNSERVED.items() if extra.get(name) is not None]
        if asked:
            self.problem = f"its attention uses {asked[0]}"
        elif mask is not None:
            self.problem = "its attention uses a mask of its own"
        elif key.shape != value.shape:
            self.problem = (
                f"its keys and values differ in size, {key.shape[-1]} and {value.shape[-1]} (latent attention)"
            )

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
        tokens, heads, dim = query.shape
        self.layers.append(layer)
        self.sizes.add((heads, key.shape[1], dim))
        key, value = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) * (dim**-0.5 if scale is None else scale)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores.masked_fill(~self._seen, float("-inf")), dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, value).reshape(tokens, -1)
