"""What a client remembers of the sequences that its servers have computed."""

from collections import OrderedDict
from collections.abc import Hashable
from hashlib import blake2b
from typing import Generic, TypeVar

ENTRIES = 200_000
ROOTS = 1000
"""Roots of one length that are remembered."""

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


class Trees:
    """Names the search tree that a prefix belongs to.

    A tree is named by the root with which it first appeared; every prefix that begins with the root belongs to it, the
    later planning steps of a run too. Roots that only begin alike, with the same instructions, are different trees.
    """

    def __init__(self, entries: int = ENTRIES) -> None:
        self._known: Recent[int, str] = Recent(entries)  # whole sequences
        self._roots: dict[int, Recent[int, str]] = {}  # by length

    def name(self, ids: tuple[int, ...]) -> str:
        """The tree of `ids`; a new one if it extends no root."""
        return self._known.get(hash(ids)) or self._rooted(ids) or self._plant(ids)

    def join(self, ids: tuple[int, ...], tree: str) -> None:
        """`ids` belong to `tree`, and so does what continues them, with their last token or without it."""
        self._known.put(hash(ids), tree)
        self._known.put(hash(ids[:-1]), tree)

    def _rooted(self, ids: tuple[int, ...]) -> str | None:
        for length in sorted(self._roots, reverse=True):
            if length <= len(ids) and (tree := self._roots[length].get(hash(ids[:length]))):
                return tree
        return None

    def _plant(self, ids: tuple[int, ...]) -> str:
        tree = blake2b(repr(ids).encode(), digest_size=8).hexdigest()
        self._roots.setdefault(len(ids), Recent(ROOTS)).put(hash(ids), tree)
        return tree


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
