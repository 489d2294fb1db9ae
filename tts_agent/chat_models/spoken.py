"""What an engine has sampled, as LangChain's messages."""

import json
from hashlib import sha256
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk

from tts_agent.dialects.turn import Turn
from tts_agent.engines.base import Completion
from tts_agent.prefix import Prefix, pack_ids
from tts_agent.usage import Usage


def usage_metadata(usage: Usage) -> UsageMetadata:
    """The tokens of `usage`: the prompt in full, and how much of it the engine had computed before."""
    return UsageMetadata(
        input_tokens=usage.prompt,
        output_tokens=usage.generated,
        total_tokens=usage.total,
        input_token_details=InputTokenDetails(cache_read=usage.prompt_cached),
    )


class Spoken:
    """One completion after `prefix`, read as `turn`; `model` is the name by which the model is known."""

    def __init__(self, turn: Turn, completion: Completion, prefix: Prefix, model: str) -> None:
        self.turn = turn
        self._completion, self._prefix = completion, prefix
        finish = "tool_calls" if turn.calls else completion.finish
        self.metadata = {"model_name": model, "model_provider": "sglang", "finish_reason": finish}
        self.usage = usage_metadata(completion.usage)

    def message(self) -> AIMessage:
        """The whole message. A call that cannot be carried out is among its `invalid_tool_calls`."""
        turn = self.turn
        calls = [ToolCall(name=call.name, args=call.args, id=self._id(place)) for place, call in enumerate(turn.calls)]
        return AIMessage(
            turn.content,
            tool_calls=calls,
            invalid_tool_calls=self._invalid(),
            additional_kwargs=reasoning_kwargs(turn.reasoning.strip()),
            response_metadata=self.metadata,
            usage_metadata=self.usage,
        )

    def last_chunk(self, reasoning: str, content: str) -> AIMessageChunk:
        """What ends a stream: what of `reasoning` and `content` was not shown yet, the calls and the account."""
        calls = [
            tool_call_chunk(name=call.name, args=json.dumps(call.args), id=self._id(place), index=place)
            for place, call in enumerate(self.turn.calls)
        ]
        # NOTE: a chunk takes its invalid calls from those whose arguments are not JSON.
        broken = [
            tool_call_chunk(name=call["name"], args=call["args"], id=call["id"], index=len(calls))
            for call in self._invalid()
        ]
        return AIMessageChunk(
            content=content,
            tool_call_chunks=calls + broken,
            additional_kwargs=reasoning_kwargs(reasoning),
            response_metadata=self.metadata,
            usage_metadata=self.usage,
            chunk_position="last",
        )

    def _invalid(self) -> list[InvalidToolCall]:
        if not self.turn.problem:
            return []
        return [
            InvalidToolCall(
                type="invalid_tool_call",
                name=None,
                args=self.turn.content,
                id=self._id(len(self.turn.calls)),
                error=self.turn.problem,
            )
        ]

    def _id(self, place: int) -> str:
        """Nine letters and digits, as some templates demand, of which the same sample always has the same."""
        said = f"{pack_ids(self._prefix.ids)} {self._completion.ids} {place}"
        return sha256(said.encode()).hexdigest()[:9]


def reasoning_kwargs(reasoning: str) -> dict[str, Any]:
    """Where LangChain's messages keep the model's reasoning."""
    return {"reasoning_content": reasoning} if reasoning else {}
