"""The branch tree: a fold over the events of a search."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from tts_agent.errors import LogError
from tts_agent.events import Carried, Chosen, Deepened, Event, Judged, Merged, Opened, Planned, Pruned, Sampled
from tts_agent.prefix import Prefix
from tts_agent.thought import ROOT, Thought, Unverified, Verdict


class ThoughtTree:
    """Thoughts and verdicts by id; parents are ids, there are no pointers, and nothing is ever removed.

    Kept incrementally by `update`; reading never changes it.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.root = Prefix()
        self.root_text = ""
        self.thoughts: dict[int, Thought] = {}
        self.verdicts: dict[int, Verdict | Unverified] = {}
        self.children: dict[int, list[int]] = {}
        self.depth: dict[int, int] = {ROOT: 0}
        self.merged: dict[int, int] = {}
        self.pruned: dict[int, str] = {}
        self.keys: dict[str, int] = {}
        self.planned: set[int] = set()
        self.next_id = ROOT + 1
        self.chosen: Chosen | None = None
        self._parent: tuple[int, tuple[int, ...]] = (ROOT, ())  # the last parent asked about, and its ids
        for event in events:
            self.update(event)

    def update(self, event: Event) -> None:
        """Fold one event in."""
        fold = _FOLDS.get(type(event))
        if fold is not None:
            fold(self, event)

    def _open(self, event: Opened) -> None:
        self.root, self.root_text = event.root, event.root_text
        self._parent = (ROOT, event.root.ids)

    def _plan(self, event: Planned) -> None:
        self._known(event.request.parent)
        self.planned.add(event.expansion)
        self.next_id = max(self.next_id, event.first + event.request.n)

    def _sample(self, event: Sampled) -> None:
        if event.thought.expansion not in self.planned:
            raise LogError(f"expansion {event.thought.expansion!r} was sampled and never planned; the log has a gap")
        self._add(event.thought)

    def _carry(self, event: Carried) -> None:
        self._add(event.thought)
        self.next_id = max(self.next_id, event.thought.id + 1)
        if event.verdict is not None:
            self.verdicts[event.thought.id] = event.verdict

    def _judge(self, event: Judged) -> None:
        self.verdicts[self._known(event.thought)] = event.verdict

    def _merge(self, event: Merged) -> None:
        self.merged[self._known(event.thought)] = event.into

    def _prune(self, event: Pruned) -> None:
        self.pruned[self._known(event.thought)] = event.reason

    def _choose(self, event: Chosen) -> None:
        self.chosen = event

    def _reopen(self, event: Deepened) -> None:
        self.chosen = None  # a search that had ended goes on

    def _known(self, thought: int) -> int:
        if thought not in self.depth:
            raise LogError(f"the log says something of thought {thought!r}, which it does not have; it has a gap")
        return thought

    def _add(self, thought: Thought) -> None:
        if thought.parent not in self.depth:
            raise LogError(f"thought {thought.id!r} has the unknown parent {thought.parent!r}; the log has a gap")
        self.thoughts[thought.id] = thought
        self.children.setdefault(thought.parent, []).append(thought.id)
        self.depth[thought.id] = self.depth[thought.parent] + 1
        if thought.key is not None:
            self.keys.setdefault(thought.key, thought.id)

    def __len__(self) -> int:
        return len(self.thoughts)

    def path(self, thought: int) -> tuple[Thought, ...]:
        """Thoughts from the root's child down to `thought`; empty for the root."""
        steps: list[Thought] = []
        while thought != ROOT:
            step = self.thoughts[thought]
            steps.append(step)
            thought = step.parent
        steps.reverse()
        return tuple(steps)

    def prefix(self, thought: int) -> Prefix:
        """The exact ids that the branch ending in `thought` has computed."""
        if thought == ROOT:
            return self.root
        step = self.thoughts[thought]
        return Prefix(self._parent_ids(step.parent) + step.ids)

    def _parent_ids(self, parent: int) -> tuple[int, ...]:
        # Siblings are asked about one after the other: the ids down to their parent are put together once.
        known, ids = self._parent
        if parent == known:
            return ids
        parts: list[tuple[int, ...]] = []
        at = parent
        while at != ROOT and at != known:
            step = self.thoughts[at]
            parts.append(step.ids)
            at = step.parent
        ids = tuple(chain(ids if at == known else self.root.ids, *reversed(parts)))
        self._parent = (parent, ids)
        return ids

    def branch(self, thought: int) -> "Branch":
        """The branch that ends in `thought`, with the ids it computed: what a verifier is given."""
        return Branch(self, self.thoughts[thought], self.prefix(thought))

    def value(self, thought: int) -> float | None:
        """Score of the branch; an unverified thought has its parent's, the root and its like None."""
        verdicts = self.verdicts
        while thought != ROOT and verdicts:
            verdict = verdicts.get(thought)
            if isinstance(verdict, Verdict):
                return verdict.score
            thought = self.thoughts[thought].parent
        return None

    def is_open(self, thought: int) -> bool:
        """Whether the thought may be grown."""
        return (
            thought == ROOT
            or self.thoughts[thought].status == "open"
            and thought not in self.merged
            and thought not in self.pruned
        )

    def subtree(self, thought: int) -> "Iterator[Carry]":
        """The thoughts below `thought`, which becomes the root; renumbered from 1 in the order of their old ids."""
        new: dict[int, int] = {thought: ROOT}
        for old in sorted(self.thoughts):
            step = self.thoughts[old]
            if old == thought or step.parent not in new or old in self.merged:
                continue
            new[old] = len(new)
            yield Carry(step, new[old], new[step.parent], self.verdicts.get(old))

    def to_json(self) -> list[dict[str, object]]:
        """One row per thought in the order of ids: the shape that golden trees are compared in."""
        rows: list[dict[str, object]] = []
        for number in sorted(self.thoughts):
            step = self.thoughts[number]
            row: dict[str, object] = {
                "id": number,
                "parent": step.parent,
                "text": step.text,
                "status": step.status,
            }
            verdict = self.verdicts.get(number)
            if verdict is not None:
                row["score"] = round(verdict.score, 6) if isinstance(verdict, Verdict) else None
            if number in self.merged:
                row["merged"] = self.merged[number]
            if number in self.pruned:
                row["pruned"] = self.pruned[number]
            rows.append(row)
        return rows


class Carry(NamedTuple):
    """A thought that moves to the next planning step, with its new ids."""

    thought: Thought
    id: int
    parent: int
    verdict: Verdict | Unverified | None


# What comes several times for every thought is looked up, not matched case by case.
_FOLDS: dict[type[Any], Callable[[ThoughtTree, Any], None]] = {
    Opened: ThoughtTree._open,
    Planned: ThoughtTree._plan,
    Sampled: ThoughtTree._sample,
    Carried: ThoughtTree._carry,
    Judged: ThoughtTree._judge,
    Merged: ThoughtTree._merge,
    Pruned: ThoughtTree._prune,
    Chosen: ThoughtTree._choose,
    Deepened: ThoughtTree._reopen,
}


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """What a verifier is given: a thought, the path to it and the ids it computed."""

    tree: ThoughtTree = field(repr=False)
    thought: Thought
    """The thought to judge: the last of the path."""
    prefix: Prefix

    @property
    def path(self) -> Sequence[Thought]:
        """Thoughts from the root's child down to the one to judge."""
        return self.tree.path(self.thought.id)

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.path)
