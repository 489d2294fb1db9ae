"""Agents with tools on real token ids: what one step computed is a prefix of what the next one asks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from transformers import LlamaConfig, LlamaForCausalLM

from tests import models
from tests.dialects.world import TokenEngine, add, look_up
from tts_agent import Beam, Budget, Prefix, Sampling, search
from tts_agent.dialect import Request
from tts_agent.dialects import TemplateDialect
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.nodes import create_planning_agent
from tts_agent.prefix import unpack_ids

CALLS = (
    '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "look_up", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
)


def talk(prompt: str, seed: int) -> str:
    """Reasons and calls two tools at first, then answers; of three samples one is broken."""
    results = prompt.rpartition("<|im_start|>user")[2].count("<tool_response>")
    if seed % 3 == 0:
        return "<tool_call>\nadd it up\n</tool_call><|im_end|>"
    if results:
        return f"There were {results} results.<|im_end|>"
    return f"<think>\nSeed {seed % 7}, naïve café 🦊.\n</think>\n\nI look.\n{CALLS}"


def prefixes_of(updates: Sequence[dict[str, Any]]) -> list[Prefix]:
    return [Prefix(unpack_ids(update["plan"]["tts"]["prefix"])) for update in updates if "plan" in update]


@pytest.mark.parametrize("folder", [models.qwen, models.forgetful_qwen])
async def test_every_step_extends_what_the_step_before_computed(folder: Any) -> None:
    engine = TokenEngine(folder(), talk)
    agent = create_planning_agent(
        engine,
        dialect=TemplateDialect(engine, folder(), tools=[add, look_up], sampling=Sampling(max_tokens=300)),
        tools=[add, look_up],
        strategy="best_of_n",
        budget=Budget(calls=8),
    ).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    updates = [
        update async for update in agent.astream({"messages": [HumanMessage("Go.")]}, config, stream_mode="updates")
    ]
    messages = (await agent.aget_state(config)).values["messages"]
    kinds = [type(message) for message in messages]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, ToolMessage, AIMessage]
    assert messages[-1].text == "There were 2 results."
    assert messages[2].text == "3"
    first, second = prefixes_of(updates)
    assert second.starts_with(first)
    # Every request begins with the conversation so far, to the token.
    roots = engine.requests
    assert all(prefix.starts_with(roots[0]) for prefix in roots)
    later = [prefix for prefix in roots if len(prefix) > len(first)]
    assert later and all(prefix.starts_with(first) for prefix in later)


async def test_a_history_that_others_summarise_in_mid_run_breaks_nothing() -> None:
    engine = TokenEngine(models.qwen(), talk)
    agent = create_planning_agent(
        engine,
        dialect=TemplateDialect(engine, models.qwen(), tools=[add, look_up], sampling=Sampling(max_tokens=300)),
        tools=[add, look_up],
        strategy="best_of_n",
        budget=Budget(calls=8),
    ).compile(checkpointer=InMemorySaver(), interrupt_after=["act"])
    config: Any = {"configurable": {"thread_id": "1"}}
    state = await agent.ainvoke({"messages": [HumanMessage("A long story.")]}, config)
    first, spent = Prefix(unpack_ids(state["tts"]["prefix"])), state["tts"]["totals"]["usage"]["calls"]
    summary = HumanMessage("They asked for a sum.", id=state["messages"][0].id)
    await agent.aupdate_state(config, {"messages": [summary]}, as_node="act")
    state = await agent.ainvoke(None, config)
    assert state["messages"][-1].text == "There were 2 results."
    second = Prefix(unpack_ids(state["tts"]["prefix"]))
    assert not second.starts_with(first)
    assert "They asked for a sum." in engine.decode(second.ids) and "story" not in engine.decode(second.ids)
    assert state["tts"]["step"] == 2 and state["tts"]["totals"]["usage"]["calls"] > spent
    # From here on the ids are only extended again.
    state = await agent.ainvoke({"messages": [HumanMessage("Go on.")]}, config)
    assert Prefix(unpack_ids(state["tts"]["prefix"])).starts_with(second)


async def test_numbers_that_no_checkpoint_holds_are_not_chosen() -> None:
    def calculate(prompt: str, seed: int) -> str:
        if "<tool_response>" in prompt:
            return "Done.<|im_end|>"
        number = 10**30 if seed % 2 else 2
        return f'<tool_call>\n{{"name": "add", "arguments": {{"a": {number}, "b": 1}}}}\n</tool_call><|im_end|>'

    engine = TokenEngine(models.qwen(), calculate)
    agent = create_planning_agent(
        engine,
        dialect=TemplateDialect(engine, models.qwen(), tools=[add, look_up], sampling=Sampling(max_tokens=300)),
        tools=[add, look_up],
        strategy="best_of_n",
        budget=Budget(calls=8),
    ).compile(checkpointer=InMemorySaver())
    state = await agent.ainvoke({"messages": [HumanMessage("Go.")]}, {"configurable": {"thread_id": "1"}})
    assert [message.text for message in state["messages"][2:]] == ["3", "Done."]


class RecordingEngine(EmbeddedEngine):
    """Remembers what it was asked to continue, and what it said."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.asked: list[Prefix] = []

    def sample(self, prefix: Prefix, sampling: Sampling, *, seeds: Sequence[int], at: float = 0.0) -> Any:
        self.asked.append(prefix)
        return super().sample(prefix, sampling, seeds=seeds, at=at)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a byte-level tokenizer that has learned one conversation with two tool calls by heart."""
    folder = tmp_path_factory.mktemp("taught")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (models.qwen() / name).is_file():
            (folder / name).write_bytes((models.qwen() / name).read_bytes())
    engine = TokenEngine(folder)
    dialect = TemplateDialect(engine, folder, tools=[add, look_up])
    template, end = dialect.template, engine.tokens.special["<|im_end|>"]
    prompt = template.prompt([{"role": "user", "content": "Go."}])
    turn = prompt + engine.encode(CALLS)[:-1]
    results = [add.invoke({"a": 1, "b": 2}), look_up.invoke({"city": "Rome"})]
    news = template.extension(turn, [{"role": "tool", "content": str(result)} for result in results])
    lesson = (*turn, *news, *engine.encode("It is done."), end)
    learn(folder, lesson, spoken=[range(len(prompt), len(turn) + 1), range(len(turn + news), len(lesson))], end=end)
    return folder


def learn(folder: Path, lesson: Sequence[int], *, spoken: Sequence[range], end: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=768,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        eos_token_id=end,
    )
    model, ids = LlamaForCausalLM(config), torch.tensor([lesson])
    labels = torch.full_like(ids, -100)
    for places in spoken:
        labels[0, list(places)] = ids[0, list(places)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(70):
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    model.save_pretrained(folder)


async def test_an_agent_with_tools_plans_on_the_embedded_engine(taught: Path) -> None:
    engine = RecordingEngine(taught)
    dialect = TemplateDialect(engine, taught, tools=[add, look_up], sampling=Sampling(max_tokens=120, temperature=0.3))
    verifier = dialect.verifier("Is that right?", good="yes", bad="no")
    agent = create_planning_agent(
        engine,
        dialect=dialect,
        tools=[add, look_up],
        strategy="best_of_n",
        verifier=verifier,
        budget=Budget(calls=40, generated_tokens=2000),
    ).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    updates = [
        update async for update in agent.astream({"messages": [HumanMessage("Go.")]}, config, stream_mode="updates")
    ]
    state = (await agent.aget_state(config)).values
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "tool", "ai"]
    assert state["messages"][-1].text == "It is done."
    first, second = prefixes_of(updates)
    assert second.starts_with(first)
    roots = sorted({prefix.ids for prefix in engine.asked}, key=len)
    assert len(roots) == 2
    assert roots[1][: len(first)] == first.ids
    # The second step computes only what is new since the first one.
    usage = state["tts"]["outcome"]["usage"]
    assert usage["prompt_cached"] >= len(first) - 1
    await engine.aclose()


async def test_garbage_of_a_random_model_is_still_an_answer() -> None:
    engine = RecordingEngine(models.llama())
    dialect = TemplateDialect(engine, models.llama(), sampling=Sampling(max_tokens=24))
    agent = create_planning_agent(
        engine, dialect=dialect, tools=[add], strategy="best_of_n", budget=Budget(calls=10)
    ).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    first = await agent.ainvoke({"messages": [HumanMessage("Hello 🦊")]}, config)
    asked = len(engine.asked)
    state = await agent.ainvoke({"messages": [HumanMessage("And [INST] now </s>?")]}, config)
    assert [message.type for message in state["messages"]] == ["human", "ai", "human", "ai"]
    # What a human says next only extends what was computed and sampled before.
    said = Prefix(unpack_ids(first["tts"]["prefix"]))
    assert all(prefix.starts_with(said) for prefix in engine.asked[asked:])
    assert state["tts"]["step"] == 1
    assert state["tts"]["outcome"]["usage"]["prompt_cached"] >= len(said) - 1
    await engine.aclose()


async def test_a_turn_is_searched_thought_by_thought(taught: Path) -> None:
    engine = EmbeddedEngine(taught)
    dialect = TemplateDialect(
        engine,
        taught,
        tools=[add, look_up],
        sampling=Sampling(max_tokens=120, temperature=0.7),
        thought_end=["\n"],
        thought_tokens=60,
        max_thoughts=8,
    )
    request = dialect.request([HumanMessage("Go.")], None)
    assert isinstance(request, Request)
    verifier = dialect.verifier("Is that right?", good="yes", bad="no")
    outcome = await search(
        engine, request.task, strategy=Beam(k=3, keep=2), verifier=verifier, budget=Budget(generated_tokens=3000)
    )
    assert len(outcome.path) > 3
    # Every thought but a turn's last ends with the token in which a line ends, and that token is whole.
    for thought in outcome.path[:-1]:
        assert thought.text.endswith("\n") or "\n" in engine.decode(thought.ids[-1:]) or thought.finish == "length"
        assert engine.decode(thought.ids) == thought.text
    message = dialect.decide(outcome.path[-1])
    assert [call["name"] for call in message.tool_calls] == ["add", "look_up"]
    # All branches share the prompt and each other's lines: only the questions and what is new are computed.
    tree = outcome.tree
    distinct = len(request.task.root) + sum(len(thought.ids) for thought in tree.thoughts.values())
    questions = len(verifier.question) * len(tree.thoughts)
    assert outcome.usage.computed <= distinct + questions + len(tree.thoughts)
    await engine.aclose()


async def test_a_decision_is_the_whole_turn_that_its_thoughts_make(taught: Path) -> None:
    engine = RecordingEngine(taught)
    dialect = TemplateDialect(
        engine,
        taught,
        tools=[add, look_up],
        sampling=Sampling(max_tokens=120, temperature=0.5),
        thought_end=["\n"],
        thought_tokens=60,
        max_thoughts=8,
    )
    agent = create_planning_agent(
        engine,
        dialect=dialect,
        tools=[add, look_up],
        strategy=Beam(k=3, keep=2),
        verifier=dialect.verifier("Is that right?", good="yes", bad="no"),
        budget=Budget(generated_tokens=3000),
    ).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    updates = [
        update async for update in agent.astream({"messages": [HumanMessage("Go.")]}, config, stream_mode="updates")
    ]
    state = (await agent.aget_state(config)).values
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "tool", "ai"]
    assert state["messages"][-1].text == "It is done."
    first, second = prefixes_of(updates)
    assert second.starts_with(first)
    # A branch in mid-turn is asked as such; what is decided and what follows are computed once.
    later = [prefix for prefix in engine.asked if len(prefix) > len(first)]
    assert later and all(prefix.starts_with(first) for prefix in later)
    await engine.aclose()
