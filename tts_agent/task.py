"""What a search is about."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tts_agent.engines.base import Sampling
from tts_agent.errors import ConfigError
from tts_agent.prefix import Prefix
from tts_agent.thought import ROOT, Expansion, Reading, Thought, Unit

Reader = Callable[[Thought | None, str], Reading]
"""`read(parent, text)`: what a sampled text means after `parent` (None = the root). Pure and cheap."""


def read_open(parent: Thought | None, text: str) -> Reading:
    """The default reader: every text is a thought that can be continued, equal texts are the same thought."""
    return Reading(key=f"{parent.id if parent else 0}:{text}")


@dataclass(frozen=True, slots=True)
class Task:
    """The root of a search, how its samples are drawn, and what they mean.

    `thought` draws one next thought, `answer` a whole answer (needed by strategies that sample answers). A sample
    that ends with an id of `end_ids` has ended the answer: the id is cut, and the thought cannot be continued;
    if `read` calls it open, it becomes `complete`. Thoughts at `max_depth` are complete likewise.

    `decision` is what can be acted on: one thought, or a whole answer. The completion that is held back for the
    decision samples as much, and where it is a whole answer, a path that has not come to its end is no decision.
    """

    root: Prefix
    thought: Sampling
    answer: Sampling | None = None
    read: Reader = read_open
    end_ids: frozenset[int] = frozenset()
    max_depth: int | None = None
    decision: Unit = "thought"

    def __post_init__(self) -> None:
        if not len(self.root):
            raise ConfigError("the task's root prefix is empty; render a prompt first")
        if self.max_depth is not None and self.max_depth < 1:
            raise ConfigError(f"max_depth={self.max_depth!r} must be at least 1")
        if self.decision == "answer" and self.answer is None:
            raise ConfigError("decision='answer' acts on whole answers, but the task has no `answer` sampling; set it")

    @property
    def commit(self) -> Expansion:
        """The one greedy completion that is held back, so that there is a decision in any case."""
        return Expansion(ROOT, 1, self.decision, temperature=0.0)

    def sampling(self, expansion: Expansion) -> Sampling:
        """How the children of `expansion` are drawn."""
        base = self.thought if expansion.unit == "thought" else self.answer
        if base is None:
            raise ConfigError(
                "the strategy samples whole answers, but the task has no `answer` sampling; set Task.answer"
            )
        temperature = (base.temperature if expansion.temperature is None else expansion.temperature) * expansion.heat
        return base if temperature == base.temperature else replace(base, temperature=temperature)
