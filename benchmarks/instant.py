"""An engine that answers at once, so that what is measured around it is the controller."""

from collections.abc import Sequence
from typing import Self

from tts_agent import Prefix, Sampling, Usage
from tts_agent.engines.base import Capabilities, Completion, Label, LabelScores
from tts_agent.usage import ZERO

LENGTH = 8
"""Tokens of a thought: seven hexadecimal digits of its seed and a newline; one token is one character."""


class InstantStream:
    """Samples that were ready when they were asked for."""

    def __init__(self, samples: Sequence[Completion]) -> None:
        self._samples = iter(samples)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        for sample in self._samples:
            return sample
        raise StopAsyncIteration

    async def abort(self) -> Usage:
        return ZERO


class InstantEngine:
    """Says the digits of each seed; its answer to a question depends on the last digits of the branch."""

    name = "instant"
    capabilities = Capabilities(shares_prompt=True)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode("ascii"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("ascii")

    def sample(self, prefix: Prefix, sampling: Sampling, *, seeds: Sequence[int], at: float = 0.0) -> InstantStream:
        size = len(prefix)
        first, further = Usage(size, 0, LENGTH, LENGTH - 1, calls=1), Usage(0, size, LENGTH, LENGTH - 1)
        return InstantStream(
            [
                Completion(index, tuple(b"%07x\n" % (seed & 0xFFFFFFF)), "stop", further if index else first)
                for index, seed in enumerate(seeds)
            ]
        )

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        asked = len(suffix)
        return [
            LabelScores((-0.01 * prefix.ids[-2], -0.01 * prefix.ids[-3]), Usage(1, len(prefix) + asked - 1, calls=1))
            for prefix in prefixes
        ]

    async def aclose(self) -> None:
        """Nothing to free."""
