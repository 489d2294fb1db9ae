"""What this machine can do at best, in one thread: the floor under any engine.

    python -m benchmarks.machine

Reading: two vectors of 256 MiB, multiplied and summed, which no cache holds. Arithmetic: a product of two fp32
matrices of 1024 x 1024, which caches hold. The floor of a decode step is the slower of reading every weight once and
of one multiply-add for each weight and branch; attention, sampling and everything else are left out of it.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.workload import SIZES, Size


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates of one thread."""

    read_gbs: float  # GB/s
    sgemm_gfs: float  # GFLOP/s in fp32

    def step_ms(self, size: Size, branches: int) -> float:
        """The floor of a decode step of so many branches, milliseconds."""
        reading = 4 * size.streamed / self.read_gbs
        arithmetic = 2 * size.streamed * branches / self.sgemm_gfs
        return max(reading, arithmetic) / 1e6


def measure_machine() -> Machine:
    """Measure both rates, in CPU time (a few tenths of a second)."""
    torch.set_num_threads(1)
    a, b = torch.ones(2, 64 * 2**20)
    read = _rate(lambda: torch.dot(a, b), 8 * len(a), repeats=3)
    x, y = torch.randn(2, 1024, 1024)
    return Machine(read, _rate(lambda: torch.mm(x, y), 2 * 1024**3, repeats=9))


def median_machine(machines: list[Machine]) -> Machine:
    return Machine(
        statistics.median(machine.read_gbs for machine in machines),
        statistics.median(machine.sgemm_gfs for machine in machines),
    )


def _rate(work: Callable[[], object], amount: float, *, repeats: int) -> float:
    """Median of `amount` over the CPU time of `work`, in 1e9 per second."""
    work()
    rates = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        rates.append(amount / (time.process_time() - begun) / 1e9)
    return statistics.median(rates)


def main() -> None:
    machine = measure_machine()
    print(f"one thread: reads {machine.read_gbs:.1f} GB/s, fp32 products {machine.sgemm_gfs:.0f} GFLOP/s")
    for size in SIZES.values():
        steps = ", ".join(f"{machine.step_ms(size, branches):.2f} at {branches}" for branches in (1, 8, 32))
        print(f"{size.name} ({size.parameters / 1e6:.1f}M parameters): floor of a decode step, ms: {steps} branches")


if __name__ == "__main__":
    main()
