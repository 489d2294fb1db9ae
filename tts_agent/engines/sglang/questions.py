"""Label questions: what comes next after many prompts, as one request a level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tts_agent.engines.base import LabelScores
from tts_agent.engines.sglang.body import scoring_body
from tts_agent.engines.sglang.desk import Desk, Live, refuse
from tts_agent.engines.sglang.reply import Reply, asked_logprobs
from tts_agent.engines.sglang.worker import Worker
from tts_agent.usage import Usage

Beginning = tuple[int, ...]
"""The first tokens of a label, empty at first."""


def beginnings(labels: Sequence[tuple[int, ...]]) -> list[dict[Beginning, tuple[int, ...]]]:
    """For each length, the beginnings of `labels` of so many tokens and the tokens that follow each."""
    levels: list[dict[Beginning, tuple[int, ...]]] = []
    for size in range(max(map(len, labels), default=0)):
        level: dict[Beginning, list[int]] = {}
        for label in labels:
            if len(label) > size:
                after = level.setdefault(label[:size], [])
                if label[size] not in after:
                    after.append(label[size])
        levels.append({beginning: tuple(after) for beginning, after in level.items()})
    return levels


@dataclass(slots=True)
class Asked:
    """A question about one prompt: what has been found out, and how many tokens that took."""

    prompt: tuple[int, ...]
    found: dict[Beginning, Mapping[int, float]] = field(default_factory=dict)
    computed: int = 0

    def answer(self, labels: Sequence[tuple[int, ...]]) -> LabelScores:
        """The scores of `labels`: a label's is the sum over its tokens, each after those before it.

        The prompt counts once, and so does each token with which a label is continued; what was computed again, because
        the server had thrown it out between two levels, counts in the place of what would have come from its cache.
        """
        tokens = len(self.prompt) + sum(1 for beginning in self.found if beginning)
        usage = Usage(prompt_computed=self.computed, prompt_cached=max(tokens - self.computed, 0), calls=1)
        return LabelScores(
            tuple(sum(self.found[label[:i]][token] for i, token in enumerate(label)) for label in labels), usage
        )

    def take(self, beginning: Beginning, reply: Reply) -> None:
        self.found[beginning] = {int(entry[1]): min(entry[0], 0.0) for entry in asked_logprobs(reply.meta)[0]}
        self.computed += reply.prompt - reply.cached


async def ask(desk: Desk, worker: Worker, asked: Sequence[Asked], labels: Sequence[tuple[int, ...]]) -> None:
    """Put the question about every prompt, to one server. Raises `Refused` if it had not begun with a level."""
    for level in beginnings(labels):
        missing = [(one, start, after) for one in asked for start, after in level.items() if start not in one.found]
        if missing:
            await _level(desk, worker, missing)


async def _level(desk: Desk, worker: Worker, missing: Sequence[tuple[Asked, Beginning, tuple[int, ...]]]) -> None:
    prompts = [one.prompt + start for one, start, _ in missing]
    body = scoring_body(prompts, desk.extras, tokens=[after for *_, after in missing])
    cold = sum(len(prompt) for prompt in prompts if worker.memory.cold(prompt))
    tree = desk.pool.tree(prompts[0])
    async with worker.admitted(cold), desk.replies(worker, body, tree, Live()) as replies:
        async for reply in replies:
            refuse(reply)
            one, start, _ = missing[reply.place]
            one.take(start, reply)
            desk.pool.learn(worker, tree, prompts[reply.place], run=reply.prompt)
