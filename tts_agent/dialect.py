"""How a model reads a conversation, and how its thoughts become messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tts_agent.prefix import Prefix
from tts_agent.task import Task
from tts_agent.thought import Observation, Thought

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, AnyMessage


@dataclass(frozen=True, slots=True)
class Decided:
    """What the planning step before this one decided.

    `prefix` holds the exact ids of the branch through the decision: a root that starts with it shares what the engine
    has computed.
    """

    prefix: Prefix
    thought: Thought


@dataclass(frozen=True, slots=True)
class Request:
    """What a planning step is to search for.

    `observations` are what acting on the last decision returned, in the order of the tool calls; empty at the first
    step of a run.
    """

    task: Task
    observations: tuple[Observation, ...] = ()

    def decision(self, path: Sequence[Thought]) -> Sequence[Thought]:
        """The thoughts of the chosen `path` that are acted on: the first, or all where a whole answer decides."""
        return path if self.task.decision == "answer" else path[:1]

    def continues(self, last: Decided) -> bool:
        """Whether the branch goes on where the decision left it, so that the thoughts below it still hold."""
        predicted = all(observation.predicted for observation in self.observations)
        return bool(self.observations) and predicted and self.task.root == last.prefix


@dataclass(frozen=True, slots=True)
class Answer:
    """There is nothing left to decide: what the agent says at its end. `solved` is None where nobody can tell."""

    text: str
    solved: bool | None = None


class Dialect(Protocol):
    """One model family's way to read messages and to write decisions. Pure: no engine call, no clock."""

    def request(self, messages: Sequence["AnyMessage"], last: Decided | None) -> Request | Answer:
        """What to search for after `messages`, or the answer if there is nothing left to decide.

        `last` is the decision that the newest AI message carries, also where a human began a new run after it; None at
        the first step of a conversation or if the history was changed by others. What is new since then extends
        `last.prefix` where it can; ids are never made again from text. Raises `ConfigError` for messages that the
        model cannot be given.
        """
        ...

    def decide(self, thought: Thought) -> "AIMessage":
        """The decision that ends with `thought` as a message, its tool calls included."""
        ...
