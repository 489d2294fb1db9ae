"""What a piece of work consumed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from tts_agent.errors import ConfigError


class Usage(NamedTuple):
    """Tokens, requests, seconds and dollars of one or many requests. Usages add up with `+`.

    `prompt_computed + prompt_cached` is the length of the prompt. A completion of L sampled tokens has
    `generated = L` and `decoded = L - 1`: the last sampled token was chosen but not yet run through the model; if
    something continues it, that request counts it in its own `prompt_computed`. So `computed`, the tokens that
    went through the model, adds up to the engine's own counter exactly.

    The `verifier_*` fields say how much of the same totals verifiers took; they are not added to them.
    """

    prompt_computed: int = 0
    prompt_cached: int = 0
    generated: int = 0
    decoded: int = 0
    calls: int = 0
    seconds: float = 0.0
    dollars: float = 0.0
    verifier_computed: int = 0
    verifier_cached: int = 0
    verifier_generated: int = 0

    @property
    def computed(self) -> int:
        """Tokens run through the model."""
        return self.prompt_computed + self.decoded

    @property
    def prompt(self) -> int:
        """Prompt tokens, cached or not."""
        return self.prompt_computed + self.prompt_cached

    @property
    def total(self) -> int:
        """Prompt tokens in full plus generated tokens, as providers bill without a cache."""
        return self.prompt + self.generated

    def __add__(self, other: "Usage") -> "Usage":  # type: ignore[override]
        # NOTE: written out, not by reflection: it runs several times for every thought.
        return Usage(
            self.prompt_computed + other.prompt_computed,
            self.prompt_cached + other.prompt_cached,
            self.generated + other.generated,
            self.decoded + other.decoded,
            self.calls + other.calls,
            self.seconds + other.seconds,
            self.dollars + other.dollars,
            self.verifier_computed + other.verifier_computed,
            self.verifier_cached + other.verifier_cached,
            self.verifier_generated + other.verifier_generated,
        )

    def times(self, count: int) -> "Usage":
        """`count` such usages."""
        return Usage(*[value * count for value in self])  # type: ignore[arg-type]

    def as_verifier(self) -> "Usage":
        """The same usage, marked as a verifier's share."""
        return Usage(
            self.prompt_computed,
            self.prompt_cached,
            self.generated,
            self.decoded,
            self.calls,
            self.seconds,
            self.dollars,
            self.computed,
            self.prompt_cached,
            self.generated,
        )

    def to_json(self) -> dict[str, int | float]:
        """The fields that are not zero."""
        return {name: value for name, value in zip(self._fields, self, strict=True) if value}

    @classmethod
    def from_json(cls, data: Mapping[str, int | float]) -> "Usage":
        if unknown := sorted(set(data) - _FIELD_SET):
            raise ConfigError(f"unknown usage fields {unknown!r}; known: {', '.join(USAGE_FIELDS)}")
        return cls(**data)  # type: ignore[arg-type]


USAGE_FIELDS = Usage._fields
_FIELD_SET = frozenset(USAGE_FIELDS)
ZERO = Usage()


def total_usage(usages: Iterable[Usage]) -> Usage:
    """The sum of `usages`."""
    return sum(usages, ZERO)


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars per million tokens; a self-hosted model's price is what its GPU hour costs per token.

    `cached` is the price of a prompt token served from cache, `prompt` of one computed, `generated` of one sampled.
    """

    prompt: float
    generated: float
    cached: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompt", "generated", "cached"):
            price = getattr(self, name)
            if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < inf:
                raise ConfigError(f"price {name}={price!r} must be a number of dollars >= 0 per million tokens")
        if self.cached > self.prompt:
            raise ConfigError(
                f"price cached={self.cached!r} is above prompt={self.prompt!r}; work is reserved as if nothing were "
                "cached, so a cached token must not cost more"
            )

    def dollars(self, usage: Usage) -> float:
        """Price of `usage`; its own `dollars` field is not read."""
        return (
            usage.prompt_computed * self.prompt + usage.prompt_cached * self.cached + usage.generated * self.generated
        ) / 1e6
