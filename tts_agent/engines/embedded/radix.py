"""A radix tree over token ids: which sequences are in the cache, and in which slots.

Each node is an edge: a run of token ids and the pool slot of each. A sequence is cached as far as a path from the
root spells it. Paths in use are locked; what nobody locks may be evicted, least recently used leaf first.
"""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
NO_SLOTS: Slots = np.empty(0, dtype=np.int64)


class Node:
    """A run of tokens below `parent`. `locks` counts the users of this node and of everything below it."""

    __slots__ = ("_path", "children", "depth", "ids", "locks", "parent", "slots", "used")

    def __init__(self, ids: tuple[int, ...], slots: Slots, parent: "Node | None") -> None:
        self.ids = ids
        self.slots = slots
        self.parent = parent
        self.depth: int = len(ids) + (parent.depth if parent else 0)  # tokens from the root to this node's end
        self.children: dict[int, Node] = {}  # by the first id of the child's run
        self.locks = 0
        self.used = 0  # the tree's clock when the node was last locked or unlocked
        self._path: Slots | None = None

    @property
    def last_slot(self) -> int:
        """Slot of the node's last token."""
        return int(self.slots[-1])

    def path(self) -> Slots:
        """Slots of every token from the root to this node's end; the node must be locked."""
        if self._path is None:
            runs = [self.slots]
            above = self.parent
            while above is not None:
                known = above._path  # of the nearest ancestor that is in use, too
                runs.append(above.slots if known is None else known)
                above = above.parent if known is None else None
            self._path = np.concatenate(runs[::-1])
        return self._path

    def release(self) -> None:
        """Forget what only a locked node needs."""
        self._path = None


class RadixTree:
    """Cached sequences. `resident` counts all its tokens, `evictable` those on no locked path."""

    def __init__(self) -> None:
        self.root = Node((), NO_SLOTS, None)
        self.root.locks = 1  # the root is never evicted
        self.resident = 0
        self.evictable = 0
        self._clock = 0
        self._nodes = 0
        self._idle: list[tuple[int, int, Node]] = []  # heap of leaves that were unlocked; stale entries are skipped
        self._pushes = 0

    def cached(self, ids: Sequence[int]) -> int:
        """How many leading tokens of `ids` are cached. Changes nothing."""
        node, done = self.root, 0
        while child := node.children.get(ids[done]) if done < len(ids) else None:
            common = _common(child.ids, ids, done)
            done += common
            if common < len(child.ids):
                break
            node = child
        return done

    def find(self, ids: tuple[int, ...], node: Node | None = None) -> Node:
        """The deepest node whose path spells the start of `ids`; an edge is cut in two where `ids` leaves it.

        `node`, if given, is one that is known to lie on that path; the walk starts there.
        """
        node = node or self.root
        while child := node.children.get(ids[node.depth]) if node.depth < len(ids) else None:
            common = _common(child.ids, ids, node.depth)
            if common < len(child.ids):
                return self._cut(child, common)
            node = child
        return node

    def unlocked(self, node: Node) -> int:
        """Tokens on the path to `node` that `lock(node)` would keep from eviction."""
        count = 0
        at: Node | None = node
        while at is not None and not at.locks:  # above a locked node everything is locked
            count += len(at.ids)
            at = at.parent
        return count

    def lock(self, node: Node) -> None:
        """Keep the path to `node` from eviction until `unlock`."""
        self._clock += 1
        at: Node | None = node
        while at is not None:
            if not at.locks:
                self.evictable -= len(at.ids)
            at.locks += 1
            at.used = self._clock
            at = at.parent

    def unlock(self, node: Node) -> None:
        """Undo one `lock(node)`."""
        assert node.locks > 0, "unlock without lock"
        self._clock += 1
        at: Node | None = node
        while at is not None:
            at.locks -= 1
            at.used = self._clock
            if not at.locks:
                self.evictable += len(at.ids)
                at.release()
            at = at.parent
        self._offer(node)

    def insert(self, node: Node, ids: tuple[int, ...], slots: Slots) -> tuple[Node, Slots]:
        """Cache `ids` below `node`; returns the node of their end and the slots that are not needed.

        Tokens that are cached already keep their slots; the new ones for them are handed back.
        """
        done = 0
        while done < len(ids):
            child = node.children.get(ids[done])
            if child is None:
                child = Node(ids[done:], slots[done:], node)
                child.used = self._clock
                node.children[ids[done]] = child
                self._nodes += 1
                self.resident += len(child.ids)
                self.evictable += len(child.ids)
                self._offer(child)
                return child, slots[:done]
            common = _common(child.ids, ids, done)
            node = child if common == len(child.ids) else self._cut(child, common)
            done += common
        return node, slots

    def evict(self, count: int) -> Slots:
        """Drop unlocked leaves, least recently used first, until `count` tokens are freed or none is left.

        Returns the freed slots; a leaf goes whole, so they may be more than `count`.
        """
        freed: list[Slots] = []
        got = 0
        while got < count and self._idle:
            used, _, node = heapq.heappop(self._idle)
            if not _is_idle(node, used):
                continue
            parent = node.parent
            assert parent is not None
            del parent.children[node.ids[0]]
            node.parent = None
            self._nodes -= 1
            freed.append(node.slots)
            got += len(node.ids)
            self._offer(parent)
        self.resident -= got
        self.evictable -= got
        return np.concatenate(freed) if freed else NO_SLOTS

    def sequences(self) -> Iterator[tuple[int, ...]]:
        """The ids from the root to every leaf."""
        stack: list[tuple[Node, tuple[int, ...]]] = [(self.root, ())]
        while stack:
            node, ids = stack.pop()
            if not node.children and ids:
                yield ids
            stack.extend((child, ids + child.ids) for child in node.children.values())

    def _cut(self, node: Node, length: int) -> Node:
        """Split `node` after `length` tokens; returns the new upper part. `node` stays the path's end."""
        parent = node.parent
        assert parent is not None and 0 < length < len(node.ids)
        upper = Node(node.ids[:length], node.slots[:length], parent)
        upper.locks, upper.used = node.locks, node.used
        upper.children[node.ids[length]] = node
        parent.children[node.ids[0]] = upper
        node.ids, node.slots, node.parent = node.ids[length:], node.slots[length:], upper
        self._nodes += 1
        return upper

    def _offer(self, node: Node) -> None:
        """Remember `node` for eviction if it is an unlocked leaf."""
        if node.locks or node.children:
            return
        self._pushes += 1
        heapq.heappush(self._idle, (node.used, self._pushes, node))
        if len(self._idle) > 2 * self._nodes + 64:
            self._idle = [entry for entry in self._idle if _is_idle(entry[2], entry[0])]
            heapq.heapify(self._idle)


def _is_idle(node: Node, used: int) -> bool:
    return not node.locks and not node.children and node.parent is not None and node.used == used


def _common(run: tuple[int, ...], ids: Sequence[int], start: int) -> int:
    """Length of the common start of `run` and `ids[start:]`."""
    end = start + len(run)
    if end <= len(ids) and tuple(ids[start:end]) == run:
        return len(run)
    for offset, (a, b) in enumerate(zip(run, ids[start:end], strict=False)):
        if a != b:
            return offset
    return min(len(run), len(ids) - start)
