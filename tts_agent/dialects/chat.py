"""The dialect of engines that sample whole messages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from tts_agent.dialect import Answer, Decided, Request
from tts_agent.dialects.messages import check_news
from tts_agent.dialects.turn import Turn
from tts_agent.engines.base import Sampling
from tts_agent.engines.chat import ChatEngine
from tts_agent.engines.records import END
from tts_agent.errors import ConfigError
from tts_agent.task import Task
from tts_agent.thought import Observation, Reading, Thought


class ChatDialect:
    """A thought is one message of the model, with its tool calls; images and the like are the model's business.

    `tools` are those bound to the engine's model: a message that calls another one is invalid. `sampling` says how
    messages are drawn.
    """

    def __init__(
        self,
        engine: ChatEngine,
        *,
        tools: Sequence[BaseTool | Callable[..., Any] | Mapping[str, Any]] = (),
        sampling: Sampling | None = None,
    ) -> None:
        self.engine = engine
        self._tools = tuple(str(convert_to_openai_tool(tool)["function"]["name"]) for tool in tools)
        drawn = sampling or Sampling(max_tokens=1024)
        if drawn.stop_ids:
            raise ConfigError(f"a chat model knows no stop tokens {drawn.stop_ids!r}; leave stop_ids empty")
        self._sampling = replace(drawn, stop_ids=(END,))

    def request(self, messages: Sequence[AnyMessage], last: Decided | None) -> Request | Answer:
        newest = check_news(messages)
        answers = messages[newest + 1 :] if newest >= 0 else ()
        task = Task(
            root=self.engine.prompt(messages),
            thought=self._sampling,
            answer=self._sampling,
            read=self._read,
            end_ids=frozenset((END,)),
            max_depth=1,
        )
        return Request(task, tuple(Observation(seen.text, False) for seen in answers if isinstance(seen, ToolMessage)))

    def _read(self, parent: Thought | None, text: str) -> Reading:
        turn = Turn.read(text, form="hermes", thinking=False, tools=self._tools)
        if problem := turn.problem or turn.silent:
            return Reading("invalid", turn.to_json(), reason=problem)
        return Reading("complete", turn.to_json(), turn.key or text)

    def decide(self, thought: Thought) -> AIMessage:
        message = self.engine.message(thought.ids)
        if message.invalid_tool_calls:
            raise ConfigError(f"thought {thought.text!r} has broken tool calls; only valid thoughts are decisions")
        metadata = {"model_name": self.engine.name, "finish_reason": thought.finish}
        return message.model_copy(update={"response_metadata": {**message.response_metadata, **metadata}})
