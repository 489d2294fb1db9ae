"""A chat model that follows a script, counts what it really serves, and fails on demand."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool

from tts_agent import Prices

Say = Callable[[Sequence[BaseMessage], int], AIMessage | str]
"""`say(messages, call)`: what the model answers to its call of that number, counted from 0."""

Fault = Literal["raises", "raises late", "silent", "hangs"]
"""`raises` before anything is computed, `raises late` after everything is; `silent` reports no usage; `hangs` computes
everything and never answers (asynchronous calls only)."""

PRICES = Prices(prompt=3.0, generated=15.0, cached=0.3)


class Broken(Exception):
    """What a provider raises."""


@dataclass
class Served:
    """What the model really computed, answered or not."""

    calls: int = 0
    prompt: int = 0
    generated: int = 0
    caps: list[int | None] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        return self.prompt + self.generated

    @property
    def dollars(self) -> float:
        return (self.prompt * PRICES.prompt + self.generated * PRICES.generated) / 1e6


class Uncapped(BaseChatModel):
    """A token is three bytes of the prompt, and a character of the answer, which nothing stops."""

    say: Say
    served: Served = field(default_factory=Served)
    faults: Mapping[int, Fault] = {}
    pause: float = 0.0
    model_config = {"arbitrary_types_allowed": True}

    def __init__(self, say: Say, **options: Any) -> None:
        super().__init__(say=say, **{"served": Served(), **options})

    def _cap(self, kwargs: Mapping[str, Any]) -> int | None:
        return None

    @property
    def _llm_type(self) -> str:
        return "teller"

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools], **kwargs)

    def _begin(
        self, messages: Sequence[BaseMessage], kwargs: Mapping[str, Any]
    ) -> tuple[int, Fault | None, ChatResult]:
        with self.served.lock:
            call = self.served.calls
            self.served.calls += 1
            cap = self._cap(kwargs)
            self.served.caps.append(cap)
        fault = self.faults.get(call)
        if fault == "raises":
            raise Broken("no connection")
        answer = self.say(messages, call)
        message = AIMessage(answer) if isinstance(answer, str) else answer
        text = message.text if cap is None else message.text[:cap]
        size = len(json.dumps(kwargs.get("tools") or [])) + sum(len(m.text.encode()) + 8 for m in messages)
        said = min(max(len(text), 1) + 5 * len(message.tool_calls), cap or 10**9)
        with self.served.lock:
            self.served.prompt += size // 3
            self.served.generated += said
        if fault == "raises late":
            raise Broken("the connection was lost")
        usage = (
            None
            if fault == "silent"
            else UsageMetadata(input_tokens=size // 3, output_tokens=said, total_tokens=size // 3 + said)
        )
        message = message.model_copy(update={"content": text, "usage_metadata": usage})
        return call, fault, ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        _, _, result = self._begin(messages, kwargs)
        if self.pause:
            time.sleep(self.pause)
        return result

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        _, fault, result = self._begin(messages, kwargs)
        await asyncio.sleep(3600 if fault == "hangs" else self.pause)
        return result


class Teller(Uncapped):
    """An answer stops at `max_tokens`."""

    max_tokens: int | None = None

    def _cap(self, kwargs: Mapping[str, Any]) -> int | None:
        cap: int | None = kwargs.get("max_tokens", self.max_tokens)
        return cap


def calls(*names: str, **arguments: Any) -> AIMessage:
    """A message that calls tools, all with the same arguments."""
    made = [{"name": name, "args": arguments, "id": f"{name}-{place}"} for place, name in enumerate(names)]
    return AIMessage("", tool_calls=made)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b
