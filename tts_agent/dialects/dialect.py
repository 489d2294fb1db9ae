"""The dialect of any model that comes with a chat template."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from tts_agent.dialect import Answer, Decided, Request
from tts_agent.dialects.calls import FORMATS, CallFormat, find_format
from tts_agent.dialects.findings import CALLED, RESULT, Finding, examine
from tts_agent.dialects.messages import ChatMessage, chat, check_news
from tts_agent.dialects.template import HELLO, Template
from tts_agent.dialects.turn import Turn
from tts_agent.engines.base import Engine, Sampling
from tts_agent.errors import ConfigError
from tts_agent.prefix import Prefix
from tts_agent.task import Task
from tts_agent.thought import Observation, Reading, Thought
from tts_agent.verifiers.labels import LabelVerifier

PROBE = "Größe: 42 <b>\n\tfin 🦊"
"""Text by which two tokenizers are told apart."""


class TemplateDialect:
    """Reads and writes messages by the chat template in a Hugging Face `folder`, the one whose model `engine` serves.

    A thought is a whole turn of the model: what it says and the `tools` it calls. With `thought_end`, texts such as
    a newline, a turn is made of several thoughts, at most `max_thoughts` of at most `thought_tokens` each: a thought
    ends with the token in which such a text ends, and that token stays whole. `sampling` says how turns are drawn; its
    `max_tokens` bounds one that is drawn at once, and where it stops, a turn ends. A turn that says nothing, or whose
    tool calls cannot be carried out, is invalid.

    What is new in a conversation is put after the ids that the run has computed; the history is not rendered again
    and the model's own ids are kept. Where others changed the history (a summary, an edited call) the conversation is
    rendered from scratch, once. What looks like a special token in messages stays text.

    `calls` is the format of tool calls, by default the one in which the template writes them. `today` and `variables`
    are for the template (see `Renderer`). `findings` tells what is peculiar about the template.
    Raises `ModelError` if the folder's template cannot be used, `ConfigError` for tools that it cannot tell of.
    """

    def __init__(
        self,
        engine: Engine,
        folder: str | Path,
        *,
        tools: Sequence[BaseTool | Callable[..., Any] | Mapping[str, Any]] = (),
        sampling: Sampling | None = None,
        thought_end: Sequence[str] = (),
        thought_tokens: int | None = None,
        max_thoughts: int | None = None,
        calls: CallFormat | None = None,
        today: datetime.date | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        if calls is not None and calls not in FORMATS:
            raise ConfigError(f"unknown format of tool calls {calls!r}; known: {', '.join(FORMATS)}")
        if not thought_end and (thought_tokens is not None or max_thoughts is not None):
            raise ConfigError("without thought_end a thought is a whole turn: set it, or leave out the other two")
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        self.engine = engine
        ends = engine.capabilities.end_ids
        self.template = Template(folder, tools=schemas, end_ids=ends, today=today, variables=variables)
        self._check_engine(folder)
        self._tools = tuple(str(schema["function"]["name"]) for schema in schemas)
        self._form = (calls or self._find_calls(folder)) if schemas else None
        own = () if self.template.end_id is None else (self.template.end_id,)
        drawn = sampling or Sampling(max_tokens=1024)
        self.end_ids = tuple(dict.fromkeys((*ends, *own, *drawn.stop_ids)))
        """Tokens that end a turn."""
        self._turn = replace(drawn, stop_ids=self.end_ids)
        self._thought = replace(
            self._turn,
            stop_texts=tuple(dict.fromkeys((*drawn.stop_texts, *thought_end))),
            max_tokens=self._turn.max_tokens if thought_tokens is None else thought_tokens,
        )
        self._whole = not thought_end
        self._max_thoughts = 1 if self._whole else max_thoughts
        self.findings: tuple[Finding, ...] = examine(self.template, end_ids=ends, form=self._form)

    # --- made once

    def _check_engine(self, folder: str | Path) -> None:
        if self.template.tokens.encode(PROBE) != self.engine.encode(PROBE):
            raise ConfigError(
                f"engine {self.engine.name!r} and the tokenizer in {str(folder)!r} make different ids of {PROBE!r}; "
                "pass the folder of the model that the engine serves"
            )

    def _find_calls(self, folder: str | Path) -> CallFormat:
        template, name = self.template, str(CALLED["tool_calls"][0]["function"]["name"])
        hello, _ = template.text([HELLO], generation=True)
        silent = template.renderer.render([HELLO], generation=True)
        if missing := [tool for tool in self._tools if tool not in hello or hello == silent]:
            raise ConfigError(
                f"the chat template in {str(folder)!r} does not tell the model of the tool {missing[0]!r}; use a model "
                "whose template knows tools, or describe them in a system message and pass none"
            )
        written = template.text([HELLO, CALLED], generation=False)
        form = find_format(written[0], name)
        if form is None:
            raise ConfigError(
                f"the chat template in {str(folder)!r} writes tool calls in a format that is not known; set calls= to "
                f"one of {', '.join(FORMATS)}, or pass no tools"
            )
        answered = template.after([RESULT], generation=True)  # raises if it takes no results
        template.check_special(written, answered)
        return form

    # --- the protocol

    def request(self, messages: Sequence[AnyMessage], last: Decided | None) -> Request | Answer:
        said, newest = chat(messages), check_news(messages)
        history = self.template.digest(said)
        if last is not None and newest >= 0 and self._is_told(said[:newest], messages[newest], last.thought):
            root = last.prefix.extend(self.template.extension(last.prefix.ids, said[newest + 1 :]))
        else:
            root = Prefix(self.template.prompt(said))
        answers = messages[newest + 1 :] if newest >= 0 else []
        observations = tuple(Observation(seen.text, False) for seen in answers if isinstance(seen, ToolMessage))
        return Request(self._task(root, history), observations)

    def _is_told(self, before: Sequence[ChatMessage], decision: AnyMessage, thought: Thought) -> bool:
        """Whether `decision` is what `thought` decided, after the very messages that it was made for."""
        action = thought.action
        if not isinstance(action, dict) or action.get("history") != self.template.digest(before):
            return False
        ours, theirs = chat([self.decide(thought), decision])
        return ours == theirs

    def _task(self, root: Prefix, history: str) -> Task:
        def read(parent: Thought | None, text: str) -> Reading:
            before = parent.action["said"] if parent is not None and parent.action else ""
            return self._read(before + text, parent.id if parent is not None else 0, history)

        return Task(
            root=root,
            thought=self._thought,
            answer=self._turn,
            read=read,
            end_ids=frozenset(self.end_ids),
            max_depth=self._max_thoughts,
            decision="thought" if self._whole else "answer",
        )

    def _read(self, said: str, parent: int, history: str) -> Reading:
        turn = Turn.read(said, form=self._form, thinking=self.template.thinking, tools=self._tools)
        action = {**turn.to_json(), "history": history, "said": said}
        problem = turn.problem or turn.silent
        ended = self._whole or any(text in said for text in self._turn.stop_texts)
        if problem and (ended or not (turn.broken_off or turn.silent)):
            return Reading("invalid", action, reason=problem)
        key = (turn.key if self._whole else "") or f"{parent}:{said}"
        # A turn that has to go on says why.
        return Reading("complete" if ended else "open", action, key, problem)

    def decide(self, thought: Thought) -> AIMessage:
        action = thought.action
        if not isinstance(action, dict) or "said" not in action:
            raise ConfigError(f"thought {thought.text!r} was not read by this dialect; search with its request's task")
        turn = Turn.from_json(action)
        reasoning = {"reasoning_content": turn.reasoning} if turn.reasoning else {}
        calls = [
            ToolCall(name=call.name, args=call.args, id=_call_id(action["history"], thought, place))
            for place, call in enumerate(turn.calls)
        ]
        metadata = {"model_name": self.engine.name, "finish_reason": thought.finish}
        return AIMessage(turn.content, tool_calls=calls, additional_kwargs=reasoning, response_metadata=metadata)

    def question(self, prefix: Prefix, text: str) -> tuple[int, ...]:
        """Ids that ask `text` of a branch; see `Template.question`."""
        return self.template.question(prefix.ids, text)

    def verifier(self, question: str, *, good: str, bad: str, name: str = "labels") -> LabelVerifier:
        """A verifier that asks `question` as a human would, after the turn that it judges.

        Raises `ConfigError` if the template makes the model reason before its answer.
        """
        if self.template.thinking:
            raise ConfigError(
                "the prompt of this template opens the model's reasoning, so its next token is no verdict; turn that "
                "off with variables=, such as {'enable_thinking': False}, or use another verifier"
            )
        # Branches of a search end without an end token, so each of them is asked in mid-turn.
        ids = self.template.question((), question)
        return LabelVerifier(self.engine, question=ids, good=good, bad=bad, name=name)


def _call_id(history: str, thought: Thought, place: int) -> str:
    """Nine letters and digits, as some templates demand; the same decision always has the same ids."""
    return sha256(f"{history} {thought.ids} {place}".encode()).hexdigest()[:9]
