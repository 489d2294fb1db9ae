"""Puzzles that the shipped planners have never been trained on, all solvable.

``dev`` is for choosing settings, ``heldout`` for the benchmarks' one look, ``shown`` for demonstrations: held-out
puzzles that were looked at before. No multiset of numbers occurs in dev and another, and none of four or more numbers
in the planners' training. ``training/puzzles.py`` says how they were drawn.
"""

import json
from importlib import resources
from typing import Literal, get_args

from tts_agent.errors import ConfigError
from tts_agent.pocket.countdown import Puzzle

Name = Literal["countdown3", "countdown4", "countdown5", "countdown6", "game24"]
"""Countdown with three to six numbers and a target from 10 to 100, or Game of 24."""
Split = Literal["heldout", "dev", "shown"]

NAMES: tuple[Name, ...] = get_args(Name)
SPLITS: tuple[Split, ...] = get_args(Split)


def load(name: Name, split: Split) -> list[Puzzle]:
    """The puzzles of one set, in a fixed random order.

    Raises:
        ConfigError: no such set or split, or the split has no such set.
    """
    if name not in NAMES:
        raise ConfigError(f"no puzzle set {name!r}; choose one of {', '.join(NAMES)}")
    if split not in SPLITS:
        raise ConfigError(f"no split {split!r}; choose one of {', '.join(SPLITS)}")
    text = resources.files("tts_agent.pocket").joinpath("puzzles.json").read_text(encoding="utf-8")
    sets = json.loads(text)[split]
    if name not in sets:
        raise ConfigError(f"split {split!r} has no puzzles {name!r}; it has {', '.join(sets)}")
    return [Puzzle(tuple(numbers), target) for *numbers, target in sets[name]]
