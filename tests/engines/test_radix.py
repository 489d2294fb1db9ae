"""The radix tree against a plain dict of prefixes."""

from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tts_agent.engines.embedded.radix import Node, RadixTree

Ids = tuple[int, ...]
sequences = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)


class RadixMachine(RuleBasedStateMachine):
    """`slot_of` maps every cached sequence (each prefix is one) to the slot of its last token."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree()
        self.slot_of: dict[Ids, int] = {}
        self.locked: list[tuple[Ids, Node]] = []
        self.fresh = 0

    def longest(self, ids: Ids) -> int:
        return max((n for n in range(len(ids) + 1) if ids[:n] in self.slot_of), default=0)

    def in_use(self) -> set[Ids]:
        return {ids[: n + 1] for ids, _ in self.locked for n in range(len(ids))}

    def path(self, node: Node) -> list[int]:
        self.tree.lock(node)
        slots = node.path().tolist()
        self.tree.unlock(node)
        return slots

    @rule(ids=sequences)
    def insert(self, ids: Ids) -> None:
        node = self.tree.find(ids)
        known = self.longest(ids)
        assert node.depth == known
        slots = np.arange(self.fresh, self.fresh + len(ids) - known)
        self.fresh += len(slots)
        end, spare = self.tree.insert(node, ids[known:], slots)
        assert not len(spare)
        assert end.depth == len(ids)
        self.slot_of |= {ids[: known + i + 1]: int(slot) for i, slot in enumerate(slots)}

    @rule(ids=sequences, start=st.integers(0, 9))
    def insert_what_may_be_there(self, ids: Ids, start: int) -> None:
        """What finished branches do: they continue a node, and others may have said the same since."""
        node = self.tree.find(ids[: min(start, self.longest(ids))])
        known = self.longest(ids)
        rest = ids[node.depth :]
        slots = np.arange(self.fresh, self.fresh + len(rest))
        self.fresh += len(rest)
        _, spare = self.tree.insert(node, rest, slots)
        assert spare.tolist() == slots[: known - node.depth].tolist()
        for i in range(known, len(ids)):
            self.slot_of[ids[: i + 1]] = int(slots[i - node.depth])

    @rule(ids=sequences)
    def match(self, ids: Ids) -> None:
        known = self.longest(ids)
        assert self.tree.cached(ids) == known
        node = self.tree.find(ids)
        assert node.depth == known
        assert self.path(node) == [self.slot_of[ids[: i + 1]] for i in range(known)]

    @rule(ids=sequences)
    def lock(self, ids: Ids) -> None:
        node = self.tree.find(ids)
        kept = {ids[: n + 1] for n in range(node.depth)} - self.in_use()
        assert self.tree.unlocked(node) == len(kept)
        self.tree.lock(node)
        self.locked.append((ids[: node.depth], node))

    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        if self.locked:
            ids, node = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
            assert self.path(node) == [self.slot_of[ids[: i + 1]] for i in range(len(ids))]
            self.tree.unlock(node)

    @rule(count=st.integers(1, 12))
    def evict(self, count: int) -> None:
        in_use = self.in_use()
        could = len(self.slot_of.keys() - in_use)
        freed = self.tree.evict(count).tolist()
        assert len(freed) >= min(count, could)
        assert not {self.slot_of[ids] for ids in in_use} & set(freed)
        before = len(self.slot_of)
        self.slot_of = {ids: slot for ids, slot in self.slot_of.items() if slot not in set(freed)}
        assert len(self.slot_of) == before - len(freed)
        assert all(ids[:-1] in self.slot_of or len(ids) == 1 for ids in self.slot_of)

    @invariant()
    def counts_agree(self) -> None:
        assert self.tree.resident == len(self.slot_of)
        assert self.tree.evictable == len(self.slot_of.keys() - self.in_use())
        prefixes = {ids[: n + 1] for ids in self.tree.sequences() for n in range(len(ids))}
        assert prefixes == self.slot_of.keys()


RadixMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRadixTree = RadixMachine.TestCase


def _add(tree: RadixTree, ids: Ids) -> None:
    """Cache `ids` as a finished request does: locked while it runs, then released."""
    node = tree.find(ids)
    end, _ = tree.insert(node, ids[node.depth :], np.array(ids[node.depth :]))
    tree.lock(end)
    tree.unlock(end)


def test_the_least_recently_used_leaf_goes_first() -> None:
    tree = RadixTree()
    for ids in ((1, 2, 3), (4, 5), (6,)):
        _add(tree, ids)
    _add(tree, (1, 2, 3))
    assert tree.evict(1).tolist() == [4, 5]
    assert tree.evict(1).tolist() == [6]
    assert tree.evict(1).tolist() == [1, 2, 3]
    assert tree.evict(1).tolist() == []


def test_a_parent_outlives_its_children() -> None:
    tree = RadixTree()
    _add(tree, (1, 2))
    _add(tree, (1, 2, 3))
    _add(tree, (1, 2, 4))
    _add(tree, (7,))
    assert tree.evict(3).tolist() == [3, 4, 1, 2]
    assert tree.cached((7,)) == 1


def test_heap_of_idle_leaves_does_not_grow_with_use() -> None:
    tree = RadixTree()
    for _ in range(1000):
        _add(tree, (1, 2, 3))
    assert len(tree._idle) < 100
    assert Counter(tree.evict(3).tolist()) == Counter((1, 2, 3))
