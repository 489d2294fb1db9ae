"""The values a search is made of: thoughts, expansions, verdicts, observations and the outcome."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any, Literal, NamedTuple

from tts_agent.errors import ConfigError
from tts_agent.usage import ZERO, Usage

ROOT = 0
"""Id of the root: the prompt itself. Thoughts are numbered from 1 in the order they are planned."""

Status = Literal["open", "complete", "solved", "dead", "invalid"]
"""`open` can be continued; `complete` is a finished answer whose correctness nothing has decided; `solved` is proven
right; `dead` is legal but nothing that follows can be right; `invalid` breaks a rule or cannot be parsed."""

Unit = Literal["thought", "answer"]
"""What one sample is: the next thought, or a whole answer to its end."""


class StopReason(StrEnum):
    """Why a search ended. Running out is a result, not an error."""

    SOLVED = "solved"  # a thought that solves the task was found
    BUDGET = "budget"  # the next step did not fit into the budget; `Outcome.limit` names the unit
    CONVERGED = "converged"  # the strategy has its answer and wants nothing more
    EXHAUSTED = "exhausted"  # no branch is left that could be grown, and none of them is an answer
    CANCELLED = "cancelled"  # stopped from outside


class Reading(NamedTuple):
    """What a task makes of a sampled text."""

    status: Status = "open"
    action: Any = None  # the parsed action, plain JSON; what an agent would do
    key: str | None = None  # canonical form: two thoughts with one key are the same, and the later one is merged
    reason: str = ""  # why it is invalid, dead or solved; of an open text, why it cannot be the end
    verdict: "Verdict | Unverified | None" = None  # how good it is, where that is known at once; no verifier is asked


class Thought(NamedTuple):
    """One node of the tree.

    `ids` are the token ids that extend the parent's prefix (ids appended by the expansion included, an end token at
    the branch's end not). `logprob` is the sum over the sampled tokens of log p under the model, or None where the
    engine gives none. `parent` is `ROOT` for first thoughts.
    """

    id: int
    parent: int
    expansion: int
    ids: tuple[int, ...]
    text: str
    logprob: float | None = None
    finish: Literal["stop", "length"] = "stop"
    status: Status = "open"
    action: Any = None
    key: str | None = None
    reason: str = ""
    usage: Usage = ZERO


@dataclass(frozen=True, slots=True)
class Expansion:
    """A strategy's proposal: grow `parent` by `n` children.

    `temperature=None` keeps the task's own; `heat` is times whichever it is. `append_ids` (a hint, a critique) are put
    after the parent's prefix before sampling and become part of the children's ids.
    """

    parent: int
    n: int
    unit: Unit = "thought"
    temperature: float | None = None
    append_ids: tuple[int, ...] = ()
    heat: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"an expansion of n={self.n!r} children is empty; propose n >= 1")
        if not 0 < self.heat < inf:
            raise ConfigError(f"heat={self.heat!r} multiplies a temperature; it must be a finite number > 0")


@dataclass(frozen=True, slots=True)
class Prune:
    """A strategy's decision not to grow `thought` any more."""

    thought: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How good a branch is: a score in [0, 1], higher is better, with a reason."""

    score: float
    reason: str = ""
    verifier: str = ""
    usage: Usage = ZERO

    def __post_init__(self) -> None:
        if not 0.0 <= self.score <= 1.0:
            raise ConfigError(
                f"verdict score {self.score!r} of {self.verifier or 'a verifier'!r} is not in [0, 1]; "
                "scale it, or return Unverified if the check could not run"
            )


@dataclass(frozen=True, slots=True)
class Unverified:
    """A check that failed to run. It says nothing about the branch, which ranks as its parent does."""

    reason: str
    verifier: str = ""
    usage: Usage = ZERO


@dataclass(frozen=True, slots=True)
class Observation:
    """What acting returned. `predicted` says whether it is what the chosen branch had foreseen."""

    text: str
    predicted: bool
