"""JSON schemas and regular expressions that say which tokens may come next, by llguidance.

A constraint covers one completion, from its first token. It is complete when nothing may follow; where its text could
end or go on, the model's end tokens are allowed beside what goes on.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tts_agent.engines.base import Sampling
from tts_agent.errors import ConfigError

if TYPE_CHECKING:
    from llguidance import LLMatcher

REMEDY = 'pip install "tts-agent[constraints]"'

WHITESPACE = r"\n?[ \t]{0,16}"
"""Between the parts of JSON: enough to indent it, not so much that a completion never ends."""


def available() -> bool:
    """Whether llguidance is installed."""
    return find_spec("llguidance") is not None


class Constraint:
    """What one completion may still say: `allowed` is `[vocab]` bool, the ids that may come next."""

    def __init__(self, matcher: "LLMatcher", vocab: int, allowed: Tensor | None = None) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self.allowed = self._mask() if allowed is None else allowed

    @property
    def broken(self) -> str:
        """What went wrong, such as a constraint too complex to go on; empty if nothing did."""
        return str(self._matcher.get_error()) if self._matcher.is_error() else ""

    def copy(self) -> "Constraint":
        """Another completion that has said the same so far."""
        return Constraint(self._matcher.deep_copy(), self._vocab, self.allowed)

    def take(self, token: int) -> bool:
        """Note that `token` was said; returns whether the completion is complete."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            return False
        if self._matcher.is_stopped():
            return True
        self.allowed = self._mask()
        return False

    def _mask(self) -> Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocab].astype(np.bool_))


class Constraints:
    """Makes constraints for one model's tokens."""

    def __init__(self, tokenizer_file: Path, *, vocab: int, end_ids: tuple[int, ...]) -> None:
        from llguidance import LLTokenizer

        self._vocab = vocab
        try:
            self._tokenizer = LLTokenizer(str(tokenizer_file), n_vocab=vocab, eos_token=list(end_ids) or None)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"tokenizer {str(tokenizer_file)!r} cannot be constrained: {str(error)[:200]}; use neither json_schema "
                "nor regex with this model"
            ) from error

    def compile(self, sampling: Sampling) -> Constraint:
        """The constraint of `sampling`. Raises `ConfigError` if its schema or expression is wrong."""
        from llguidance import LLMatcher

        said = sampling.regex if sampling.regex is not None else sampling.json_schema
        try:
            if sampling.regex is not None:
                grammar = LLMatcher.grammar_from_regex(sampling.regex)
            else:
                grammar = LLMatcher.grammar_from_json_schema(
                    sampling.json_schema or "", defaults={"whitespace_pattern": WHITESPACE}
                )
        except ValueError as error:
            raise ConfigError(f"constraint {said!r} is wrong: {error}") from error
        if problem := LLMatcher.validate_grammar(grammar, self._tokenizer):
            raise ConfigError(f"constraint {said!r} is wrong: {problem}")
        # NOTE: log_level 0: llguidance prints nothing, since its errors are read.
        constraint = Constraint(LLMatcher(self._tokenizer, grammar, log_level=0), self._vocab)
        if constraint.broken:
            raise ConfigError(f"constraint {said!r} cannot be used: {constraint.broken}; make it simpler")
        return constraint
