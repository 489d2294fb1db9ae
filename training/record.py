"""Every trace that a training run saw, as text, so that anyone can check what was trained on.

``python -m training.record FILE`` replays a file: it counts the traces and fails on the first forbidden state.
"""

import argparse
import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from training.split import forbidden
from training.traces import Trace
from tts_agent.pocket.countdown import parse_prompt, parse_step, prompt_text

SIDE = "| "
"""Stands before a line that was tried beside the path."""


def write(file: TextIO, traces: Iterable[Trace]) -> None:
    """Append the traces, a blank line after each."""
    for trace in traces:
        path = "".join(step.text() for step in trace.steps)
        sides = "".join(SIDE + side.step.text() for side in trace.sides)
        file.write(f"{prompt_text(trace.puzzle)}{path}{sides}\n")


def states(lines: Iterable[str]) -> Iterator[tuple[int, ...]]:
    """Every set of numbers in a record: the puzzles' and what each line says is left.

    Raises:
        ValueError: a line is neither a prompt nor a step.
    """
    for line in filter(str.strip, lines):
        puzzle, step = parse_prompt(line), parse_step(line.removeprefix(SIDE))
        if puzzle is not None:
            yield puzzle.numbers
        elif step is not None:
            yield step.left
        else:
            raise ValueError(f"{line!r} is no line of a training record; write the file with training.train --record")


def main() -> None:
    """Check a record."""
    parser = argparse.ArgumentParser(description="Check that a training run saw no forbidden puzzle.")
    parser.add_argument("file", type=Path)
    total = 0
    with gzip.open(parser.parse_args().file, "rt", encoding="utf-8") as file:
        for numbers in states(file):
            total += 1
            if forbidden(numbers):
                raise SystemExit(f"forbidden state {numbers!r} at state {total}")
    print(f"{total} states, none forbidden")


if __name__ == "__main__":
    main()
