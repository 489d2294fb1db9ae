"""Conversations become prefixes that are only ever extended, and thoughts become messages."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage

from tests import models
from tests.dialects.world import TokenEngine, add, llama3, look_up, mistral, silent, thinker
from tts_agent import Prefix, Sampling
from tts_agent.dialect import Decided, Request
from tts_agent.dialects import TemplateDialect
from tts_agent.errors import ConfigError
from tts_agent.thought import ROOT, Reading, Thought

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
ASK = HumanMessage("What is 1 + 2?")


def make(folder: Any = None, **options: Any) -> TemplateDialect:
    folder = folder or models.qwen()
    options.setdefault("tools", [add, look_up])
    return TemplateDialect(TokenEngine(folder), folder, **options)


def asked(dialect: TemplateDialect, messages: Sequence[AnyMessage], last: Decided | None = None) -> Request:
    request = dialect.request(messages, last)
    assert isinstance(request, Request)
    return request


def think(request: Request, dialect: TemplateDialect, text: str, *, number: int = 1) -> Thought:
    """The thought that says `text`, as the driver makes it: its ids are not those of any tokenizer's choice."""
    ids = tuple(token for letter in text for token in dialect.engine.encode(letter))
    reading: Reading = request.task.read(None, text)
    return Thought(number, ROOT, 0, ids, text, status=reading.status, action=reading.action, reason=reading.reason)


def decided(request: Request, thought: Thought) -> Decided:
    return Decided(request.task.root.extend(thought.ids), thought)


def results(decision: AIMessage, *texts: str) -> list[ToolMessage]:
    pairs = zip(decision.tool_calls, texts, strict=True)
    return [ToolMessage(text, tool_call_id=call["id"], name=call["name"]) for call, text in pairs]


def test_a_turn_becomes_a_message_with_its_calls_and_reasoning() -> None:
    dialect = make()
    thought = think(asked(dialect, [ASK]), dialect, f"<think>\nEasy.\n</think>\n\nI add.\n{CALL}\n{CALL}")
    message = dialect.decide(thought)
    assert message.content == "I add."
    assert message.additional_kwargs == {"reasoning_content": "Easy."}
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("add", {"a": 1, "b": 2})] * 2
    ids = [str(call["id"]) for call in message.tool_calls]
    assert len(set(ids)) == 2 and all(len(number) == 9 and number.isalnum() for number in ids)
    assert dialect.decide(thought).tool_calls == message.tool_calls


@pytest.mark.parametrize("folder", [models.qwen, models.forgetful_qwen, llama3, mistral])
def test_a_result_is_put_after_the_ids_that_were_sampled(folder: Any) -> None:
    dialect = make(folder())
    text = {
        "hermes": f"<think>\nEasy.\n</think>\n\n{CALL}",
        "llama": '{"name": "add", "parameters": {"a": 1, "b": 2}}',
        "mistral": '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}}]',
    }[str(dialect._form)]
    request = asked(dialect, [ASK])
    last = decided(request, think(request, dialect, text))
    decision = dialect.decide(last.thought)
    history = [ASK, decision, *results(decision, "3")]
    after = asked(dialect, history, last)
    assert after.task.root.starts_with(last.prefix)
    assert [(seen.text, seen.predicted) for seen in after.observations] == [("3", False)]
    assert not after.continues(last)
    # What is appended is what the template writes there, and it can go on like this.
    written = dialect.engine.decode(after.task.root.ids)
    if folder is not mistral:  # its template moves the order of keys and a space; the appended part is the same
        assert written == dialect.template.text(dialect_chat(history), generation=True)[0]
    again = decided(after, think(after, dialect, "It is 3."))
    follow = [*history, dialect.decide(again.thought), HumanMessage("And twice that?")]
    assert asked(dialect, follow, again).task.root.starts_with(again.prefix)


def dialect_chat(messages: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    from tts_agent.dialects.messages import chat

    return chat(messages)


def test_several_results_follow_each_other_as_the_template_groups_them() -> None:
    dialect = make()
    request = asked(dialect, [ASK])
    last = decided(request, think(request, dialect, f"{CALL}\n{CALL}"))
    decision = dialect.decide(last.thought)
    root = asked(dialect, [ASK, decision, *results(decision, "3", "4")], last).task.root
    added = dialect.engine.decode(root.ids[len(last.prefix) :])
    assert added == (
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def summarised(history: list[AnyMessage]) -> list[AnyMessage]:
    return [SystemMessage("Earlier they added numbers."), *history[1:]]


def edited(history: list[AnyMessage]) -> list[AnyMessage]:
    decision = history[1]
    assert isinstance(decision, AIMessage)
    call = {**decision.tool_calls[0], "args": {"a": 5, "b": 2}}
    return [history[0], decision.model_copy(update={"tool_calls": [call]}), *history[2:]]


def corrected(history: list[AnyMessage]) -> list[AnyMessage]:
    return [HumanMessage("What is 5 + 2?"), *history[1:]]


@pytest.mark.parametrize("change", [summarised, edited, corrected])
def test_a_history_that_others_changed_is_rendered_anew(change: Any) -> None:
    dialect = make()
    request = asked(dialect, [ASK])
    last = decided(request, think(request, dialect, CALL))
    decision = dialect.decide(last.thought)
    changed = change([ASK, decision, *results(decision, "3")])
    root = asked(dialect, changed, last).task.root
    assert not root.starts_with(last.prefix)
    assert root == asked(dialect, changed).task.root


def test_other_tools_make_another_conversation() -> None:
    dialect = make()
    request = asked(dialect, [ASK])
    last = decided(request, think(request, dialect, CALL))
    decision = dialect.decide(last.thought)
    history = [ASK, decision, *results(decision, "3")]
    fewer = make(tools=[add])
    assert asked(fewer, history, last).task.root == asked(fewer, history).task.root


def test_only_the_last_messages_are_rendered_in_an_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    dialect = make()
    history: list[AnyMessage] = [SystemMessage("A secret."), ASK]
    request = asked(dialect, history)
    last = decided(request, think(request, dialect, CALL))
    decision = dialect.decide(last.thought)
    seen: list[str] = []
    render = dialect.template.renderer.render

    def listening(chat: Any, **options: Any) -> str:
        seen.append(json.dumps(list(chat)))
        return render(chat, **options)

    monkeypatch.setattr(dialect.template.renderer, "render", listening)
    asked(dialect, [*history, decision, *results(decision, "3")], last)
    assert len(seen) == 1
    assert "secret" not in seen[0] and "What is" not in seen[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>\nadd(1, 2)\n</tool_call>", "not JSON"),
        ('<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>', "no tool 'sub'; known: add, look_up"),
        ("<tool_call>\n", "is not closed"),
        ("", "says nothing"),
        ("<think>\nHm, let me", "reasons and says nothing"),
        ("<think>\nHm.\n</think>\n\n", "reasons and says nothing"),
    ],
)
def test_a_turn_that_cannot_be_carried_out_is_an_invalid_thought(text: str, reason: str) -> None:
    reading = asked(make(), [ASK]).task.read(None, text)
    assert reading.status == "invalid"
    assert reason in reading.reason


def test_turns_that_call_the_same_are_the_same_decision() -> None:
    task = asked(make(), [ASK]).task
    other = CALL.replace('{"a": 1, "b": 2}', '{"b": 2,  "a": 1}')
    assert task.read(None, CALL).key == task.read(None, "Let me see.\n" + other).key
    assert task.read(None, "3").key != task.read(None, "4").key


def test_thoughts_and_turns_are_drawn_alike_and_end_differently() -> None:
    dialect = make(thought_end=["\n"], thought_tokens=8, sampling=Sampling(max_tokens=64, temperature=0.5))
    task = asked(dialect, [ASK]).task
    assert task.answer is not None
    assert task.thought == Sampling(8, temperature=0.5, stop_ids=dialect.end_ids, stop_texts=("\n",))
    assert task.answer == Sampling(64, temperature=0.5, stop_ids=dialect.end_ids)


def test_what_ends_a_turn_by_the_callers_wish_ends_it() -> None:
    wish = Sampling(max_tokens=64, stop_ids=(5,), stop_texts=("Over.",))
    whole, parts = make(sampling=wish), make(sampling=wish, thought_end=["\n"])
    task = asked(whole, [ASK]).task
    assert task.thought == task.answer == Sampling(64, stop_ids=(*make().end_ids, 5), stop_texts=("Over.",))
    assert 5 in task.end_ids
    task = asked(parts, [ASK]).task
    assert task.thought.stop_texts == ("Over.", "\n") and task.answer is not None
    assert task.answer.stop_texts == ("Over.",)
    said = [task.read(None, text).status for text in ("First.\n", "It is 3. Over.", "<tool_call>\n Over.")]
    assert said == ["open", "complete", "invalid"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["I add.\n", "<tool_call>\n"], "is not closed"),
        (["I add.\n", '<tool_call>\n{"name": "add", "argum'], "is not closed"),
        (["<think>\n", "Easy.\n"], "reasons and says nothing"),
        ([CALL.replace("add", "sub") + "\n"], "no tool 'sub'"),
    ],
)
def test_a_turn_that_has_to_go_on_says_why(lines: list[str], reason: str) -> None:
    dialect = make(thought_end=["\n"])
    task, last = asked(dialect, [ASK]).task, None
    for line in lines:
        reading = task.read(last, line)
        last = Thought(1, ROOT, 0, (1,), line, status=reading.status, action=reading.action, reason=reading.reason)
    assert last is not None and reason in last.reason
    assert not task.read(None, "It is 3.\n").reason


def test_thoughts_add_up_to_a_turn() -> None:
    dialect = make(thought_end=["\n"], thought_tokens=8)
    request = asked(dialect, [ASK])
    parts = ["<think>\n", "Easy.\n", "</think>\n", "\n", "<tool_call>\n", CALL.split("\n")[1] + "\n", "</tool_call>"]
    parent: Thought | None = None
    for place, part in enumerate(parts, 1):
        reading = request.task.read(parent, part)
        assert reading.status == "open", part
        parent = Thought(place, place - 1, place, (place,), part, action=reading.action)
    assert parent is not None
    message = dialect.decide(parent)
    assert message.additional_kwargs == {"reasoning_content": "Easy."}
    assert message.tool_calls[0]["args"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "there are no messages"),
        ([ASK, AIMessage("3")], "nothing to answer"),
        ([ASK, AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "x1"}]), ASK], r"\['x1'\] have no result"),
        ([ASK, RemoveMessage(id="1")], "message 1 is of type 'remove'"),
        (
            [HumanMessage([{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "data:"}}])],
            r"message 0 \(human\) has a block of type 'image_url'; this dialect reads text only",
        ),
        (
            [ASK, AIMessage("x"), ToolMessage([{"type": "audio", "base64": ""}], tool_call_id="1")],
            "message 2 .tool. has",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(messages: list[AnyMessage], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make().request(messages, None)


def test_text_in_blocks_is_text() -> None:
    dialect = make()
    blocks = HumanMessage([{"type": "text", "text": "What is "}, "1 + 2?"])
    assert asked(dialect, [blocks]).task.root == asked(dialect, [ASK]).task.root
    reasoned = AIMessage([{"type": "reasoning", "reasoning": "x"}, {"type": "text", "text": "3"}])
    plain = [ASK, AIMessage("3"), HumanMessage("Sure?")]
    assert asked(dialect, [ASK, reasoned, plain[2]]).task.root == asked(dialect, plain).task.root


QUESTION = "<|im_start|>user\nRight?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("in the mid", "<|im_end|>\n" + QUESTION),
        ("the turn ended<|im_end|>", "\n" + QUESTION),
        ("the turn was closed<|im_end|>\n", QUESTION),
        ("another end token<|endoftext|>", "\n" + QUESTION),
    ],
)
def test_a_question_closes_the_turn_once(end: str, expected: str) -> None:
    folder = models.qwen()
    ends = TokenEngine(folder).tokens.special
    engine = TokenEngine(folder, silent, end_ids=(ends["<|endoftext|>"],))
    dialect = TemplateDialect(engine, folder)
    prefix = Prefix(dialect.template.prompt([{"role": "user", "content": "x"}])).extend(engine.encode(end))
    assert engine.decode(dialect.question(prefix, "Right?")) == expected


def test_a_prompt_that_opens_reasoning_is_no_place_for_a_verdict() -> None:
    with pytest.raises(ConfigError, match="no verdict; turn that off"):
        make(thinker(), tools=[]).verifier("Right?", good="yes", bad="no")


def test_a_reasoning_that_the_prompt_opened_is_read() -> None:
    dialect = make(thinker(), tools=[])
    thought = think(asked(dialect, [ASK]), dialect, "Easy.\n</think>\n\nIt is 3.")
    message = dialect.decide(thought)
    assert (message.content, message.additional_kwargs["reasoning_content"]) == ("It is 3.", "Easy.")


@pytest.mark.parametrize(
    ("folder", "options", "reason"),
    [
        (models.qwen, {"calls": "xml"}, "unknown format of tool calls 'xml'; known: hermes, llama, mistral"),
        (models.qwen, {"thought_end": [""]}, "has an empty text"),
        (models.qwen, {"thought_tokens": 5}, "without thought_end a thought is a whole turn"),
        (models.llama, {}, "does not tell the model of the tool 'add'"),
    ],
)
def test_settings_that_cannot_work_are_refused(folder: Any, options: dict[str, Any], reason: str) -> None:
    engine = TokenEngine(folder(), end_ids=(2,))
    with pytest.raises(ConfigError, match=reason):
        TemplateDialect(engine, folder(), **({"tools": [add]} | options))


def test_the_folder_must_be_that_of_the_engine() -> None:
    with pytest.raises(ConfigError, match="make different ids"):
        TemplateDialect(TokenEngine(models.llama(), end_ids=(2,)), models.qwen())


def test_a_thought_of_another_task_is_no_decision() -> None:
    with pytest.raises(ConfigError, match="was not read by this dialect"):
        make().decide(Thought(1, ROOT, 0, (1,), "x"))
