"""What the search asks of a verifier."""

from collections.abc import Sequence
from typing import Literal, Protocol

from tts_agent.thought import Unverified, Verdict
from tts_agent.tree import Branch
from tts_agent.usage import Usage

Scope = Literal["thought", "siblings", "tree"]
"""When a branch can be judged: as soon as it is there, when its siblings are, or when nothing is in flight."""


class Verifier(Protocol):
    """Says how good branches are. It may have an engine, a model and a price of its own."""

    @property
    def name(self) -> str:
        """Short name for verdicts and traces."""
        ...

    @property
    def scope(self) -> Scope: ...

    def bound(self, prompt: int) -> Usage:
        """The most that judging one branch of `prompt` tokens may consume; the search reserves it beforehand."""
        ...

    async def __call__(self, branches: Sequence[Branch]) -> Sequence[Verdict | Unverified]:
        """One verdict per branch, in order, with the usage of each.

        A check that could not be made is `Unverified`, never a score of 0. If the call raises, every branch of it is
        unverified, is charged at its bound, and the search goes on.
        """
        ...
