"""Trains the pocket planner: ``python -m training.train --out DIR``. The defaults make the shipped model."""

import argparse
import gzip
import json
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from training.feed import Feed
from training.measure import measure
from training.network import Planner, Shape, save_folder
from training.packing import Batch, pack
from training.record import write
from training.solver import Solver
from tts_agent.pocket.puzzles import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights."""

    shape: Shape = Shape()
    steps: int = 4500
    batch: int = 64
    rate: float = 3e-3
    """Highest learning rate."""
    decay: float = 0.05
    warmup: int = 150
    final: float = 0.02
    """Last learning rate, as a share of the highest."""
    verdict_weight: float = 0.4
    own_from: float = 0.4
    """Share of the steps after which the planner's own traces join."""
    own_share: float = 0.4
    """Share of batches from the planner's own traces, from then on."""
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        way = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * way)))

    def own_at(self, step: int) -> bool:
        """Whether this step's batch comes from the planner's own traces."""
        return step >= self.own_from * self.steps and (step * self.own_share) % 1 < self.own_share


def losses(planner: Planner, batch: Batch, rotation: Tensor, mask: Tensor) -> Tensor:
    """Weighted cross entropy of the whole batch, language and verdicts in the same softmax."""
    logits: Tensor = planner(batch.ids, rotation, mask)
    expected = (logits.gather(-1, batch.right) * batch.share).sum(-1)
    return ((logits.logsumexp(-1) * batch.share.sum(-1) - expected) * batch.weight).sum()


def optimizers_of(planner: Planner, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    Muon's updates are scaled to the size of AdamW's, so one learning rate serves both. After 500 steps it had the
    loss that AdamW alone reached after 750.
    """
    inside = [weight for weight in planner.blocks.parameters() if weight.ndim == 2]
    norms = [weight for weight in planner.parameters() if weight.ndim == 1]
    outside = [
        {"params": [planner.embedding], "weight_decay": recipe.decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(inside, lr=recipe.rate, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outside, lr=recipe.rate, betas=(0.9, 0.98), fused=True),
    ]


def train(
    recipe: Recipe, out: Path, *, compiled: bool, report_every: int, save_every: int, record: TextIO | None = None
) -> Planner:
    """Run the recipe, saving the model folder into `out` along the way and at the end.

    `record` takes every trace as text.
    """
    torch.manual_seed(recipe.seed)
    solver = Solver()
    feed = Feed(seed=recipe.seed, batch=recipe.batch, solver=solver)
    planner = Planner(recipe.shape)
    optimizers = optimizers_of(planner, recipe)
    # Three lengths of layout, each compiled once; "dynamic" shapes would be slower.
    loss_of = torch.compile(losses, dynamic=False) if compiled else losses
    started, tokens, recent = time.process_time(), 0, 0.0
    for step in range(recipe.steps):
        layout, traces = feed.sampled(planner) if recipe.own_at(step) else feed.drawn()
        if record is not None:
            write(record, traces)
        batch = pack(layout, traces, verdict_weight=recipe.verdict_weight)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(step)
        loss = loss_of(planner, batch, *layout.geometry(recipe.shape))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(planner.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.ids.numel()
        recent += loss.item()
        if (step + 1) % report_every == 0:
            spent = time.process_time() - started
            print(f"{step + 1} loss {recent / report_every:.4f} tokens {tokens} cpu {spent:.0f}s", flush=True)
            recent = 0.0
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            save_folder(planner, out)
            for name in ("countdown4", "countdown5", "game24"):
                report = measure(planner, load(name, "dev")[:100], solver, samples=4)
                print(step + 1, name, json.dumps({key: round(value, 3) for key, value in report.items()}), flush=True)
    return planner


def main() -> None:
    """Command line."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Train the pocket planner from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--rate", type=float, default=defaults.rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--layers", type=int, default=defaults.shape.layers)
    parser.add_argument("--record", type=Path, help="write every trace seen into this gzip file")
    parser.add_argument("--report-every", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(
        shape=Shape(layers=options.layers),
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        seed=options.seed,
    )
    with ExitStack() as open_files:
        record = None
        if options.record is not None:
            record = open_files.enter_context(gzip.open(options.record, "wt", compresslevel=1, encoding="utf-8"))
        train(
            recipe,
            options.out,
            compiled=not options.eager,
            report_every=options.report_every,
            save_every=options.save_every,
            record=record,
        )


if __name__ == "__main__":
    main()
