"""Sampling whole traces from the planner, many puzzles of one size at a time."""

from collections.abc import Sequence

import torch

from training.network import Planner, room_for, rotation
from training.packing import prompt_ids
from training.vocabulary import EOS, EQUALS, LEFT, NEWLINE, NUMBER, TOKENS
from tts_agent.pocket.countdown import OPERATORS, Puzzle, Step


@torch.no_grad()
def sample(
    planner: Planner, puzzles: Sequence[Puzzle], *, temperature: float, generator: torch.Generator
) -> list[list[int]]:
    """Completions of the prompts, up to and without ``<eos>``; temperature 0 takes the likeliest token.

    All puzzles must have the same number of numbers. A completion may use as many tokens as a legal one and a few
    more.
    """
    size = len(puzzles[0].numbers)
    device = planner.embedding.device
    prompts = torch.tensor([prompt_ids(puzzle) for puzzle in puzzles], device=device)
    room = sum(left + 7 for left in range(1, size)) + 4
    wheel = rotation(planner.shape, torch.arange(prompts.shape[1] + room)).to(device)
    precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
    past = room_for(planner, len(puzzles), prompts.shape[1] + room, precision)
    length = prompts.shape[1]
    causal = torch.full((length, length), float("-inf")).triu(1).to(device)
    logits = planner(prompts, wheel[:, :length], causal, past)[:, -1].float()
    written: list[torch.Tensor] = []
    for index in range(length, length + room):
        if temperature == 0:
            chosen = logits.argmax(-1)
        else:
            # Drawn on the CPU, so that a seed gives the same draws on every device.
            shares = (logits / temperature).softmax(-1).cpu()
            chosen = torch.multinomial(shares, 1, generator=generator)[:, 0].to(device)
        written.append(chosen)
        if len(written) < room:
            open_mask = torch.zeros(1, index + 1, device=device)
            logits = planner(chosen[:, None], wheel[:, index : index + 1], open_mask, past)[:, -1].float()
    rows = torch.stack(written, 1).tolist()
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


def steps_of(ids: Sequence[int]) -> list[Step | None]:
    """The lines of a completion as steps; None for a line that has not the form of one. An open line is dropped."""
    found: list[Step | None] = []
    start = 0
    for index, token in enumerate(ids):
        if token == NEWLINE:
            found.append(_step(list(ids[start:index])))
            start = index + 1
    return found


def _step(line: list[int]) -> Step | None:
    if len(line) < 7 or line[3] != EQUALS or line[5] != LEFT or TOKENS[line[1]] not in OPERATORS:
        return None
    if any(token < NUMBER for token in (line[0], line[2], line[4], *line[6:])):
        return None
    op = next(op for op in OPERATORS if op == TOKENS[line[1]])
    a, b, result, *left = (token - NUMBER for token in (line[0], line[2], line[4], *line[6:]))
    return Step(a, op, b, result, tuple(left))
