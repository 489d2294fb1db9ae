"""The memory of the engine: keys, values and final hidden state of every cached token, addressed by slot."""

import numpy as np
import torch
from torch import Tensor

from tts_agent.engines.embedded.model import Shape
from tts_agent.engines.embedded.radix import Slots
from tts_agent.errors import ConfigError


class SlotPool:
    """Storage for `capacity` tokens.

    `kv` is `[layers, 2, slots, kv_heads * head_dim]` (0 = keys, 1 = values), `hidden` is `[slots, hidden]`: the
    final hidden state is kept for every token, so that any cached prefix can be continued or asked without running
    its last token again. Slot 0 belongs to nobody: it pads gathers and stays zero. Raises `ConfigError` if the device
    has not that much memory.
    """

    def __init__(self, shape: Shape, capacity: int, device: torch.device) -> None:
        # NOTE: not zeroed: untouched pages cost no memory, and slots are handed out from the lowest.
        try:
            self.kv = torch.empty(shape.layers, 2, capacity + 1, shape.kv_heads * shape.head_dim, device=device)
            self.hidden = torch.empty(capacity + 1, shape.hidden, device=device)
        except RuntimeError as error:  # torch has no narrower one on the CPU
            raise ConfigError(
                f"no memory for cache_tokens={capacity!r} of {token_bytes(shape)} bytes each on {str(device)!r}: "
                f"{str(error).splitlines()[0]}; make it smaller"
            ) from error
        self.kv[:, :, 0] = 0.0
        self.hidden[0] = 0.0
        self.capacity = capacity
        self.device = device
        self._buffer = torch.empty(0, device=device)
        self._stack = np.arange(capacity, 0, -1, dtype=np.int64)  # free slots, the next one last
        self.free = capacity

    def take(self, count: int) -> Slots:
        """`count` slots, which must be free."""
        assert count <= self.free, f"{count} slots wanted, {self.free} free"
        self.free -= count
        return self._stack[self.free : self.free + count][::-1].copy()

    def give(self, slots: Slots) -> None:
        """Free `slots`."""
        self._stack[self.free : self.free + len(slots)] = slots[::-1]
        self.free += len(slots)

    def store(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Write one layer's keys and values `[tokens, kv_heads, head_dim]`."""
        self.kv[layer, 0].index_copy_(0, slots, key.flatten(1))
        self.kv[layer, 1].index_copy_(0, slots, value.flatten(1))

    def read(self, layer: int, slots: Tensor) -> Tensor:
        """One layer's keys and values of `slots`, `[2, tokens, kv_heads * head_dim]`, until the next read."""
        size = 2 * len(slots) * self.kv.shape[-1]
        # NOTE: one buffer for all reads: a fresh one of this size would cost a page fault for every 4 KiB.
        if len(self._buffer) < size:
            self._buffer = torch.empty(size + size // 2, device=self.device)
        out = self._buffer[:size].view(2, len(slots), -1)
        return torch.index_select(self.kv[layer], 1, slots, out=out)


def token_bytes(shape: Shape) -> int:
    """Bytes that one cached token takes."""
    return 4 * (2 * shape.layers * shape.kv_heads * shape.head_dim + shape.hidden)
