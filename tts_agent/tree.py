"""The branch tree: a fold over the events of a search."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from tts_agent.errors import LogError
from tts_agent.events import Carried, Chosen, Event, Judged, Merged, Opened, Planned, Pruned, Sampled
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
        for event in events:
            self.update(event)

    def update(self, event: Event) -> None:
        """Fold one event in."""
        match event:
            case Sampled(thought):
                if thought.expansion not in self.planned:
                    raise LogError(f"expansion {thought.expansion!r} was sampled and never planned; the log has a gap")
                self._add(thought)
            case Judged(thought_id, verdict):
                self.verdicts[self._known(thought_id)] = verdict
            case Planned():
                self._known(event.request.parent)
                self.planned.add(event.expansion)
                self.next_id = max(self.next_id, event.first + event.request.n)
            case Merged(thought_id, into):
                self.merged[self._known(thought_id)] = into
            case Pruned(thought_id, reason):
                self.pruned[self._known(thought_id)] = reason
            case Carried(thought, carried):
                self._add(thought)
                self.next_id = max(self.next_id, thought.id + 1)
                if carried is not None:
                    self.verdicts[thought.id] = carried
            case Opened():
                self.root, self.root_text = event.root, event.root_text
            case Chosen():
                self.chosen = event

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
        return self.branch(thought).prefix

    def branch(self, thought: int) -> "Branch":
        """The path to `thought` with the ids it computed: what a verifier is given."""
        path = self.path(thought)
        return Branch(path, Prefix(tuple(chain(self.root.ids, *[step.ids for step in path]))))

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


class Branch(NamedTuple):
    """What a verifier is given: a path of thoughts and the ids it computed."""

    path: Sequence[Thought]
    prefix: Prefix

    @property
    def thought(self) -> Thought:
        """The thought to judge: the last of the path."""
        return self.path[-1]

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.path)
