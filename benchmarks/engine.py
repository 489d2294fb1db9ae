"""The embedded engine beside what else could serve the same model here.

    python -m benchmarks.engine [--json] [--shape tiny|m150|both] [--runs 5] [--quick]

With five rounds the larger shape takes about 20 minutes on one core, the tiny one about 2.

Arms, each in a process of its own with one thread, all on the same random weights in fp32:

* packed: our engine; generic: our engine through the modules of `transformers`, as models beyond Llama are served;
* carried: `generate` with one cache that is selected, repeated and continued (all branches are equally long, which
  favours it); unshared: batched `generate`, every branch and question from its first token; continuous: continuous
  batching of `transformers` (needs psutil);
* openvino: openvino-genai with its prefix cache, where it is installed and `--openvino FOLDER` has converted models.

Each round runs the tree workload (see `benchmarks.workload`; a question to every branch) and decode steps of 1, 8 and
32 branches below a prompt of 256 tokens in every arm, one arm after the other, and measures the machine's floor (see
`benchmarks.machine`); what is reported are medians over the rounds. Before the first round every arm runs the tree once
to warm up; if that took over 20 CPU seconds it counts, and the arm takes no part in the first round's trees. Ratios are
of CPU time, since others may use the machine; wall time stands beside it. `--quick` runs the tiny shape in one round.
Memory is the peak of the arm's process over all it ran, interpreter, torch and weights included.

With `--json` the last line is one JSON object; without suffix its ratios are those of the larger shape measured.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import arms_embedded, arms_huggingface, arms_openvino
from benchmarks.arms import Booth, Broken, Factory, Tree
from benchmarks.machine import Machine, measure_machine, median_machine
from benchmarks.workload import SIZES, Size, make_model

STEPS = (1, 8, 32)
SLOW_SECONDS = 20.0
"""CPU seconds of a tree that needs no warming up."""


@dataclass(slots=True)
class Record:
    """What was measured of one arm."""

    trees: list[Tree] = field(default_factory=list)
    steps: dict[int, list[float]] = field(default_factory=lambda: {branches: [] for branches in STEPS})  # CPU seconds
    peak_mb: float | None = None
    broken: str = ""

    @property
    def tree_cpu(self) -> float | None:
        return _median([tree.cpu for tree in self.trees])

    def step_ms(self, branches: int) -> float | None:
        seconds = _median(self.steps[branches])
        return None if seconds is None else 1000 * seconds

    def summary(self) -> dict[str, object]:
        """The record as JSON."""
        if self.broken and not self.trees:
            return {"broken": self.broken}
        return {
            "tree_cpu_s": _rounded(self.tree_cpu, 3),
            "tree_wall_s": _rounded(_median([tree.wall for tree in self.trees]), 3),
            "tree_cpu_s_min_max": [round(pick(tree.cpu for tree in self.trees), 3) for pick in (min, max)],
            "runs": len(self.trees),
            "step_ms": {str(branches): _rounded(self.step_ms(branches), 2) for branches in STEPS},
            "step_ms_min_max": {
                str(branches): [round(1000 * pick(times), 2) for pick in (min, max)]
                for branches, times in self.steps.items()
                if times
            },
            "peak_mb": _rounded(self.peak_mb, 0),
        } | ({"broken": self.broken} if self.broken else {})


def measure(size: Size, arms: Mapping[str, Factory], runs: int) -> tuple[dict[str, Record], Machine]:
    """Run all arms on a model of `size`, round by round."""
    records = {name: Record() for name in arms}
    machines = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), size)
        booths = [Booth(name, factory, Path(folder), size) for name, factory in arms.items()]
        try:
            for booth in booths:
                _warm_up(booth, records[booth.name])
            for number in range(1, runs + 1):
                machines.append(measure_machine())
                for booth in booths:
                    _round(booth, records[booth.name], number)
            for booth in booths:
                _close(booth, records[booth.name])
        finally:
            for booth in booths:
                booth.close()
    return records, median_machine(machines)


def _warm_up(booth: Booth, record: Record) -> None:
    """Run the tree once; it counts if it was so long that nothing of the first moments shows."""
    tree = booth.tree()
    if isinstance(tree, Tree) and tree.cpu > SLOW_SECONDS:
        record.trees.append(tree)


def _round(booth: Booth, record: Record, number: int) -> None:
    """The arm's part of a round, after which it has `number` trees."""
    if len(record.trees) < number and isinstance(tree := booth.tree(), Tree):
        record.trees.append(tree)
        print(f"{booth.name}: tree {number}, {tree.cpu:.2f} CPU seconds", file=sys.stderr)
    for branches in STEPS:
        if isinstance(seconds := booth.step(branches), float):
            record.steps[branches].append(seconds)


def _close(booth: Booth, record: Record) -> None:
    peak = booth.peak_mb()
    record.peak_mb = None if isinstance(peak, Broken) else peak
    record.broken = booth.broken.reason if booth.broken else ""


def ratios(records: Mapping[str, Record], machine: Machine, size: Size) -> dict[str, float]:
    """What the requirements are about; a ratio whose arm is missing is left out."""
    ours = records["packed"]
    step = ours.step_ms(32)
    found: dict[str, float | None] = {
        "tree_speedup_no_sharing": _ratio(_tree(records, "unshared"), ours.tree_cpu),
        "tree_speedup_cache_reuse": _ratio(_tree(records, "carried"), ours.tree_cpu),
        "tree_speedup_continuous_batching": _ratio(_tree(records, "continuous"), ours.tree_cpu),
        "tree_speedup_openvino": _ratio(_tree(records, "openvino"), ours.tree_cpu),
        "generic_over_packed": _ratio(_tree(records, "generic"), ours.tree_cpu),
        "step32_over_floor": _ratio(step, machine.step_ms(size, 32)),
        "step32_over_generate_step8": _ratio(step, records["carried"].step_ms(8) if "carried" in records else None),
    }
    return {name: round(value, 3) for name, value in found.items() if value is not None}


def _tree(records: Mapping[str, Record], name: str) -> float | None:
    return records[name].tree_cpu if name in records else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def report(records: Mapping[str, Record], machine: Machine, size: Size) -> Table:
    table = Table(title=f"{size.name}: {size.parameters / 1e6:.1f}M parameters, CPU time of one thread")
    table.add_column("arm")
    for column in ("tree s", "min-max", "wall s", "runs", *(f"step {branches}, ms" for branches in STEPS), "peak MB"):
        table.add_column(column, justify="right")
    for name, record in records.items():
        if not record.trees:
            continue
        times = [tree.cpu for tree in record.trees]
        cells = [f"{record.tree_cpu:.2f}", f"{min(times):.2f}-{max(times):.2f}"]
        cells.append(f"{_median([tree.wall for tree in record.trees]):.2f}")
        cells.append(str(len(record.trees)))
        cells.extend(_range(record.steps[branches]) for branches in STEPS)
        cells.append("-" if record.peak_mb is None else f"{record.peak_mb:,.0f}")
        table.add_row(name, *cells)
    table.add_row("floor", "", "", "", "", *(_cell(machine.step_ms(size, branches)) for branches in STEPS), "")
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(seconds: Sequence[float]) -> str:
    """Median, smallest and largest, in milliseconds."""
    if not seconds:
        return "-"
    return f"{1000 * statistics.median(seconds):.2f} ({1000 * min(seconds):.2f}-{1000 * max(seconds):.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--shape", choices=(*SIZES, "both"), default="both")
    parser.add_argument("--runs", type=int, default=5, help="rounds (5)")
    parser.add_argument("--quick", action="store_true", help="the tiny shape in one round")
    parser.add_argument("--arms", default=",".join((*ARMS, "openvino")), help="comma-separated; 'packed' always runs")
    parser.add_argument("--openvino", type=Path, metavar="FOLDER", help="has the converted models in tiny/ and m150/")
    options = parser.parse_args(argv)
    arms = chosen(options.arms.split(","), options.openvino)
    sizes = [SIZES["tiny"]] if options.quick else [s for s in SIZES.values() if options.shape in (s.name, "both")]
    runs = 1 if options.quick else max(1, options.runs)
    console = Console(width=None if sys.stdout.isatty() else 120)  # a file is no narrow terminal
    result: dict[str, object] = {}
    for size in sizes:
        records, machine = measure(size, arms, runs)
        found = ratios(records, machine, size)
        console.print(report(records, machine, size))
        console.print(*(f"  {name}: {record.broken}" for name, record in records.items() if record.broken), sep="\n")
        console.print(f"one thread reads {machine.read_gbs:.1f} GB/s and multiplies {machine.sgemm_gfs:.0f} GFLOP/s")
        console.print(*(f"  {name} {value}" for name, value in found.items()), sep="\n")
        result |= found | {f"{size.name}_{name}": value for name, value in found.items()}
        result[size.name] = {name: record.summary() for name, record in records.items()}
        result[f"{size.name}_machine"] = {"read_gbs": round(machine.read_gbs, 1), "sgemm_gfs": round(machine.sgemm_gfs)}
    result |= {"rounds": runs, "load": [round(load, 2) for load in os.getloadavg()]}
    if options.json:
        print(json.dumps(result))
    return 0


ARMS: dict[str, Factory] = {
    "packed": arms_embedded.packed,
    "generic": arms_embedded.generic,
    "carried": arms_huggingface.carried,
    "unshared": arms_huggingface.unshared,
    "continuous": arms_huggingface.continuous,
}


def chosen(names: Sequence[str], openvino: Path | None) -> dict[str, Factory]:
    """The arms called `names`, ours among them."""
    known = ARMS | {"openvino": partial(arms_openvino.paged, openvino)}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no such arm: {unknown!r}; there are {', '.join(known)}")
    return {name: factory for name, factory in known.items() if name in names or name == "packed"}


if __name__ == "__main__":
    raise SystemExit(main())
