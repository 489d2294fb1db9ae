"""A scripted player of Countdown, with one token for each number as the shipped planner has."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

from tts_agent import ScriptedEngine
from tts_agent.pocket.countdown import LARGEST, legal_steps, parse_prompt, parse_step

_WORDS = ["<eos>", "sure", "impossible", "nums:", " target:", " left:"]
_NUMBERS = [f"{space}{number}" for space in ("", " ") for number in range(LARGEST + 1)]
_SIGNS = list("+-*/=?!x \n")
_VOCABULARY = {text: place for place, text in enumerate([*_WORDS, *_NUMBERS, *_SIGNS])}
_TEXTS = list(_VOCABULARY)
_TOKEN = re.compile("|".join([*map(re.escape, _WORDS), r" ?\d+", r"[-+*/=?!x \n]"]))


class CountdownEngine(ScriptedEngine):
    """A scripted engine whose tokens are those of Countdown."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(_VOCABULARY[token] for token in _TOKEN.findall(text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(_TEXTS[token] for token in ids)


def on_table(prefix: str) -> tuple[int, ...]:
    """The numbers left at the end of a branch."""
    lines = prefix.splitlines()
    step = parse_step(lines[-1])
    if step is not None:
        return step.left
    puzzle = parse_prompt(lines[0])
    assert puzzle is not None
    return puzzle.numbers


def target(prefix: str) -> int:
    puzzle = parse_prompt(prefix.splitlines()[0])
    assert puzzle is not None
    return puzzle.target


@cache
def reachable(numbers: tuple[int, ...], goal: int) -> bool:
    if len(numbers) == 1:
        return numbers[0] == goal
    return any(reachable(tuple(sorted(step.left)), goal) for step in legal_steps(numbers))


def player(prefix: str, seed: int) -> str:
    """A legal step drawn at random, one time in eight an illegal one."""
    rng = Random(f"{prefix}|{seed}")
    if rng.random() < 1 / 8:
        return "1+1=3 left: 3\n"
    return rng.choice(legal_steps(on_table(prefix))).text()


def insight(prefix: str) -> float:
    """Whether the target can still be reached, said with doubt."""
    return 0.9 if reachable(tuple(sorted(on_table(prefix))), target(prefix)) else 0.1


def make_engine(*, script: Callable[[str, int], str] = player, **options: Any) -> CountdownEngine:
    return CountdownEngine(script, judge=insight, latency=1.0, **options)
