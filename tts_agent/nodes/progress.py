"""What a search tells while it runs: plain dicts on LangGraph's `custom` stream, and how they are read.

Every dict has `type`, `node` (of the graph), `search` (its name, as in traces), `task` (LangGraph's id of the node's
task, the same when a run is resumed; "" outside a graph) and `at`, the position in the search's log. Those about a
thought have `branch` (its id), `parent`, `depth`, `value` (what it counts for now: its score, else its parent's) and
`usage` (of what is told, {} for what is free). The types:

* `tts.opened`: a search begins: `strategy`, `engine`, `verifier`, `budget`, `seed`.
* `tts.expand`: `n` children of `branch` are asked for, which will have the ids `children`.
* `tts.tokens`: only when candidates are streamed and the engine tells: what `branch` says next, as `text`.
* `tts.thought`: a thought is born: `status`, `finish`, `reason`; `carried` if an earlier step had paid for it. `text`
  only when candidates are streamed.
* `tts.verdict`: it is judged: `score` (None if the check could not run), `verifier`, `reason`.
* `tts.merged`, `tts.pruned`: it will not be grown: `into` the thought it equals, or the `reason`.
* `tts.best`: the best answer so far is a better one: `status` and the whole answer as `text`.
* `tts.budget`: the account changed by more than the usage of a thought or a verdict: `change` ("reserved", "settled",
  "cancelled", "lost", "deepened", "resumed"), and how it stands: `spent`, `lost`, `reserved`, `left`.
* `tts.chosen`: the search ended: `stop`, `limit`, `reason`, `committed`, the answer as `text`; `usage` is that of the
  search. It may come again, if the search was deepened after its end or a reviewer decided; the last one counts.

A run that is resumed tells what its checkpoint holds again, marked `replayed`: thoughts, verdicts and how they ended,
then once the best answer and the account. Whatever comes without the mark is new. What a killed process had told beyond
its checkpoint did not happen: the log goes on from `at` of the first dict that is not replayed, and what comes there
takes the place of what was told at that position or after it, under the same ids. The staged nodes tell what each adds,
and nothing again: a stage that a kill interrupted runs anew, from the position at which it began. So does, from its
beginning, the search of a `PlanSearchMiddleware`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, Self, get_args

from tts_agent.budget import Ledger
from tts_agent.errors import LogError
from tts_agent.events import (
    Cancelled,
    Carried,
    Chosen,
    Deepened,
    Event,
    Judged,
    Lost,
    Merged,
    Opened,
    Planned,
    Pruned,
    Reissued,
    Reserved,
    Sampled,
    Settled,
)
from tts_agent.search.base import rank
from tts_agent.thought import ROOT, Thought, Unit, Verdict
from tts_agent.tree import ThoughtTree
from tts_agent.usage import USAGE_FIELDS, ZERO, Usage

PREFIX = "tts."

Kind = Literal["opened", "expand", "tokens", "thought", "verdict", "merged", "pruned", "best", "budget", "chosen"]

_KINDS = {PREFIX + kind: kind for kind in get_args(Kind)}
_COMMON = ("type", "node", "search", "task", "at", "branch", "parent", "depth", "value", "usage", "replayed")

_NEEDED = ("node", "search", "task", "at")
_SHAPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("node", "search", "task"), (str,)),
    "at": (int,),
    **dict.fromkeys(("branch", "parent", "depth"), (int, NoneType)),
    "value": (float, int, NoneType),
    "usage": (Mapping,),
    "replayed": (bool,),
}
"""What a field that every kind may have can hold."""

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """One thing that a search told, read; `details` has what only its `kind` has."""

    kind: Kind
    node: str
    search: str
    task: str
    at: int
    branch: int | None = None
    parent: int | None = None
    depth: int | None = None
    value: float | None = None
    usage: Usage = ZERO
    replayed: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """The progress that `data` tells. Raises `LogError` for what no search told."""
        if not cls.told(data):
            raise LogError(f"{data!r} was not told by a search; ask Progress.told() where others write to the stream")
        known = {name: data[name] for name in _COMMON[1:] if name in data}
        known["usage"] = Usage.from_json(known.get("usage", {}))
        details = {name: value for name, value in data.items() if name not in _COMMON}
        return cls(kind=_KINDS[data["type"]], details=details, **known)

    @staticmethod
    def told(data: Any) -> bool:
        """Whether `data`, of the `custom` stream, comes from a search; others may write to it as well.

        What has the type of a search's and not the fields is not told by one.
        """
        if not isinstance(data, Mapping):
            return False
        kind = data.get("type")
        return (
            isinstance(kind, str)
            and kind in _KINDS
            and all(name in data for name in _NEEDED)
            and all(isinstance(data[name], shapes) for name, shapes in _SHAPES.items() if name in data)
            and _is_usage(data.get("usage", {}))
        )


def _is_usage(data: Mapping[Any, Any]) -> bool:
    return all(name in USAGE_FIELDS and isinstance(amount, (int, float)) for name, amount in data.items())


class Narrator:
    """Tells the events of one search, each once, however many objects drive the search one after the other.

    `decision` is what can be acted on: only such a thought is an answer. With `candidates`, what thoughts say is told
    as well.
    """

    def __init__(self, tell: Tell, about: Mapping[str, str], *, decision: Unit, candidates: bool) -> None:
        self._tell_it, self._about = tell, dict(about)
        self._tree, self._ledger = ThoughtTree(), Ledger()
        self._answers = ("solved", "complete") if decision == "answer" else ("solved", "complete", "open")
        self._candidates = candidates
        self._judged = False  # whether verdicts are to come
        self._best: int | None = None
        self._place: tuple[float, ...] = ()  # rank of the best
        self._voice: Literal["new", "again", "mute"] = "new"
        self.at = 0
        """Position in the log of what is told next."""

    def attend(self, tree: ThoughtTree, ledger: Ledger) -> None:
        """From now on it is told of these folds of the search, which have seen an event before it is told."""
        self._tree, self._ledger = tree, ledger

    def move(self, tell: Tell, about: Mapping[str, str]) -> None:
        """Go on telling elsewhere, in the same order."""
        self._tell_it, self._about = tell, dict(about)

    def skip(self, events: Sequence[Event]) -> None:
        """Know of `events` and tell nothing of them."""
        self._voice = "mute"
        for event in events:
            self.hear(event)
        self._voice = "new"

    def replay(self, events: Sequence[Event]) -> None:
        """Tell `events` again, then how things stand after them."""
        if not events:
            return
        self._voice = "again"
        for event in events:
            self.hear(event)
        self.at -= 1
        self._tell_best()
        self._tell_budget("resumed", ZERO)
        self.at += 1
        self._voice = "new"

    def hear(self, event: Event) -> None:
        """Tell the next event of the log."""
        match event:
            case Sampled(thought):
                self._thought(thought)
            case Judged(number, verdict):
                score = verdict.score if isinstance(verdict, Verdict) else None
                said = {"score": score, "verifier": verdict.verifier, "reason": verdict.reason}
                self._of(number, "verdict", verdict.usage, **said)
                self._consider(number)
            case Reserved(reservation, bound):
                self._tell_budget("reserved", bound, reservation=reservation)
            case Settled(reservation):
                self._tell_budget("settled", ZERO, reservation=reservation)
            case Planned():
                self._expand(event)
            case Merged(number, into):
                self._of(number, "merged", into=into)
            case Pruned(number, reason):
                self._of(number, "pruned", reason=reason)
            case Cancelled():
                self._tell_budget("cancelled", event.usage, reservation=event.reservation, reason="aborted")
            case Reissued():
                lost = event.lost.to_json()
                self._tell_budget("lost", event.usage, reservation=event.reservation, amounts=lost, reason=event.reason)
            case Lost():
                amounts = event.amounts.to_json()
                self._tell_budget("lost", ZERO, reservation=event.reservation, amounts=amounts, reason=event.reason)
            case Deepened():
                self._tell_budget("deepened", ZERO, more=event.more)
            case Carried(thought, carried):
                self._thought(thought, carried=True)
                if carried is not None:
                    self._consider(thought.id)
            case Opened():
                self._opened(event)
            case Chosen():
                self._chosen(event)
        self.at += 1

    def tokens(self, branch: int, parent: int, text: str) -> None:
        """Tell what the thought `branch`, which is not born yet, says next."""
        depth = self._tree.depth[parent] + 1
        value = self._tree.value(parent)
        self._tell("tokens", branch=branch, parent=parent, depth=depth, value=value, usage={}, text=text)

    # --- the kinds

    def _opened(self, event: Opened) -> None:
        self._judged = bool(event.verifier)
        self._tell(
            "opened",
            strategy=event.strategy,
            engine=event.engine,
            verifier=event.verifier,
            budget=event.budget,
            seed=event.seed,
        )

    def _expand(self, event: Planned) -> None:
        request = event.request
        children = list(range(event.first, event.first + request.n))
        self._of(request.parent, "expand", n=request.n, children=children, commit=event.commit)

    def _thought(self, thought: Thought, *, carried: bool = False) -> None:
        said: dict[str, Any] = {"status": thought.status, "finish": thought.finish, "reason": thought.reason}
        if self._candidates:
            said["text"] = thought.text
        if carried:
            said["carried"] = True
        self._of(thought.id, "thought", ZERO if carried else thought.usage, **said)
        new = thought.key is None or self._tree.keys[thought.key] == thought.id  # else it is about to be merged
        if new and not self._judged:
            self._consider(thought.id)

    def _chosen(self, event: Chosen) -> None:
        text = None if event.thought is None else self._text(event.thought)
        said = {"stop": event.stop.value, "limit": event.limit, "reason": event.reason, "committed": event.committed}
        said["text"] = text
        if event.thought is None:
            self._tell("chosen", branch=None, usage=self._ledger.spent.to_json(), **said)
        else:
            self._of(event.thought, "chosen", self._ledger.spent, **said)

    # --- the best answer

    def _consider(self, number: int) -> None:
        thought = self._tree.thoughts[number]
        if thought.status not in self._answers or (thought.status == "open" and thought.reason):
            return
        place = rank(self._tree, number)
        if place > self._place:
            self._best, self._place = number, place
            if self._voice == "new":
                self._tell_best()

    def _tell_best(self) -> None:
        if self._best is not None:
            self._of(self._best, "best", status=self._tree.thoughts[self._best].status, text=self._text(self._best))

    def _text(self, number: int) -> str:
        return "".join(step.text for step in self._tree.path(number))

    # --- the telling

    def _tell_budget(self, change: str, usage: Usage, **said: Any) -> None:
        if self._voice != "new" and change != "resumed":
            return  # of what was before only how the account stands in the end
        ledger = self._ledger
        account = {
            "spent": ledger.spent.to_json(),
            "lost": ledger.lost.to_json(),
            "reserved": ledger.reserved.to_json(),
            "left": ledger.room(),
        }
        self._tell("budget", change=change, usage=usage.to_json(), **said, **account)

    def _of(self, number: int, kind: Kind, usage: Usage = ZERO, **said: Any) -> None:
        tree = self._tree
        parent = None if number == ROOT else tree.thoughts[number].parent
        depth, value = tree.depth[number], tree.value(number)
        self._tell(kind, branch=number, parent=parent, depth=depth, value=value, usage=usage.to_json(), **said)

    def _tell(self, kind: Kind, **said: Any) -> None:
        if self._voice == "mute":
            return
        data = {"type": PREFIX + kind, **self._about, "at": self.at, **said}
        if self._voice == "again":
            data["replayed"] = True
        self._tell_it(data)
