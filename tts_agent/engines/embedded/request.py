"""What the scheduler works on: a request to sample, its branches, and a label question."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tts_agent.engines.base import Completion, FinishReason, HiddenState, LabelScores, Sampling
from tts_agent.engines.embedded.constraint import Constraint
from tts_agent.engines.embedded.counters import Counters
from tts_agent.engines.embedded.grouping import Row
from tts_agent.engines.embedded.radix import NO_SLOTS, Node, Slots
from tts_agent.engines.embedded.sampler import Wish
from tts_agent.errors import EngineUnavailable
from tts_agent.usage import Usage


class Said(NamedTuple):
    """What one sample has said so far, for a request that is listened to."""

    place: int
    ids: tuple[int, ...]


Message = Completion | Said | LabelScores | HiddenState | Usage | Counters | EngineUnavailable


class Mailbox(NamedTuple):
    """Where the answers to a request go: `receive` is called in `loop`, in the order of the answers."""

    loop: asyncio.AbstractEventLoop
    receive: Callable[[Message], None]


@dataclass(slots=True, eq=False)
class Prompt:
    """Ids that must be in the cache before anything else can happen.

    `node` is where the cached part ends; it is locked from admission to the end of the request and moves down as
    the rest is computed.
    """

    ids: tuple[int, ...]
    mailbox: Mailbox
    since: float = field(default=0.0, init=False)  # monotonic seconds when it was submitted
    node: Node | None = field(default=None, init=False)  # set at admission
    cached: int = field(default=0, init=False)  # tokens that were in the cache at admission
    computed: int = field(default=0, init=False)  # tokens run through the model so far

    @property
    def left(self) -> int:
        """Tokens still to be computed, once admitted."""
        return len(self.ids) - self.cached - self.computed


@dataclass(slots=True, eq=False)
class Sample(Prompt):
    """A request for `len(seeds)` samples; `opened` of them have become branches, `branches` are those that live.

    `ends` says of a branch's ids whether a stop text has ended; `constraint` is where each branch begins. With `tells`
    the mailbox gets every token when it is sampled.
    """

    sampling: Sampling
    seeds: Sequence[int]
    ends: Callable[[Sequence[int]], bool] | None = None
    constraint: Constraint | None = None
    tells: bool = False
    opened: int = field(default=0, init=False)
    branches: list["Branch"] = field(default_factory=list, init=False)
    told: bool = field(default=False, init=False)  # the cost of the prompt was reported

    @property
    def room(self) -> int:
        """Slots that one branch may take; the last sampled token is never run."""
        return self.sampling.max_tokens - 1

    @property
    def waiting(self) -> int:
        """Samples that are not branches yet."""
        return len(self.seeds) - self.opened

    def take_prompt_usage(self) -> Usage:
        """Usage of the prompt for one more sample: what it cost for the first, from the cache for the others."""
        if self.told:
            return Usage(prompt_cached=len(self.ids))
        self.told = True
        return Usage(prompt_computed=self.computed, prompt_cached=self.cached, calls=1)


@dataclass(slots=True, eq=False)
class Branch:
    """One sample that is being decoded: `ids` were sampled, the first `run` of them went through the model."""

    request: Sample
    index: int
    seed: int  # 64 bits, unsigned
    slots: Slots  # [max_tokens - 1]; the first `run` are in use
    constraint: Constraint | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    run: int = 0

    @classmethod
    def next_of(cls, request: Sample) -> "Branch":
        """Make the next waiting sample of `request` a branch."""
        seed = request.seeds[request.opened] & 0xFFFF_FFFF_FFFF_FFFF
        constraint = request.constraint.copy() if request.constraint else None
        branch = cls(request, request.opened, seed, np.empty(request.room, dtype=np.int64), constraint)
        request.opened += 1
        request.branches.append(branch)
        return branch

    @property
    def unused(self) -> int:
        """Slots reserved and not taken."""
        return self.request.room - self.run

    @property
    def last_slot(self) -> int:
        """Slot of the token after which the next one is sampled."""
        if self.run:
            return int(self.slots[self.run - 1])
        assert self.request.node is not None
        return self.request.node.last_slot

    @property
    def wish(self) -> Wish:
        """What decides its next token."""
        allowed = self.constraint.allowed if self.constraint else None
        return Wish(self.request.sampling, self.request.ids, self.ids, allowed)

    def say(self, token: int, logprob: float) -> FinishReason | None:
        """Add a sampled token; returns why the branch ends with it, or None if it goes on."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        request = self.request
        if token in request.sampling.stop_ids or (request.ends and request.ends(self.ids)):
            return "stop"
        if self.constraint:
            if self.constraint.take(token):
                return "stop"
            if self.constraint.broken:
                return "length"
        return "length" if len(self.ids) == request.sampling.max_tokens else None

    @property
    def usage(self) -> Usage:
        """Tokens of this branch alone."""
        return Usage(generated=len(self.ids), decoded=self.run)


@dataclass(slots=True, eq=False)
class Question(Prompt):
    """Asks for the log-probabilities of `labels` after `ids + suffix`; what is computed for them is not kept.

    With `reads` it asks for the hidden state there instead.

    `heads` are what must be computed of labels of several tokens: each label but its last token, without those that
    are the beginning of another.
    """

    suffix: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    reads: bool = False
    heads: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        found = sorted({label[:-1] for label in self.labels if len(label) > 1})
        # In sorted order the extensions of a head follow it.
        following = (*found[1:], ())
        self.heads = tuple(head for head, after in zip(found, following, strict=False) if after[: len(head)] != head)

    @property
    def room(self) -> int:
        """Slots that suffix and heads take for one step."""
        return len(self.suffix) + sum(map(len, self.heads))

    @property
    def usage(self) -> Usage:
        return Usage(prompt_computed=self.computed, prompt_cached=self.cached, calls=1)

    def score(self, logprobs: Tensor) -> tuple[float, ...]:
        """The labels' log-probabilities from those `[1 + tokens of heads, vocab]` after the suffix and in each head."""
        after: dict[tuple[int, ...], int] = {(): 0}
        row = 0
        for head in self.heads:
            for end in range(1, len(head) + 1):
                row += 1
                after[head[:end]] = row
        rows = [[after[label[:k]] for k in range(len(label))] for label in self.labels]
        return tuple(float(logprobs[row, list(label)].sum()) for row, label in zip(rows, self.labels, strict=True))


Request = Sample | Question


@dataclass(slots=True, eq=False)
class Chunk:
    """Tokens of a prompt that one step computes: the first `kept` continue it, the rest is a question's suffix.

    `heads` are those of a question that is complete with this chunk; they continue `ids`, each alone.
    """

    prompt: Request
    ids: tuple[int, ...]
    kept: int
    heads: tuple[tuple[int, ...], ...] = ()
    rows: list[Row] = field(init=False)  # of `ids` (empty if all is cached) and of each head; set by `place`

    @classmethod
    def next_of(cls, prompt: Request, budget: int) -> "Chunk":
        """The next tokens of `prompt`, about `budget` at most; suffix and heads go whole, with the last of them."""
        assert prompt.node is not None
        at = prompt.node.depth
        ids = prompt.ids[at : at + budget]
        if isinstance(prompt, Question) and at + len(ids) == len(prompt.ids):
            return cls(prompt, ids + prompt.suffix, len(ids), prompt.heads)
        return cls(prompt, ids, len(ids))

    @property
    def size(self) -> int:
        """Tokens, each of which takes a slot."""
        return len(self.ids) + sum(map(len, self.heads))

    def place(self, slots: Slots) -> None:
        """Make rows that use `slots`."""
        assert self.prompt.node is not None
        start, end = self.prompt.node.depth, len(self.ids)
        self.rows = [Row(NO_SLOTS, self.ids, start, slots[:end])]
        for head in self.heads:
            self.rows.append(Row(slots[: len(self.ids)], head, start + len(self.ids), slots[end : end + len(head)]))
            end += len(head)

    @property
    def spare(self) -> Slots:
        """Slots that are free again after the step."""
        return np.concatenate([self.rows[0].slots[self.kept :], *(row.slots for row in self.rows[1:])])
