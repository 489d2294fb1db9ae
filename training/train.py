"""Trains a pocket planner: ``python -m training.train --out DIR``. The defaults make the shipped model.

A run writes ``checkpoint.pt`` beside the model as it goes; ``--resume FILE`` goes on from one, to the same weights as
if nothing had happened.
"""

import argparse
import gzip
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from training.feed import Feed
from training.machine import Machine, this_machine
from training.measure import measure
from training.network import Planner, Shape, save_folder
from training.packing import Batch, labels, pack
from training.record import write
from training.solver import Solver
from training.traces import LARGEST_SIZE, Mixture, Trace
from training.vocabulary import QUESTION
from tts_agent.pocket.puzzles import Name, load

REPORTED: tuple[Name, ...] = ("countdown4", "countdown5", "countdown6", "game24")
"""Dev puzzles that are measured on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights."""

    shape: Shape = Shape(width=128, layers=5, heads=4, inner=384)
    steps: int = 14_400
    batch: int = 64
    rate: float = 4e-3
    """Highest learning rate."""
    decay: float = 0.05
    warmup: int = 150
    cooldown: float = 0.25
    """Share of the steps at the end in which the rate falls to zero; before, it is constant."""
    verdict_weight: float = 0.4
    discount: float = 1.0
    """A verdict's label where the target can be reached is this to the power of the lines to come."""
    rollouts: int = 0
    """With 0 the solver labels the verdicts, else the share of so many completions by the planner that solve."""
    focus: float = 0.5
    """How far the planner may choose between winning steps: 0 learns their whole distribution, 1 only to take one."""
    own_from: int = 2_500
    """The step from which the planner's own traces join."""
    own_share: float = 0.3
    """Share of batches from the planner's own traces, from then on."""
    mixture: Mixture = Mixture()
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Linear warm-up, constant, linear to zero."""
        rising = (step + 1) / self.warmup
        falling = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.rate * min(1.0, rising, falling)

    def own_at(self, step: int) -> bool:
        """Whether this step's batch comes from the planner's own traces."""
        return step >= self.own_from and (step * self.own_share) % 1 < self.own_share


RECIPES = {
    "large": Recipe(),
    "small": Recipe(shape=Shape(width=64, layers=4, heads=4, inner=192), steps=7_200),
}
"""The two planners that ship."""


def losses(planner: Planner, batch: Batch, rotation: Tensor, mask: Tensor, focus: float, machine: Machine) -> Tensor:
    """Weighted cross entropy of the whole batch, language and verdicts in the same softmax.

    Where several steps win, the distribution to learn is the solver's times the planner's own to the power of `focus`.
    With 1 the gradient is that of the log-probability of winning steps together, each weighted by its solutions.
    """
    with machine.products():
        logits = planner(batch.ids, rotation, mask)
    logits = logits.float()
    likely: Tensor = logits.gather(-1, batch.right) - logits.logsumexp(-1, keepdim=True)
    preference = focus * likely.detach() * (batch.ids != QUESTION)[..., None]
    share = batch.share * (preference - preference.amax(-1, keepdim=True)).exp()
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-30)
    return -((share * likely).sum(-1) * batch.weight).sum()


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


class Run:
    """A training run at some step: weights, optimisers and the stream of batches."""

    def __init__(self, recipe: Recipe, solver: Solver, *, machine: Machine, compiled: bool) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.machine = machine
        self.solver = solver
        self.planner = Planner(recipe.shape).to(machine.device)
        self.optimizers = optimizers_of(self.planner, recipe)
        self.feed = Feed(seed=recipe.seed, batch=recipe.batch, solver=solver, mixture=recipe.mixture)
        self.step = 0
        # A few lengths of layout, each compiled once; "dynamic" shapes would be slower. Forgotten first is what earlier
        # runs of the process compiled: it would count against the limit of variants.
        torch.compiler.reset()
        self._losses = torch.compile(losses, dynamic=False) if compiled else losses

    def advance(self, record: TextIO | None) -> float:
        """One step of training; its loss."""
        recipe, device = self.recipe, self.machine.device
        with self.machine.products():
            layout, traces = self.feed.sampled(self.planner) if recipe.own_at(self.step) else self.feed.drawn()
        if record is not None:
            write(record, traces)
        packed = pack(layout, traces, verdict_weight=recipe.verdict_weight, values=self._values(traces))
        batch = Batch(*(part.to(device) for part in packed))
        rotation, mask = (part.to(device) for part in layout.geometry(recipe.shape))
        loss: Tensor = self._losses(self.planner, batch, rotation, mask, recipe.focus, self.machine)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.planner.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _values(self, traces: Sequence[Trace]) -> list[list[float]]:
        """The labels of all questions."""
        if not self.recipe.rollouts:
            return [labels(trace, self.recipe.discount) for trace in traces]
        with self.machine.products():
            return self.feed.estimated(self.planner, traces, self.recipe.rollouts)

    def save(self, file: Path) -> None:
        """Write everything that `resume` needs, first beside the old checkpoint and then over it."""
        state: dict[str, Any] = {
            "recipe": replace(self.recipe, steps=0),
            "step": self.step,
            "planner": self.planner.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "feed": self.feed.state(),
        }
        new = file.with_suffix(".new")
        torch.save(state, new)
        new.replace(file)

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint of the same recipe; only the number of steps may differ.

        Raises:
            ValueError: the checkpoint is of another recipe.
        """
        recipe = self.load(file)
        if recipe != replace(self.recipe, steps=0):
            raise ValueError(f"{str(file)!r} is of the recipe {recipe!r}; resume with its settings")

    def load(self, file: Path) -> Recipe:
        """Take everything but the recipe from a checkpoint; the recipe it was made with, its steps left out."""
        state = torch.load(file, map_location="cpu", weights_only=False)
        self.step = state["step"]
        self.planner.load_state_dict(state["planner"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.feed.restore(state["feed"])
        found: Recipe = state["recipe"]
        return found


def train(
    recipe: Recipe,
    out: Path,
    *,
    solver: Solver,
    compiled: bool,
    report_every: int,
    save_every: int,
    measure_every: int,
    machine: Machine | None = None,
    resume: Path | None = None,
    record: TextIO | None = None,
) -> Planner:
    """Run the recipe, saving the model folder into `out` along the way and at the end.

    `record` takes every trace as text.
    """
    run = Run(recipe, solver, machine=machine or this_machine(), compiled=compiled)
    if resume is not None:
        run.resume(resume)
    out.mkdir(parents=True, exist_ok=True)
    started, begun, recent = time.monotonic(), run.step, 0.0
    while run.step < recipe.steps:
        recent += run.advance(record)
        if run.step % report_every == 0:
            spent = time.monotonic() - started
            print(f"{run.step} loss {recent / report_every:.4f} {spent:.0f}s, {run.step - begun} steps", flush=True)
            recent = 0.0
        if run.step % save_every == 0:
            run.save(out / "checkpoint.pt")
        if run.step % measure_every == 0 or run.step == recipe.steps:
            save_folder(run.planner, out)
            _report(run)
    return run.planner


def _report(run: Run) -> None:
    for name in REPORTED:
        found = measure(run.planner, load(name, "dev")[:100], run.solver, samples=4, machine=run.machine)
        print(run.step, name, json.dumps({key: round(value, 3) for key, value in found.items()}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train a pocket planner from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--size", choices=RECIPES, default="large", help="which of the two planners")
    for name in ("steps", "batch", "own-from", "rollouts", "seed"):
        parser.add_argument(f"--{name}", type=int, help="instead of the recipe's")
    for name in ("rate", "verdict-weight", "discount", "focus", "own-share"):
        parser.add_argument(f"--{name}", type=float, help="instead of the recipe's")
    for name in ("wander", "broken", "wrong", "tempting"):
        parser.add_argument(f"--{name}", type=float, help="share of such traces or lines, instead of the recipe's")
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint")
    parser.add_argument("--record", type=Path, help="write every trace seen into this gzip file")
    parser.add_argument("--report-every", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--measure-every", type=int, default=2000)
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {name: value for name, value in vars(options).items() if value is not None}
    recipe = RECIPES[options.size]
    mixture = replace(recipe.mixture, **{name: given[name] for name in Mixture.__slots__ if name in given})
    recipe = replace(recipe, mixture=mixture, **{name: given[name] for name in Recipe.__slots__ if name in given})
    solver = Solver()
    solver.prepare(LARGEST_SIZE)
    with ExitStack() as open_files:
        record = None
        if options.record is not None:
            record = open_files.enter_context(
                gzip.open(options.record, "at" if options.resume else "wt", compresslevel=1, encoding="utf-8")
            )
        train(
            recipe,
            options.out,
            solver=solver,
            compiled=not options.eager,
            report_every=options.report_every,
            save_every=options.save_every,
            measure_every=options.measure_every,
            resume=options.resume,
            record=record,
        )


if __name__ == "__main__":
    main()
