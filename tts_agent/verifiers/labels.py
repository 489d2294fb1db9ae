"""Verdicts read off the model's own next-token probabilities, in place."""

from collections.abc import Sequence
from math import exp

from tts_agent.engines.base import Engine, question_bound
from tts_agent.errors import ConfigError
from tts_agent.thought import Unverified, Verdict
from tts_agent.tree import Branch
from tts_agent.usage import Prices, Usage
from tts_agent.verifiers.base import Scope


class LabelVerifier:
    """Appends a question to the branch's own ids and compares the probabilities of two answers.

    The score is p(good) / (p(good) + p(bad)). Only the question's few tokens are new to the engine, since the branch
    is already computed, and nothing is generated (P(True) of Kadavath et al. 2022). `question` and the labels are
    given as text, the question also as ids, such as those of a whole turn of a chat. A label of several tokens is
    scored as a continuation, and its tokens but the last are charged; no label may be the beginning of the other.
    `engine` may be another than the one that samples, with `prices` of its own; then the branch is computed there as
    well. It must have the same vocabulary: branches are given as ids.
    """

    scope: Scope = "thought"

    def __init__(
        self,
        engine: Engine,
        *,
        question: str | Sequence[int],
        good: str,
        bad: str,
        prices: Prices | None = None,
        name: str = "labels",
    ) -> None:
        if not engine.capabilities.label_logprobs:
            raise ConfigError(f"engine {engine.name!r} gives no label log-probabilities; use another verifier")
        self.engine = engine
        self.name = name
        self._prices = prices
        self.question = engine.encode(question) if isinstance(question, str) else tuple(question)
        if not self.question:
            raise ConfigError(f"question {question!r} encodes to no token")
        self._labels = [self._label(good), self._label(bad)]
        shared = min(map(len, self._labels))
        if self._labels[0][:shared] == self._labels[1][:shared]:
            raise ConfigError(
                f"of labels {good!r} and {bad!r} one is the beginning of the other as tokens {self._labels!r}; "
                "choose two that differ"
            )

    def _label(self, text: str) -> tuple[int, ...]:
        ids = self.engine.encode(text)
        if not ids:
            raise ConfigError(f"label {text!r} encodes to no token; choose one with at least one")
        return ids

    def bound(self, prompt: int) -> Usage:
        return self._priced(question_bound(prompt, len(self.question), self._labels))

    def _priced(self, usage: Usage) -> Usage:
        return usage if self._prices is None else usage._replace(dollars=self._prices.dollars(usage))

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        for branch in branches[:1]:
            read = self.engine.decode(branch.thought.ids)
            if not read.endswith(branch.thought.text):
                raise ConfigError(
                    f"engine {self.engine.name!r} of verifier {self.name!r} reads the branch as {read!r}, not as "
                    f"{branch.thought.text!r}; give the verifier an engine with the sampler's vocabulary"
                )
        prefixes = [branch.prefix for branch in branches]
        answers = await self.engine.label_logprobs(prefixes, self.question, self._labels)
        return [self._verdict(answer.logprobs, self._priced(answer.usage.as_verifier())) for answer in answers]

    def _verdict(self, logprobs: tuple[float, ...], usage: Usage) -> Verdict:
        good, bad = logprobs
        # A logistic of the difference: exact even where both probabilities underflow.
        score = 1 / (1 + exp(min(bad - good, 700.0)))
        return Verdict(round(score, 6), "", self.name, usage)
