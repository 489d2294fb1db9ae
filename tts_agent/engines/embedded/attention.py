"""Shared-prefix attention over a step's tokens.

The tokens of a step are packed in one list. The queries of a group attend to one list of keys, which holds the
shared path once and after it each row's own tokens; a mask lets a query see the path and its own row up to itself.
So what branches share is read once for all of them, lengths may differ, and one softmax covers both parts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tts_agent.engines.embedded.grouping import Batch, Group, batches
from tts_agent.engines.embedded.pool import SlotPool


@dataclass(slots=True)
class Layout:
    """Where everything of a batch is: `size` groups of `width` queries and `keys` keys, tokens `[first, last)`."""

    first: int
    last: int
    size: int
    width: int
    keys: int
    slots: Tensor  # [size * keys]; padded with slot 0
    mask: Tensor  # [size, 1, width, keys]; 0 = seen, -inf = not
    spread: Tensor | None  # for each of size * width query places, the token there; None = all in order
    gather: Tensor | None  # for each token, its query place; None = in order


class Plan:
    """One step's attention: built from groups, called once a layer."""

    def __init__(self, groups: Iterable[Group], pool: SlotPool, *, kv_heads: int) -> None:
        self._pool = pool
        self._kv_heads = kv_heads
        self._layouts: list[Layout] = []
        ids: list[int] = []
        positions: list[int] = []
        slots = []
        for batch in batches(groups):
            self._layouts.append(_layout(batch, len(ids), pool.device))
            for group in batch.groups:
                for row in group.rows:
                    ids.extend(row.ids)
                    positions.extend(range(row.start, row.start + len(row.ids)))
                    slots.append(row.slots)
                    row.last = len(ids) - 1
        self.ids = torch.tensor(ids, device=pool.device)
        self.positions = torch.tensor(positions, device=pool.device)
        self.slots = torch.from_numpy(np.concatenate(slots)).to(pool.device)

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
        self._pool.store(layer, self.slots, key, value)
        outs = [self._attend(layout, layer, query, scale, softcap) for layout in self._layouts]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _attend(self, at: Layout, layer: int, query: Tensor, scale: float | None, softcap: float | None) -> Tensor:
        kv = self._pool.read(layer, at.slots).view(2, at.size, at.keys, self._kv_heads, -1)
        keys, values = kv.transpose(2, 3)
        q = query[at.first : at.last] if at.spread is None else query.index_select(0, at.spread)
        heads, dim = q.shape[1:]
        shared = heads // self._kv_heads  # query heads that read one key head: more queries of the same keys
        q = q.view(at.size, at.width, self._kv_heads, shared, dim).permute(0, 2, 1, 3, 4)
        q = q.reshape(at.size, self._kv_heads, at.width * shared, dim)
        mask = at.mask if shared == 1 else at.mask.repeat_interleave(shared, dim=2)
        if softcap is None:
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
        else:
            out = _capped_attention(q, keys, values, mask, dim**-0.5 if scale is None else scale, softcap)
        out = out.view(at.size, self._kv_heads, at.width, shared, dim).transpose(1, 2)
        out = out.reshape(at.size * at.width, heads * dim)
        return out if at.gather is None else out.index_select(0, at.gather)


def _capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention whose scores saturate at +-`softcap` (Gemma 2, section 2)."""
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
    return torch.softmax(scores + mask, dim=-1) @ v


def _layout(batch: Batch, first: int, device: torch.device) -> Layout:
    """Lay out `batch` on `device`; its tokens follow one another from `first`."""
    groups, width, length = batch
    size = len(groups)
    queries = np.array([group.queries for group in groups])
    keys = np.array([group.keys for group in groups])
    column = np.arange(length)
    slots = np.zeros((size, length), dtype=np.int64)
    slots[column < keys[:, None]] = np.concatenate(
        [
            run
            for group in groups
            for run in (group.path, *(part for row in group.rows for part in (row.own, row.slots)))
        ]
    )
    # A query sees keys [0, shared) and [begin, end). A padding query sees one key, or its softmax is NaN.
    shared, begin, end = (np.full((size, width), value, dtype=np.int64) for value in (1, 0, 0))
    real = np.arange(width) < queries[:, None]
    shared[real] = np.repeat([len(group.path) for group in groups], queries)
    begin[real], end[real] = _windows(groups)
    hidden = ((column < begin[..., None]) | (column >= end[..., None])) & (column >= shared[..., None])
    mask = torch.zeros(size, 1, width, length).masked_fill_(torch.from_numpy(hidden).unsqueeze(1), float("-inf"))
    last = first + int(queries.sum())
    spread = gather = None
    if last - first < size * width:
        gather = torch.from_numpy(np.flatnonzero(real))
        spread = torch.full((size * width,), first, dtype=torch.int64)
        spread[gather] = torch.arange(first, last)
        spread, gather = spread.to(device), gather.to(device)
    places = torch.from_numpy(slots.ravel()).to(device)
    return Layout(first, last, size, width, length, places, mask.to(device), spread, gather)


def _windows(groups: Sequence[Group]) -> tuple[list[int], list[int]]:
    """For each query, where the keys of its own row begin and, after its own key, end."""
    begin: list[int] = []
    end: list[int] = []
    for group in groups:
        at = len(group.path)
        for row in group.rows:
            new = at + len(row.own)
            after = new + len(row.ids)
            begin.extend([at] * len(row.ids))
            end.extend(range(new + 1, after + 1))
            at = after
    return begin, end
