"""The assistant searches for its next tool call, on chat models and on folders."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from graphs.assistant import CANDIDATES, MODEL, agraph, build_chat, build_judging, build_local, graph, make_tools
from tests import models
from tests.chat_models.server import WORDS, ChatServer
from tests.dialects.world import TokenEngine
from tts_agent import Budget, Sampling
from tts_agent.chat_models import ChatSGLang
from tts_agent.errors import ConfigError, EngineUnavailable
from tts_agent.verifiers import AgreementVerifier


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


# Tools, on an engine that says what its script says


def calls(*wanted: tuple[str, dict[str, Any]]) -> str:
    said = [json.dumps({"name": name, "arguments": args}) for name, args in wanted]
    return "".join(f"<tool_call>\n{call}\n</tool_call>\n" for call in said) + "<|im_end|>"


SCRIPT = [
    calls(
        ("calculator", {"expression": "6*7"}),
        ("sqlite_query", {"sql": "SELECT sum(cents) AS sum FROM orders"}),
        ("search_files", {"text": "tea"}),
    ),
    calls(("read_file", {"path": "../secret.txt"}), ("sqlite_query", {"sql": "DELETE FROM orders"})),
    "All is known.<|im_end|>",
]


def follow(prompt: str, seed: int) -> str:
    """The next part of the script; now and then a candidate has another idea."""
    turn = prompt.count("<|im_start|>assistant") - 1
    return "I have another idea.<|im_end|>" if seed % 11 == 0 else SCRIPT[turn]


async def test_several_tools_of_every_kind_are_called_at_once(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("CREATE TABLE orders (item TEXT, cents INTEGER)")
        connection.execute("INSERT INTO orders VALUES ('tea', 300), ('cup', 450)")
        connection.commit()
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("buy tea")
    (tmp_path / "secret.txt").write_text("nobody may know")
    agent = build_judging(
        TokenEngine(models.qwen(), follow),
        models.qwen(),
        folder=folder,
        database=tmp_path / "shop.db",
        verifier=AgreementVerifier(),
        sampling=Sampling(max_tokens=400),
    ).compile()
    result = await agent.ainvoke({"messages": [HumanMessage("Look at everything.")]})
    decisions = [message for message in result["messages"] if isinstance(message, AIMessage)]
    assert [len(decision.tool_calls) for decision in decisions] == [3, 2, 0]
    answers = [message.text for message in result["messages"] if isinstance(message, ToolMessage)]
    assert answers[:3] == ["42", "sum\n750", "a.txt:1: buy tea"]
    assert "leads out of the folder" in answers[3] and "does more than read" in answers[4]
    assert decisions[-1].text == "All is known."


# Models by name


def test_without_a_model_it_can_be_looked_at_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODEL, raising=False)
    agent = graph()
    assert set(agent.get_graph().nodes) >= {"plan", "act"}
    with pytest.raises(ConfigError, match="TTS_AGENT_MODEL"):
        agent.invoke({"messages": [HumanMessage("Hello?")]})
    with pytest.raises(ConfigError, match="there is no model 'magic'"):
        graph("magic")


async def test_the_environment_or_the_run_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("hello")
    server = ChatServer(max_req_input_len=8000)
    monkeypatch.setenv(MODEL, server.address.replace("http", "sglang"))
    monkeypatch.setenv("TTS_AGENT_FOLDER", str(tmp_path))
    agent = await agraph({})
    with pytest.warns(UserWarning, match="budgets are soft"):  # a token is a byte there
        result = await agent.ainvoke({"messages": [HumanMessage("What is '6*7'?")]})
    assert [message.text for message in result["messages"][2:]][0] == "42"
    assert result["messages"][-1].text.startswith(WORDS)
    other = await agraph({"configurable": {"model": "sglang://127.0.0.1:9"}})
    assert other is not agent and await agraph({}) is agent
    server.close()


def test_a_chat_model_of_ours_names_its_errors_through_the_search() -> None:
    agent = build_chat(ChatSGLang(base_url="127.0.0.1:9", max_retries=0)).compile()
    with pytest.raises(EngineUnavailable, match="127.0.0.1:9"):
        agent.invoke({"messages": [HumanMessage("Hello?")]})
