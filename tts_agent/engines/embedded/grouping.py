"""Which rows of a step attend together.

Rows that continue the same cached path form a group, and what the group shares is read once. Groups are padded to
batches. Both choices weigh work that is done in vain against work that is done twice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tts_agent.engines.embedded.radix import Node, Slots

# Costs in units of one query looking at one key, measured on an AVX-512 CPU; results do not depend on them.
KEY_COST = 24  # bringing a key and its value to the queries: copying them out of the pool and packing them
BATCH_COST = 7_000  # the operations of one more batch


@dataclass(slots=True, eq=False)
class Row:
    """New tokens of one sequence."""

    own: Slots  # slots of the row's earlier tokens that the group does not share
    ids: tuple[int, ...]  # the new tokens
    start: int  # position of the first of them
    slots: Slots  # where their keys and values go
    last: int = field(default=-1, init=False)  # set by the plan: place of the last token in the step


@dataclass(slots=True, eq=False)
class Group:
    """Rows that continue one path: `queries` new tokens that look at `keys` tokens, the new ones included."""

    path: Slots
    rows: Sequence[Row]
    queries: int = field(init=False)
    keys: int = field(init=False)

    def __post_init__(self) -> None:
        self.queries = self.keys = 0
        for row in self.rows:
            self.queries += len(row.ids)
            self.keys += len(row.own)
        self.keys += self.queries + len(self.path)


class Batch(NamedTuple):
    """Groups that are padded to the same number of queries and keys."""

    groups: list[Group]
    width: int  # queries a group
    keys: int  # keys a group

    @property
    def cost(self) -> float:
        return attention_cost(len(self.groups), self.width, self.keys)

    def join(self, other: "Batch") -> "Batch":
        groups = self.groups + other.groups
        return Batch(groups, max(self.width, other.width), max(self.keys, other.keys))


def attention_cost(groups: float, queries: float, keys: float) -> float:
    """Cost of `groups` groups of `queries` queries and `keys` keys each."""
    return groups * keys * (KEY_COST + queries)


def groups(rows: Iterable[tuple[Node, Row]]) -> list[Group]:
    """Group rows, each given with the node of the tree that it continues, by the deepest node that they share."""
    members: dict[Node, list[Row]] = {}
    for node, row in rows:
        members.setdefault(node, []).append(row)
    alone = [node for node, group in members.items() if len(group) == 1]
    crossings = Counter(above for node in alone for above in _above(node))
    moves: dict[Node, list[Node]] = {}  # from nodes to one above them that others continue, too
    for node in alone:
        for above in _above(node):
            if above in members or crossings[above] > 1:
                moves.setdefault(above, []).append(node)
                break
    for shared in sorted(moves, key=lambda node: node.depth, reverse=True):
        _gather(shared, moves[shared], members)
    return [Group(node.path(), group) for node, group in members.items()]


def _above(node: Node) -> Iterator[Node]:
    """The nodes above `node`, nearest first, without the root."""
    while node.parent is not None and node.parent.depth:
        node = node.parent
        yield node


def _gather(shared: Node, nodes: Sequence[Node], members: dict[Node, list[Row]]) -> None:
    """Let the rows that are alone at `nodes` attend from `shared` above them, if that costs less."""
    nodes = [node for node in nodes if len(members[node]) == 1]  # others may have joined it meanwhile
    there = members.get(shared, [])
    apart = [Group(shared.path(), there)] * bool(there) + [Group(node.path(), members[node]) for node in nodes]
    keys = shared.depth + sum(group.keys - shared.depth for group in apart)
    together = attention_cost(1, sum(group.queries for group in apart), keys)
    if together >= sum(attention_cost(1, group.queries, group.keys) for group in apart):
        return
    for node in nodes:
        (row,) = members.pop(node)
        row.own = np.concatenate((node.path()[shared.depth :], row.own))
        members.setdefault(shared, []).append(row)


def batches(groups: Iterable[Group]) -> list[Batch]:
    """Put groups of similar size together, as long as padding costs less than another batch."""
    alike: dict[tuple[int, int], list[Group]] = {}
    for group in (part for whole in groups for part in split(whole)):
        alike.setdefault((group.queries, group.keys.bit_length()), []).append(group)
    found = [
        Batch(members, queries, max(group.keys for group in members)) for (queries, _), members in sorted(alike.items())
    ]
    while len(found) > 1:
        joined = [a.join(b) for a, b in pairwise(found)]
        losses = [both.cost - a.cost - b.cost for both, (a, b) in zip(joined, pairwise(found), strict=True)]
        best = min(range(len(losses)), key=losses.__getitem__)
        if losses[best] > BATCH_COST:
            break
        found[best : best + 2] = [joined[best]]
    return found


def split(group: Group) -> list[Group]:
    """Cut a wide group where reading its path again costs less than hiding every row from every other."""
    rows, path = len(group.rows), len(group.path)

    def cost(parts: int) -> float:
        return attention_cost(parts, group.queries / parts, path + (group.keys - path) / parts)

    parts = 1
    while parts * 4 <= rows and cost(parts * 2) < cost(parts):
        parts *= 2
    if parts == 1:
        return [group]
    size = -(-rows // parts)
    return [Group(group.path, group.rows[at : at + size]) for at in range(0, rows, size)]
