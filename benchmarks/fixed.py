"""A dialect for graphs whose planner is measured: any message asks for the same search."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage

from tts_agent import Task, Thought
from tts_agent.dialect import Decided, Request


class Fixed:
    """Any message asks for `task`."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def request(self, messages: Sequence[AnyMessage], last: Decided | None) -> Request:
        return Request(self._task)

    def decide(self, thought: Thought) -> AIMessage:
        return AIMessage(thought.text)
