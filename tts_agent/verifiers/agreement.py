"""Verdicts by vote: what siblings agree on."""

from collections.abc import Sequence

from tts_agent.thought import Unverified, Verdict
from tts_agent.tree import Branch
from tts_agent.usage import ZERO, Usage
from tts_agent.verifiers.base import Scope


class AgreementVerifier:
    """The share of a thought's siblings that say the same (self-consistency, Wang et al. 2023).

    Two thoughts say the same if the task's reader gives them one key, such as the same tool calls in other words. What
    broke a rule has no vote. It costs no tokens, and is a verdict where nothing else gives one: a chat model's answers
    without log-probabilities. It is given once, when the siblings of an expansion are there; what later expansions of
    the same parent say does not change it.
    """

    scope: Scope = "siblings"

    def __init__(self, *, name: str = "agreement") -> None:
        self.name = name

    def bound(self, prompt: int) -> Usage:
        return ZERO

    async def __call__(self, branches: Sequence[Branch]) -> list[Verdict | Unverified]:
        return [self._verdict(branch) for branch in branches]

    def _verdict(self, branch: Branch) -> Verdict:
        tree, thought = branch.tree, branch.thought
        voters = [n for n in tree.children[thought.parent] if tree.thoughts[n].status != "invalid"]
        votes = sum(tree.merged.get(voter, voter) == thought.id for voter in voters)
        return Verdict(votes / len(voters), f"{votes} of {len(voters)} siblings say so", self.name)
