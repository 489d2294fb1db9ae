"""What this machine trains on and with which precision of the matrix products.

Weights, norms, softmax and loss are fp32 everywhere. Matrix products are bf16 where the processor multiplies bf16
natively (CUDA since Ampere; CPUs with AMX or AVX512-BF16), else fp32: emulated, bf16 would be slower.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Machine:
    """A torch device, and whether its matrix products are bf16."""

    device: str
    bf16: bool

    def products(self) -> AbstractContextManager[object]:
        """Within this, matrix products have the machine's precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


def this_machine() -> Machine:
    """CUDA where there is a device, else the CPU."""
    if torch.cuda.is_available():
        return Machine("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return Machine("cpu", bool(known.get("amx_bf16") or known.get("avx512_bf16")))
