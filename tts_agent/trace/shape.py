"""Which thoughts of a large tree are worth a look."""

import heapq
from collections.abc import Iterable

from tts_agent.thought import ROOT, Verdict
from tts_agent.tree import ThoughtTree


def visible_thoughts(tree: ThoughtTree, siblings: int, most: int) -> set[int]:
    """The chosen path, then the best thoughts whose parents are visible: `siblings` of each, `most` in all."""
    chosen = chosen_path(tree)
    value = _subtree_values(tree)

    def promising(thought: int) -> tuple[bool, float, int]:
        return (thought not in chosen, -value[thought], thought)

    def offered(parent: int) -> Iterable[tuple[bool, float, int]]:
        return sorted(map(promising, tree.children.get(parent, ())))[:siblings]

    visible: set[int] = set()
    heap = list(offered(ROOT))
    while heap and len(visible) < most:
        thought = heapq.heappop(heap)[-1]
        visible.add(thought)
        for child in offered(thought):
            heapq.heappush(heap, child)
    return visible


def chosen_path(tree: ThoughtTree) -> set[int]:
    """The thoughts that were decided for."""
    if tree.chosen is None or tree.chosen.thought is None:
        return set()
    return {thought.id for thought in tree.path(tree.chosen.thought)}


def descendants(tree: ThoughtTree, thoughts: list[int]) -> int:
    """How many thoughts have grown from `thoughts`."""
    stack = [child for thought in thoughts for child in tree.children.get(thought, ())]
    count = 0
    while stack:
        count += 1
        stack.extend(tree.children.get(stack.pop(), ()))
    return count


def _subtree_values(tree: ThoughtTree) -> dict[int, float]:
    """How well each thought, or the best that grew from it, did: solved 2, judged its score, ruled out -1."""
    values: dict[int, float] = {}
    for number in sorted(tree.thoughts, reverse=True):
        thought = tree.thoughts[number]
        verdict = tree.verdicts.get(number)
        own = verdict.score if isinstance(verdict, Verdict) else 0.0
        if thought.status == "solved":
            own = 2.0
        elif not tree.is_open(number) and thought.status != "complete":
            own = -1.0
        values[number] = max(own, values.get(number, own))
        values[thought.parent] = max(values[number], values.get(thought.parent, -1.0))
    return values
