"""What the search asks of a source of tokens.

An engine knows token ids and text, nothing of thoughts, tools or graphs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, Self

from tts_agent.errors import ConfigError
from tts_agent.prefix import Prefix
from tts_agent.usage import Usage

Label = int | tuple[int, ...]
"""An answer to a question: one token id, or several."""

FinishReason = Literal["stop", "length"]
"""`stop`: a stop id or the end of a stop text was sampled (it is in the last id), or what constrains the completion is
complete. `length`: `max_tokens` ids were sampled."""


Tell = Callable[[int, tuple[int, ...]], None]
"""`tell(index, ids)`: sample `index` of a request has said `ids` so far."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy.

    `max_tokens` bounds one completion. A completion ends with the first id in `stop_ids`, or with the id in which the
    first of `stop_texts` ends; that id is kept whole, as its last.

    In this order: `repetition_penalty` divides the logits of ids in prompt and completion (multiplies negative ones;
    Keskar et al. 2019), `presence_penalty` and `frequency_penalty` lower those of ids in the completion, once and for
    each time; temperature; then `top_k`, `top_p` and `min_p` (a share of the most likely id's probability) cut. The
    defaults change nothing.

    `json_schema` (JSON), `regex` or `ebnf` (a grammar as xgrammar reads it, with a rule `root`) constrains the whole
    text of the completion: only ids that it allows are drawn. An engine that does not declare `constrains` refuses them
    all, one that does not declare `grammars` refuses `ebnf`.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens!r} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature!r} must be a finite number >= 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p!r} must lie in (0, 1]")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k!r} must be >= 0 (0 = no cut)")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p!r} must lie in [0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ConfigError(f"{name}={getattr(self, name)!r} must lie in [-2, 2]")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty={self.repetition_penalty!r} must be a finite number > 0 (1 = none)")
        if not all(self.stop_texts):
            raise ConfigError(f"stop_texts={self.stop_texts!r} has an empty text, with which everything ends")
        given = [name for name in ("json_schema", "regex", "ebnf") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} each constrain the whole completion; give one of them")

    @property
    def constrained(self) -> bool:
        """Whether a schema, a regular expression or a grammar says which ids may be drawn."""
        return self.json_schema is not None or self.regex is not None or self.ebnf is not None

    @property
    def penalises(self) -> bool:
        """Whether ids that were said are less (or more) likely to be said again."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


class Completion(NamedTuple):
    """One finished sample of a request.

    `index` counts the request's samples from 0 in the order of its seeds. `logprobs[i]` is the raw log-probability
    of `ids[i]` under the model (temperature 1, nothing cut); empty where the engine has none. `at` is the virtual
    time of the end, for engines that run on a virtual clock.
    """

    index: int  # type: ignore[assignment]  # hides `tuple.index`, which nobody needs of a completion
    ids: tuple[int, ...]
    finish: FinishReason
    usage: Usage
    logprobs: tuple[float, ...] = ()
    at: float | None = None


class HiddenState(NamedTuple):
    """What the model made of a branch, before its output matrix."""

    values: tuple[float, ...]  # final hidden state of the branch's last token
    usage: Usage  # of this request, one call


class LabelScores(NamedTuple):
    """Answer to one label question."""

    logprobs: tuple[float, ...]  # log-probability of each label, in the order asked
    usage: Usage  # of this question: computed and cached prompt tokens (those of its labels, too), one call


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. The search adapts to it or refuses with a clear error.

    `ids`: prefixes are token ids; without it ids stand for messages, and every sample is a call of its own.
    `continues`: a completion may be continued in mid-turn; without it every completion is a whole message.
    `seeds`: a sample depends on its seed alone. `aborts`: `Stream.abort` stops what runs and says what it used.
    `shares_prompt`: the n samples of one request compute its prompt at most once, whatever the cache holds, so a
    reservation counts the prompt once. `virtual_time`: completions carry the virtual time `at` of their end, and
    the search handles them in that order. `overhead`: tokens that the engine adds to the prompt of every sample (the
    tools of a chat model).
    """

    ids: bool = True
    continues: bool = True
    seeds: bool = True
    label_logprobs: bool = True
    aborts: bool = True
    shares_prompt: bool = False
    virtual_time: bool = False
    constrains: bool = False  # `Sampling.json_schema` and `Sampling.regex` are obeyed
    grammars: bool = False  # `Sampling.ebnf` is obeyed
    hidden_states: bool = False  # it is a `Reader`
    tells: bool = False  # it is a `Teller`
    overhead: int = 0
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


def refuse_constraints(sampling: Sampling, capabilities: Capabilities, name: str, remedy: str) -> None:
    """Raise `ConfigError` if `sampling` is constrained and the engine does not declare that it obeys."""
    if sampling.constrained and not capabilities.constrains:
        raise ConfigError(f"engine {name!r} cannot constrain what it samples; {remedy}")
    if sampling.ebnf is not None and not capabilities.grammars:
        raise ConfigError(
            f"engine {name!r} obeys no grammar (ebnf={sampling.ebnf[:40]!r}); give json_schema or regex, or use an "
            "SGLang server"
        )


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


class Reader(Engine, Protocol):
    """An engine that shows what its model made of a branch; it declares `hidden_states`."""

    async def hidden_states(self, prefixes: Sequence[Prefix]) -> list[HiddenState]:
        """The final hidden state of each prefix's last token, as one request; what is computed for it is kept."""
        ...


class Teller(Engine, Protocol):
    """An engine that can be listened to while it samples; it declares `tells`."""

    def sample(
        self,
        prefix: Prefix,
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        at: float = 0.0,
        tell: Tell | None = None,
    ) -> Stream:
        """See `Engine.sample`. `tell` is called in the request's event loop whenever a sample goes on.

        An engine without ids of tokens tells ids that stand for the text so far.
        The last ids of a sample may come with its completion alone, and what was told after a stop text had ended is
        taken back by it: the completion has the last word. `tell` must neither block nor raise.
        """
        ...


def sample_bound(capabilities: Capabilities, prompt: int, n: int, max_tokens: int) -> Usage:
    """The most that one request of `n` samples may consume, with nothing cached."""
    prompt += capabilities.overhead
    prompts = prompt if capabilities.shares_prompt else prompt * n
    # NOTE: a prompt counts in full for every sample in `total` terms where the engine reports it so; cached tokens
    # are bounded by what is not computed, and the sum of both by one prompt a sample.
    return Usage(
        prompt_computed=prompts,
        prompt_cached=prompt * n - prompts,
        generated=n * max_tokens,
        decoded=n * max_tokens,
        calls=1 if capabilities.ids else n,  # messages are sampled by one call each
    )


def question_bound(prompt: int, suffix: int, labels: Sequence[Label] = ()) -> Usage:
    """The most that one label question may consume, with nothing cached.

    What follows each beginning of a label of several tokens may be asked by itself, with the prompt thrown out of the
    cache in between.
    """
    beginnings = {label[:size] for label in labels if not isinstance(label, int) for size in range(1, len(label))}
    computed = prompt + suffix + sum(prompt + suffix + len(beginning) for beginning in beginnings)
    return Usage(prompt_computed=computed, calls=1).as_verifier()
