"""What the search asks of a source of tokens.

An engine knows token ids and text, nothing of thoughts, tools or graphs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, Self

from tts_agent.errors import ConfigError
from tts_agent.prefix import Prefix
from tts_agent.usage import Usage

Label = int | tuple[int, ...]
"""An answer to a question: one token id, or several."""

FinishReason = Literal["stop", "length"]
"""`stop`: a stop id was sampled (it is the last id). `length`: `max_tokens` ids were sampled."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy.

    `max_tokens` bounds one completion. A completion ends with the first id in `stop_ids`, which is kept as its
    last id. `top_k=0` and `top_p=1.0` cut nothing.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens!r} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature!r} must be a finite number >= 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p!r} must lie in (0, 1]")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k!r} must be >= 0 (0 = no cut)")


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample of a request.

    `index` counts the request's samples from 0 in the order of its seeds. `logprobs[i]` is the raw log-probability
    of `ids[i]` under the model (temperature 1, nothing cut); empty where the engine has none. `at` is the virtual
    time of the end, for engines that run on a virtual clock.
    """

    index: int
    ids: tuple[int, ...]
    finish: FinishReason
    usage: Usage
    logprobs: tuple[float, ...] = ()
    at: float | None = None


class LabelScores(NamedTuple):
    """Answer to one label question."""

    logprobs: tuple[float, ...]  # log-probability of each label, in the order asked
    usage: Usage  # of this question: computed and cached prompt tokens (those of its labels, too), one call


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. The search adapts to it or refuses with a clear error.

    `shares_prompt`: the n samples of one request compute its prompt at most once, whatever the cache holds, so a
    reservation counts the prompt once. `virtual_time`: completions carry the virtual time `at` of their end, and
    the search handles them in that order.
    """

    ids: bool = True
    seeds: bool = True
    label_logprobs: bool = True
    aborts: bool = True
    shares_prompt: bool = False
    virtual_time: bool = False
    context: int | None = None  # tokens of prompt and completion together; None = unbounded
    end_ids: tuple[int, ...] = ()  # tokens with which the model ends its answer
    info: Mapping[str, str] = field(default_factory=dict)


class Stream(Protocol):
    """The running samples of one request; iterate to get each `Completion` as it ends."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Completion: ...

    async def abort(self) -> Usage | None:
        """Stop the samples that still run and free what they hold.

        Returns what they consumed beyond the completions already yielded (zero if none ran any more), or None if
        the engine cannot confirm that it stopped. Calling it again, or after the end, is harmless.
        """
        ...


class Engine(Protocol):
    """A source of tokens."""

    @property
    def name(self) -> str:
        """Short name for traces and messages."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def sample(self, prefix: Prefix, sampling: Sampling, *, seeds: Sequence[int], at: float = 0.0) -> Stream:
        """Start `len(seeds)` samples that continue `prefix`, as one request; returns at once.

        Sample j depends on `prefix`, `sampling` and `seeds[j]` alone, not on how many siblings it has (where the
        engine declares `seeds`). `at` is the virtual time of the request; engines without virtual time ignore it.
        Usage of shared work (the prompt) is reported with one of the completions, so that usages add up.
        Raises `PromptError` if prompt and `max_tokens` do not fit the context, `EngineUnavailable` on an outage
        (from the iterator).
        """
        ...

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        """Log-probability of each label right after `prefix + suffix`, for each prefix, as one request.

        A label of several tokens is scored as a continuation: the sum over its tokens, each after those before it.
        All but its last are computed and charged as prompt tokens; what labels begin with in common may be once.
        Nothing is sampled, and what was computed for the question is not kept: the branch stays as it was.
        """
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, special tokens in it not interpreted beyond the model's own rules."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`."""
        ...

    async def aclose(self) -> None:
        """Abort everything and free the engine's resources."""
        ...


def sample_bound(capabilities: Capabilities, prompt: int, n: int, max_tokens: int) -> Usage:
    """The most that one request of `n` samples may consume, with nothing cached."""
    prompts = prompt if capabilities.shares_prompt else prompt * n
    # NOTE: a prompt counts in full for every sample in `total` terms where the engine reports it so; cached tokens
    # are bounded by what is not computed, and the sum of both by one prompt a sample.
    return Usage(
        prompt_computed=prompts,
        prompt_cached=prompt * n - prompts,
        generated=n * max_tokens,
        decoded=n * max_tokens,
        calls=1,
    )


def question_bound(prompt: int, suffix: int, labels: Sequence[Label] = ()) -> Usage:
    """The most that one label question may consume, with nothing cached."""
    continued = sum(len(label) - 1 for label in labels if not isinstance(label, int))
    return Usage(prompt_computed=prompt + suffix + continued, calls=1).as_verifier()
