from pathlib import Path

import pytest

from benchmarks.arms import Arm, Booth, Broken, Tree, Unavailable
from benchmarks.engine import Record, chosen, ratios
from benchmarks.machine import Machine
from benchmarks.workload import M150, SAMPLED_TOKENS, TINY, Size


class Steady:
    """Samples the workload's tokens at once; dies of a step of 32 branches."""

    def tree(self) -> int:
        return SAMPLED_TOKENS

    def step(self, branches: int) -> float:
        if branches == 32:
            raise RuntimeError("too many branches")
        return branches / 1000

    def close(self) -> None:
        """Nothing to end."""


def steady(folder: Path, size: Size) -> Arm:
    return Steady()


def missing(folder: Path, size: Size) -> Arm:
    raise Unavailable("not installed")


def record(tree: float, step8: float, step32: float) -> Record:
    return Record([Tree(tree, tree, SAMPLED_TOKENS)], {1: [], 8: [step8], 32: [step32]})


def test_an_arm_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    booth = Booth("steady", steady, tmp_path, TINY)
    try:
        tree = booth.tree()
        assert isinstance(tree, Tree) and tree.sampled == 1728
        assert booth.step(8) == 0.008
        assert booth.step(32) == Broken("its process died: RuntimeError: too many branches")
        assert booth.tree() == booth.broken
    finally:
        booth.close()


def test_an_arm_that_cannot_run_says_why(tmp_path: Path) -> None:
    booth = Booth("missing", missing, tmp_path, TINY)
    try:
        assert booth.tree() == Broken("not installed")
    finally:
        booth.close()


def test_the_floor_is_the_slower_of_reading_and_arithmetic() -> None:
    machine = Machine(read_gbs=10.0, sgemm_gfs=100.0)
    assert machine.step_ms(M150, 1) == pytest.approx(4 * M150.streamed / 10e6)
    assert machine.step_ms(M150, 64) == pytest.approx(2 * M150.streamed * 64 / 100e6)


def test_ratios_are_medians_of_cpu_time_over_ours() -> None:
    records = {"packed": record(2.0, 0.003, 0.006), "carried": record(5.0, 0.012, 0.03), "unshared": Record()}
    found = ratios(records, Machine(read_gbs=1.0, sgemm_gfs=100.0), TINY)
    assert found["tree_speedup_cache_reuse"] == 2.5
    assert found["step32_over_generate_step8"] == 0.5
    assert "tree_speedup_no_sharing" not in found


def test_an_unknown_arm_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match="'vllm'"):
        chosen(["packed", "vllm"], None)
    assert "packed" in chosen(["generic"], None)
