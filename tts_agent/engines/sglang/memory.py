"""What a client remembers of the sequences that its servers have computed."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

BLOCK = 16
ENTRIES = 200_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A mapping that forgets what was not asked for the longest."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._size:
            self._items.popitem(last=False)

    def clear(self) -> None:
        self._items.clear()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prefix is at home: `tree` names the search tree that it belongs to, `worker` the server that has it."""

    tree: str
    worker: int


class Homes:
    """Which worker has computed the beginning of a prefix, in blocks of 16 tokens and for whole sequences."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self._places: Recent[int, Place] = Recent(entries)

    def find(self, ids: tuple[int, ...]) -> Place | None:
        """The home of the longest known beginning of `ids`."""
        whole = self._places.get(hash(ids))
        if whole is not None:
            return whole
        found = None
        for key in _blocks(ids):
            place = self._places.get(key)
            if place is None:
                break
            found = place
        return found

    def learn(self, ids: tuple[int, ...], place: Place) -> None:
        """`ids` were computed at `place`."""
        for key in _blocks(ids):
            self._places.put(key, place)
        self._places.put(hash(ids), place)


class Memory:
    """Which sequences one server should have in its cache. It may have evicted them, so this is a guess.

    A guess costs nothing but tokens: a prefix that is wrongly thought cold is warmed for one token, one wrongly thought
    warm is computed once for each sibling.
    """

    def __init__(self, entries: int = ENTRIES) -> None:
        self._known: Recent[int, bool] = Recent(entries)

    def cold(self, ids: tuple[int, ...]) -> bool:
        """Whether more than the last of `ids`, which is always computed again, is probably not in the cache."""
        return len(ids) > 1 and not self._known.get(hash(ids[:-1]))

    def learn(self, ids: tuple[int, ...]) -> None:
        """`ids` were computed, all of them."""
        # A branch that loses its end token is continued one token earlier.
        for end in (len(ids), len(ids) - 1):
            self._known.put(hash(ids[:end]), True)

    def forget(self) -> None:
        """The server was restarted, or has evicted what it was thought to have."""
        self._known.clear()


def _blocks(ids: tuple[int, ...]) -> list[int]:
    """A key for each beginning of `ids` of whole blocks."""
    keys, key = [], 0
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        key = hash((key, ids[end - BLOCK : end]))
        keys.append(key)
    return keys
