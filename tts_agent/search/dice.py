"""Randomness of a search: the seeds of its samples, and what its strategy draws, which most of them never do."""

import threading
from random import Random


def thought_seed(seed: int, thought: int) -> int:
    """Seed of one sample, fixed when its expansion is planned (splitmix64, 63 bits)."""
    z = (seed * 0x9E3779B97F4A7C15 + thought * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


class Dice(Random):
    """Draws what `Random(thought_seed(seed, -expansion - 1))` would after `begun(seed, expansion)`.

    Seeding takes time, and is left until something is drawn.
    """

    _begun: tuple[int, int] | None = None

    def begun(self, seed: int, expansion: int) -> "Dice":
        """Begin anew; returns itself."""
        self._begun = (seed, expansion)
        return self

    def _ready(self) -> None:
        if self._begun is not None:
            (seed, expansion), self._begun = self._begun, None
            self.seed(thought_seed(seed, -expansion - 1))

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


def dice(seed: int, expansion: int) -> Dice:
    """What a strategy draws from before `expansion` is planned; of use until this thread asks again.

    Each thread has one, since making it takes time.
    """
    return _mine.dice.begun(seed, expansion)
