"""How much of a branching workload an engine really computes.

    python -m benchmarks.sharing [--engine embedded|sglang] [--address URL] [--json]

The workload is the tree of `benchmarks.workload`: 8 + 32 + 32 branches of 24 sampled tokens, each asked a question. The
model is a random Llama of hidden size 192 with 6 layers and a vocabulary of 512.

    ratio = tokens computed / (prompt tokens + sampled tokens + question tokens)

where the prompt counts once, and sampled and question tokens once for each thought. 1.00 means that nothing was
computed twice (below it: last tokens that nobody continued need not be computed). `radix_distinct_ratio` divides by
the nodes of a trie over all prompts, branches and questions instead, so that equal tokens of siblings count once.

Beside it runs the same workload without sharing: every branch and every question an own request to an empty cache.
With `--json` the last line is one JSON object.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.workload import BRANCH_TOKENS, KEEP, LABELS, LEVELS, PROMPT_TOKENS, QUESTION, WIDTH, make_model, prompt
from tts_agent.engines import Engine, Sampling
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.prefix import Prefix


@dataclass(slots=True)
class Run:
    """One arm: what it made, and the engine's own counters after it."""

    sampled: int = 0
    asked: int = 0
    sequences: list[tuple[int, ...]] = field(default_factory=list)  # every branch with its question
    computed: int = 0
    cached: int = 0
    generated: int = 0
    forwards: int = 0
    seconds: float = 0.0

    def note(self, branches: Iterable[tuple[int, ...]]) -> None:
        """Count `branches`, which were sampled and asked about."""
        for branch in branches:
            self.sampled += BRANCH_TOKENS
            self.asked += len(QUESTION)
            self.sequences.append(branch + QUESTION)

    @property
    def ratio(self) -> float:
        return self.computed / (PROMPT_TOKENS + self.sampled + self.asked)

    @property
    def distinct_ratio(self) -> float:
        return self.computed / trie_size(self.sequences)


def trie_size(sequences: Iterable[Sequence[int]]) -> int:
    """Distinct non-empty prefixes of `sequences`: the tokens that a perfect cache computes."""
    nodes = 0
    before: Sequence[int] = ()
    for sequence in sorted(map(tuple, sequences)):
        common = 0
        while common < min(len(before), len(sequence)) and before[common] == sequence[common]:
            common += 1
        nodes += len(sequence) - common
        before = sequence
    return nodes


async def run_tree(engine: EmbeddedEngine, *, shared: bool) -> Run:
    """Run the workload; without `shared`, each request is alone with an empty cache."""
    rng = random.Random(1)
    run = Run()
    start, before = time.perf_counter(), engine.counters
    parents = [Prefix(tuple(prompt(1)))]
    for _ in range(LEVELS):
        seeds = [[rng.getrandbits(64) for _ in range(WIDTH)] for _ in parents]
        if shared:
            grown = await asyncio.gather(*(grow(engine, p, s) for p, s in zip(parents, seeds, strict=True)))
        else:
            grown = [
                await alone(engine, parent, seed) for parent, row in zip(parents, seeds, strict=True) for seed in row
            ]
        branches = [branch for siblings in grown for branch in siblings]
        branches.sort(key=lambda branch: branch[0], reverse=True)
        run.note(prefix.ids for _, prefix in branches)
        parents = [prefix for _, prefix in branches[:KEEP]]
    after = engine.counters
    run.seconds = time.perf_counter() - start
    run.computed = after.computed - before.computed
    run.cached = after.cached - before.cached
    run.generated = after.generated - before.generated
    run.forwards = after.forwards - before.forwards
    return run


async def grow(engine: Engine, parent: Prefix, seeds: Sequence[int]) -> list[tuple[float, Prefix]]:
    """Children of `parent`, one for each seed, each with its verdict."""
    stream = engine.sample(parent, Sampling(max_tokens=BRANCH_TOKENS), seeds=seeds)
    children = {completion.index: parent.extend(completion.ids) async for completion in stream}
    prefixes = [children[index] for index in range(len(seeds))]
    scores = await engine.label_logprobs(prefixes, QUESTION, LABELS)
    return [(score.logprobs[0] - score.logprobs[1], prefix) for score, prefix in zip(scores, prefixes, strict=True)]


async def alone(engine: EmbeddedEngine, parent: Prefix, seed: int) -> list[tuple[float, Prefix]]:
    """One child of `parent`, sampled and asked with nothing in the cache."""
    await engine.flush()
    async for completion in engine.sample(parent, Sampling(max_tokens=BRANCH_TOKENS), seeds=[seed]):
        child = parent.extend(completion.ids)
    await engine.flush()
    (score,) = await engine.label_logprobs([child], QUESTION, LABELS)
    return [(score.logprobs[0] - score.logprobs[1], child)]


async def measure() -> tuple[Run, Run]:
    """The workload with and without sharing."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        engine = EmbeddedEngine(folder)
        try:
            await run_tree(engine, shared=True)  # warm up
            await engine.flush()
            return await run_tree(engine, shared=True), await run_tree(engine, shared=False)
        finally:
            await engine.aclose()


def report(shared: Run, unshared: Run) -> Table:
    table = Table(title="8 + 32 + 32 branches x 24 tokens below a prompt of 256, a question each")
    table.add_column("")
    table.add_column("shared", justify="right")
    table.add_column("not shared", justify="right")
    rows = {
        "tokens computed": [f"{run.computed:,}" for run in (shared, unshared)],
        "prompt tokens from the cache": [f"{run.cached:,}" for run in (shared, unshared)],
        "tokens generated": [f"{run.generated:,}" for run in (shared, unshared)],
        "forward passes": [f"{run.forwards:,}" for run in (shared, unshared)],
        "ratio": [f"{run.ratio:.3f}" for run in (shared, unshared)],
        "ratio to distinct tokens": [f"{run.distinct_ratio:.3f}" for run in (shared, unshared)],
        "seconds": [f"{run.seconds:.2f}" for run in (shared, unshared)],
        "generated tokens a second": [f"{run.generated / run.seconds:,.0f}" for run in (shared, unshared)],
    }
    for label, values in rows.items():
        table.add_row(label, *values)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=("embedded", "sglang"), default="embedded")
    parser.add_argument("--address", help="of an SGLang server; without it one is started on the CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if options.engine == "sglang":
        from benchmarks import served

        served.main(options.address, as_json=options.json)
        return
    shared, unshared = asyncio.run(measure())
    Console().print(report(shared, unshared))
    if options.json:
        fields = {
            "ratio": round(shared.ratio, 4),
            "radix_distinct_ratio": round(shared.distinct_ratio, 4),
            "computed": shared.computed,
            "cached": shared.cached,
            "generated": shared.generated,
            "seconds": round(shared.seconds, 3),
            "tokens_per_second": round(shared.generated / shared.seconds, 1),
            "unshared_computed": unshared.computed,
            "unshared_seconds": round(unshared.seconds, 3),
        }
        print(json.dumps(fields))


if __name__ == "__main__":
    main()
