"""Dice draw what `Random` draws."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_agent.search.dice import dice, thought_seed

DRAWS: list[Callable[[Random], Any]] = [
    lambda rng: [rng.random() for _ in range(3)],
    lambda rng: rng.getrandbits(70),
    lambda rng: [rng.choice("abcdef") for _ in range(5)],
    lambda rng: rng.sample(range(100), 7),
    lambda rng: [rng.gauss(0, 1), rng.gauss(0, 1)],
    lambda rng: rng.choices("abc", weights=[1, 2, 3], k=4),
    lambda rng: rng.randint(0, 10**9),
]


@pytest.mark.parametrize("place", range(len(DRAWS)))
@given(seeds=st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**6)), min_size=1, max_size=3))
def test_they_draw_what_random_draws_whatever_was_drawn_before(place: int, seeds: list[tuple[int, int]]) -> None:
    for seed, expansion in seeds:
        drawn = DRAWS[place](dice(seed, expansion))
        assert drawn == DRAWS[place](Random(thought_seed(seed, -expansion - 1)))
