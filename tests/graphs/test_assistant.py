"""The assistant searches for its next tool call, on chat models and on folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from graphs.assistant import CANDIDATES, build_chat, build_local, make_tools
from tests import models
from tts_agent import Budget, Sampling
from tts_agent.errors import ConfigError


class Undecided(BaseChatModel):
    """Calls the right tool three times of four and a wrong one once; answers when it sees the result."""

    asked: list[int] = []

    @property
    def _llm_type(self) -> str:
        return "undecided"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        assert {tool.name for tool in tools} >= {"calculator", "read_file"}
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.asked.append(len(messages))
        if isinstance(messages[-1], ToolMessage):
            message = AIMessage(f"It says {messages[-1].text}.")
        else:
            name, argument = ("read_file", "a.txt") if len(self.asked) % CANDIDATES else ("list_files", ".")
            call = {"name": name, "args": {"path": argument}, "id": f"call{len(self.asked)}"}
            message = AIMessage(f"Attempt {len(self.asked)}.", tool_calls=[call])
        message.usage_metadata = {"input_tokens": 9, "output_tokens": 5, "total_tokens": 14}
        return ChatResult(generations=[ChatGeneration(message=message)])


async def test_a_chat_model_acts_on_what_most_of_its_candidates_say(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    model = Undecided(asked=[])
    agent = build_chat(model, folder=tmp_path).compile()
    result = await agent.ainvoke({"messages": [HumanMessage("What does a.txt say?")]})
    (call,) = result["messages"][1].tool_calls
    assert (call["name"], call["args"]) == ("read_file", {"path": "a.txt"})
    assert result["messages"][-1].text == "It says hello."
    assert len(model.asked) == 2 * CANDIDATES
    assert result["messages"][1].response_metadata["tts"]["score"] == 0.75


def test_tools_are_there_for_what_is_given(tmp_path: Path) -> None:
    assert [tool.name for tool in make_tools()] == ["calculator"]
    assert [tool.name for tool in make_tools(folder=tmp_path)][1:] == ["list_files", "read_file", "search_files"]


async def test_a_model_folder_judges_its_own_candidates_in_place(tmp_path: Path) -> None:
    # Random weights say nothing sensible: what is tested is that it is asked, judged and kept within its budget.
    limits = {"run_budget": Budget(generated_tokens=300), "sampling": Sampling(max_tokens=40)}
    agent = build_local(models.qwen(), folder=tmp_path, **limits)
    result = await agent.compile().ainvoke({"messages": [HumanMessage("Hello?")]})
    usage = result["tts"]["totals"]["usage"]
    assert 0 < usage["generated"] <= 300
    assert usage["verifier_computed"] > 0


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        build_local(tmp_path)
