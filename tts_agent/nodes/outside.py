"""Nodes of one's own between the stages: what they read of the search under way, and what they may add to it.

::

    def verify(state: StagedState) -> dict[str, Any]:
        branches = unjudged(state, engine.decode)
        return judge(branches, [Verdict(score(branch.text)) for branch in branches])

takes the place of the verify node (give the others an `OutsideVerifier`), and ::

    def cull(state: StagedState) -> dict[str, Any]:
        return drop([branch for branch in growable(state, engine.decode) if hopeless(branch.text)], "hopeless")

stands anywhere between expand and select.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tts_agent.events import Decode, Event, Judged, Merged, Pruned, Sampled
from tts_agent.nodes.state import Update, read_log, write_chunk
from tts_agent.thought import Unverified, Verdict
from tts_agent.tree import Branch, ThoughtTree
from tts_agent.usage import ZERO, Usage
from tts_agent.verifiers.base import Scope


class OutsideVerifier:
    """Stands for a verifier that is a node of the graph: its `name`, and a bound on what one verdict may use.

    Thoughts that the node leaves out are unverified, and charged at the bound.
    """

    scope: ClassVar[Scope] = "siblings"

    def __init__(self, *, name: str = "outside", bound: Usage = ZERO) -> None:
        self.name = name
        self._bound = bound

    def bound(self, prompt: int) -> Usage:
        return self._bound

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        return [Unverified("the graph gave no verdict", self.name, self._bound) for _ in branches]


def unjudged(state: Mapping[str, Any], decode: Decode) -> list[Branch]:
    """The branches of the search under way that wait for a verdict, in the order of ids; none once it has ended.

    `decode` is the engine's.
    """
    log = read_log(state["search"], decode)
    tree = ThoughtTree(log)
    if tree.chosen is not None:
        return []
    settled = {event.thought for event in log if isinstance(event, (Judged, Pruned, Merged))}
    waiting = (event.thought for event in log if isinstance(event, Sampled) and event.thought.id not in settled)
    return [tree.branch(thought.id) for thought in waiting if thought.status in ("open", "complete")]


def growable(state: Mapping[str, Any], decode: Decode) -> list[Branch]:
    """The branches of the search under way that may be grown, in the order of ids; none once it has ended.

    Their verdicts, where there are any by now, are in `branch.tree.verdicts`. `decode` is the engine's.
    """
    tree = ThoughtTree(read_log(state["search"], decode))
    if tree.chosen is not None:
        return []
    return [tree.branch(number) for number in sorted(tree.thoughts) if tree.is_open(number)]


def judge(branches: Sequence[Branch], verdicts: Sequence[Verdict | Unverified]) -> Update:
    """The state's update that gives `branches` these `verdicts`, one each."""
    pairs = zip(branches, verdicts, strict=True)
    return _added([Judged(branch.thought.id, verdict) for branch, verdict in pairs])


def drop(branches: Sequence[Branch], reason: str = "dropped") -> Update:
    """The state's update that has `branches` grown no further; without a verdict by now they never get one."""
    return _added([Pruned(branch.thought.id, reason) for branch in branches])


def _added(events: Sequence[Event]) -> Update:
    return {"search": [write_chunk(events)] if events else []}
