"""What the scheduler works on: a request to sample, its branches, and a label question."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tts_agent.engines.base import Completion, LabelScores, Sampling
from tts_agent.engines.embedded.counters import Counters
from tts_agent.engines.embedded.grouping import Row
from tts_agent.engines.embedded.radix import Node, Slots
from tts_agent.errors import EngineUnavailable
from tts_agent.usage import Usage

Message = Completion | LabelScores | Usage | Counters | EngineUnavailable


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
    node: Node | None = field(default=None, init=False)  # set at admission
    cached: int = field(default=0, init=False)  # tokens that were in the cache at admission
    computed: int = field(default=0, init=False)  # tokens run through the model so far

    @property
    def left(self) -> int:
        """Tokens still to be computed, once admitted."""
        return len(self.ids) - self.cached - self.computed


@dataclass(slots=True, eq=False)
class Sample(Prompt):
    """A request for `len(seeds)` samples; `opened` of them have become branches, `branches` are those that live."""

    sampling: Sampling
    seeds: Sequence[int]
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
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    run: int = 0

    @classmethod
    def next_of(cls, request: Sample) -> "Branch":
        """Make the next waiting sample of `request` a branch."""
        seed = request.seeds[request.opened] & 0xFFFF_FFFF_FFFF_FFFF
        branch = cls(request, request.opened, seed, np.empty(request.room, dtype=np.int64))
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
    def usage(self) -> Usage:
        """Tokens of this branch alone."""
        return Usage(generated=len(self.ids), decoded=self.run)


@dataclass(slots=True, eq=False)
class Question(Prompt):
    """Asks for the log-probabilities of `labels` after `ids + suffix`; the suffix is computed and not kept."""

    suffix: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def room(self) -> int:
        """Slots that the suffix takes for one step."""
        return len(self.suffix)

    @property
    def usage(self) -> Usage:
        return Usage(prompt_computed=self.computed, prompt_cached=self.cached, calls=1)


Request = Sample | Question


@dataclass(slots=True, eq=False)
class Chunk:
    """Tokens of a prompt that one step computes: the first `kept` continue it, the rest is a question's suffix."""

    prompt: Request
    ids: tuple[int, ...]
    kept: int
    row: Row = field(init=False)  # set when the step's slots are dealt

    @classmethod
    def next_of(cls, prompt: Request, budget: int) -> "Chunk":
        """The next tokens of `prompt`, about `budget` at most; a suffix goes whole, with the last of them."""
        assert prompt.node is not None
        at = prompt.node.depth
        ids = prompt.ids[at : at + budget]
        suffix = prompt.suffix if isinstance(prompt, Question) and at + len(ids) == len(prompt.ids) else ()
        return cls(prompt, ids + suffix, len(ids))
