"""Which multisets of numbers belong to training, which to dev, which are held out, which are reserved.

The split is by multiset for every size, so no target of a held-out multiset is ever trained on. Reserved multisets
(four numbers, listed by hash in ``reserved-game24.txt``) belong to no set at all.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

Part = Literal["train", "dev", "heldout", "reserved"]

HELDOUT_SHARE, DEV_SHARE = 0.15, 0.05
LOWEST, HIGHEST = 1, 13
"""The numbers a puzzle may start with."""


def _digest(key: str, numbers: tuple[int, ...]) -> str:
    return hashlib.sha256(f"{key} {' '.join(map(str, sorted(numbers)))}".encode()).hexdigest()


@cache
def reserved_digests() -> frozenset[str]:
    """First 16 hexadecimal digits of the reserved multisets."""
    listed = Path(__file__).with_name("reserved-game24.txt").read_text(encoding="ascii")
    return frozenset(listed.split())


@cache
def part_of(numbers: tuple[int, ...]) -> Part:
    """The part that the multiset of `numbers` belongs to. The order does not matter."""
    if len(numbers) == 4 and _digest("tts-agent reserved", numbers)[:16] in reserved_digests():
        return "reserved"
    draw = int(_digest("tts-agent split", numbers)[:16], 16) / 16**16
    if draw < HELDOUT_SHARE:
        return "heldout"
    return "dev" if draw < HELDOUT_SHARE + DEV_SHARE else "train"


def forbidden(numbers: tuple[int, ...]) -> bool:
    """Whether a state with `numbers` may not occur in training, neither as start nor as remainder.

    From four numbers on, every start multiset outside the training part is forbidden, whatever the target.
    Smaller remainders are shared by so many puzzles that they cannot be kept apart.
    """
    if len(numbers) < 4 or min(numbers) < LOWEST or max(numbers) > HIGHEST:
        return False
    return part_of(tuple(sorted(numbers))) != "train"
