"""Randomness for strategies, which most of them never use."""

import threading
from random import Random


class Dice(Random):
    """Draws what `Random(seed)` would after `begun(seed)`; seeding takes time, and is left until something is drawn."""

    _seed: int | None = None

    def begun(self, seed: int) -> "Dice":
        """Begin anew; returns itself."""
        self._seed = seed
        return self

    def _ready(self) -> None:
        if self._seed is not None:
            seed, self._seed = self._seed, None
            self.seed(seed)

    def random(self) -> float:
        self._ready()
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._ready()
        return super().getrandbits(k)


class _Mine(threading.local):
    def __init__(self) -> None:
        self.dice = Dice(0)


_mine = _Mine()


def dice(seed: int) -> Dice:
    """What draws as `Random(seed)` would until this thread asks again; each has one, since making it takes time."""
    return _mine.dice.begun(seed)
