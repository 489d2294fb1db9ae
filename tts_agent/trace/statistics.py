"""The numbers of a search, read from its log."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from tts_agent.budget import NOTHING
from tts_agent.events import Cancelled, Carried, Clock, Event, Judged, Lost, Planned, Reissued, Sampled, Settled
from tts_agent.thought import ROOT, Verdict
from tts_agent.tree import ThoughtTree
from tts_agent.usage import ZERO, Usage


class Calibration(NamedTuple):
    """Mean verdict on thoughts that a solved thought grew from, and on all other judged thoughts.

    It says something only about searches that solved their task: elsewhere nothing is known to be right, and even
    here some of the others might have led to a solution.
    """

    on_solving: float
    solving: int  # judged thoughts with a solved descendant
    elsewhere: float | None
    others: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a search did and what it cost.

    `usage` is all that was charged for answers, `lost` what was charged for answers that never arrived, by budget
    unit (dollars in picodollars). `under_way` counts samples that were planned and neither arrived nor were given
    up; it is above zero only in a log that was cut. Carried thoughts count in `carried` alone: they were paid for by
    an earlier step.

    `cached_share` is the part of all tokens of all requests, prompts in full, that came from the engine's cache.
    `computed_ratio` is computed tokens over what has to be computed once: the prompt, every sampled token and every
    question. At 1 or below, nothing was computed twice.
    """

    thoughts: int
    carried: int
    status: dict[str, int]
    merged: int
    pruned: int  # open or complete thoughts that were given up
    depth: dict[int, int]  # sampled thoughts by depth, 1 = children of the root
    judged: int  # by verifiers
    unverified: int
    under_way: int
    usage: Usage
    lost: dict[str, int]
    cached_share: float | None
    computed_ratio: float | None
    verifier_share: float | None  # of the computed tokens
    calibration: Calibration | None

    @property
    def invalid_share(self) -> float | None:
        """Part of the sampled thoughts that broke a rule."""
        return _share(self.status.get("invalid", 0), self.thoughts)

    @property
    def merged_share(self) -> float | None:
        """Part of the sampled thoughts that were the same as an earlier one."""
        return _share(self.merged, self.thoughts)

    def to_json(self) -> dict[str, Any]:
        calibration = self.calibration._asdict() if self.calibration else None
        return {
            **asdict(self),
            "usage": self.usage.to_json(),
            "computed_tokens": self.usage.computed,
            "invalid_share": self.invalid_share,
            "merged_share": self.merged_share,
            "calibration": calibration,
        }


def statistics(events: Sequence[Event], tree: ThoughtTree | None = None) -> Statistics:
    """The numbers of the search of `events`; `tree` saves folding them again."""
    tree = tree or ThoughtTree(events)
    account = _Account()
    for event in events:
        account.add(event)
    usage = account.usage._replace(seconds=account.seconds)
    sampled = [thought for number, thought in tree.thoughts.items() if number not in account.carried]
    # NOTE: a solved thought's verdict is the task's; no verifier was asked.
    asked = [verdict for number, verdict in account.verdicts.items() if tree.thoughts[number].status != "solved"]
    judged = sum(isinstance(verdict, Verdict) for verdict in asked)
    return Statistics(
        thoughts=len(sampled),
        carried=len(account.carried),
        status=dict(Counter(thought.status for thought in sampled)),
        merged=len(tree.merged),
        pruned=sum(tree.thoughts[number].status in ("open", "complete") for number in tree.pruned),
        depth=dict(sorted(Counter(tree.depth[thought.id] for thought in sampled).items())),
        judged=judged,
        unverified=len(asked) - judged,
        under_way=sum(account.under_way.values()),
        usage=usage,
        lost=account.lost.to_json(),
        cached_share=_share(usage.prompt_cached, usage.prompt + usage.decoded),
        computed_ratio=_share(usage.computed, len(tree.root) + usage.generated + account.questions(tree)),
        verifier_share=_share(usage.verifier_computed, usage.computed),
        calibration=_calibration(tree),
    )


class _Account:
    """What the events charged, and what they left open."""

    def __init__(self) -> None:
        self.usage = ZERO
        self.lost = NOTHING
        self.seconds = 0.0
        self.carried: set[int] = set()
        self.verdicts: dict[int, Any] = {}
        self.paid_by: dict[int, int] = {}  # expansion -> reservation
        self.under_way: dict[int, int] = {}  # reservation -> samples to come

    def add(self, event: Event) -> None:
        match event:
            case Carried(thought):
                self.carried.add(thought.id)
            case Planned():
                self.paid_by[event.expansion] = event.reservation
                self.under_way[event.reservation] = event.request.n
            case Sampled(thought):
                self.usage += thought.usage
                self.under_way[self.paid_by[thought.expansion]] -= 1
            case Judged(thought_id, verdict):
                self.usage += verdict.usage
                self.verdicts[thought_id] = verdict
            case Settled(reservation):
                self.under_way.pop(reservation, None)
            case Cancelled():
                self.usage += event.usage
                self.lost = self.lost.plus(event.lost)
                self.under_way.pop(event.reservation, None)
            case Lost(reservation, amounts):
                self.lost = self.lost.plus(amounts)
                if reservation is not None:
                    self.under_way.pop(reservation, None)
            case Reissued():
                self.usage += event.usage
                self.lost = self.lost.plus(event.lost)
            case Clock(seconds):
                self.seconds = seconds
            case _:
                pass

    def questions(self, tree: ThoughtTree) -> int:
        """Tokens of the questions themselves: what verifiers asked beyond the branches."""
        sizes = {ROOT: len(tree.root)}
        for number in sorted(tree.thoughts):
            thought = tree.thoughts[number]
            sizes[number] = sizes[thought.parent] + len(thought.ids)
        asked = ((sizes[number], verdict.usage.prompt) for number, verdict in self.verdicts.items())
        return sum(max(prompt - size, 0) for size, prompt in asked)


def _calibration(tree: ThoughtTree) -> Calibration | None:
    solving: set[int] = set()
    for number, thought in tree.thoughts.items():
        if thought.status == "solved":
            solving.update(step.id for step in tree.path(number)[:-1])
    on: list[float] = []
    off: list[float] = []
    for number, verdict in tree.verdicts.items():
        if isinstance(verdict, Verdict) and tree.thoughts[number].status != "solved":
            (on if number in solving else off).append(verdict.score)
    if not on:
        return None
    return Calibration(sum(on) / len(on), len(on), sum(off) / len(off) if off else None, len(off))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
