"""A planning step whose decision is one message of a chat model."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage

from tts_agent import Prefix, Reading, Sampling, Task, Thought
from tts_agent.dialect import Decided, Request
from tts_agent.engines.chat import ChatEngine


class ChatDialect:
    """Asks a chat model for one message."""

    def __init__(self, engine: ChatEngine) -> None:
        self._engine = engine

    def request(self, messages: Sequence[AnyMessage], last: Decided | None) -> Request:
        sampling = Sampling(max_tokens=50)
        root: Prefix = self._engine.prompt(messages)
        return Request(Task(root=root, thought=sampling, answer=sampling, max_depth=1, read=lambda _, text: Reading()))

    def decide(self, thought: Thought) -> AIMessage:
        return self._engine.message(thought.ids)
