"""Verdicts from code, and verifiers asked one after the other."""

import random
from collections.abc import Callable, Sequence

from tts_agent.errors import ConfigError
from tts_agent.thought import Unverified, Verdict
from tts_agent.tree import Branch
from tts_agent.usage import ZERO, Usage
from tts_agent.verifiers.base import Scope, Verifier

Check = Callable[[Branch], "float | bool | Verdict | Unverified | None"]


class CheckVerifier:
    """A programmatic check of one branch: legal, solved, dead, tests passed.

    `check(branch)` returns a score in [0, 1], a bool, a verdict, or None for "cannot say". A check that raises says
    nothing about its own branch and does not touch the others.
    """

    scope: Scope = "thought"

    def __init__(self, check: Check, *, name: str = "check", bound: Usage = ZERO) -> None:
        self._check = check
        self.name = name
        self._bound = bound

    def bound(self, prompt: int) -> Usage:
        return self._bound

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        return [self._one(branch) for branch in branches]

    def _one(self, branch: Branch) -> Verdict | Unverified:
        try:
            result = self._check(branch)
            if isinstance(result, (Verdict, Unverified)):
                return result
            if result is None:
                return Unverified("the check cannot say", self.name)
            return Verdict(float(result), "", self.name)
        except Exception as error:  # foreign code: its failure is not a verdict
            return Unverified(f"{type(error).__name__}: {error}", self.name)


class RandomVerifier:
    """Scores drawn at random, fixed by seed and branch: the control that any verifier has to beat."""

    scope: Scope = "thought"

    def __init__(self, *, seed: int = 0, name: str = "random") -> None:
        self._seed = seed
        self.name = name

    def bound(self, prompt: int) -> Usage:
        return ZERO

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        return [
            Verdict(random.Random(f"{self._seed} {branch.prefix.ids}").random(), "", self.name) for branch in branches
        ]


class Cascade:
    """Asks verifiers in order, and the next only about branches that the ones before let pass.

    A branch's score is that of the last verifier that judged it; a score of at most `floor` ends its way, so that a
    cheap check keeps an expensive one from being paid. `Unverified` lets a branch pass.
    """

    def __init__(self, verifiers: Sequence[Verifier], *, floor: float = 0.0, name: str = "cascade") -> None:
        if not verifiers:
            raise ConfigError("a cascade needs at least one verifier")
        order: tuple[Scope, ...] = ("thought", "siblings", "tree")
        self.scope: Scope = max((verifier.scope for verifier in verifiers), key=order.index)
        self._verifiers = tuple(verifiers)
        self._floor = floor
        self.name = name

    def bound(self, prompt: int) -> Usage:
        return sum((verifier.bound(prompt) for verifier in self._verifiers), ZERO)

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        results: list[Verdict | Unverified | None] = [None] * len(branches)
        passing = list(range(len(branches)))
        for verifier in self._verifiers:
            if not passing:
                break
            asked = [branches[i] for i in passing]
            try:
                verdicts = await verifier(asked)
            except Exception as error:  # foreign code: it says nothing, and what the ones before said still holds
                reason = f"{type(error).__name__}: {error}"
                verdicts = [Unverified(reason, verifier.name, verifier.bound(len(b.prefix))) for b in asked]
            for i, verdict in zip(passing, verdicts, strict=True):
                results[i] = _with_earlier_usage(verdict, results[i])
            passing = [i for i in passing if not self._ends(results[i])]
        return [result for result in results if result is not None]

    def _ends(self, result: Verdict | Unverified | None) -> bool:
        return isinstance(result, Verdict) and result.score <= self._floor


def _with_earlier_usage(verdict: Verdict | Unverified, earlier: Verdict | Unverified | None) -> Verdict | Unverified:
    if earlier is None:
        return verdict
    usage = earlier.usage + verdict.usage
    if isinstance(verdict, Unverified) and isinstance(earlier, Verdict):
        return Verdict(earlier.score, earlier.reason, earlier.verifier, usage)
    if isinstance(verdict, Verdict):
        return Verdict(verdict.score, verdict.reason, verdict.verifier, usage)
    return Unverified(verdict.reason, verdict.verifier, usage)
