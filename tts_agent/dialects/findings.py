"""What a template does that a user should know, found once at the start."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Literal

from tts_agent.dialects.calls import CallFormat
from tts_agent.dialects.messages import ChatMessage
from tts_agent.dialects.template import HELLO, Template
from tts_agent.errors import ConfigError

Subject = Literal["history", "reasoning", "end", "tools", "date"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a template.

    `recomputed` is the number of tokens of a small conversation that would have to be computed again if the history
    were rendered anew where the template rewrites it.
    """

    subject: Subject
    text: str
    recomputed: int = 0


REASON, ANSWER = "Because of this", "Hello to you"

CALLED: ChatMessage = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "a1b2c3d4e", "function": {"name": "probe", "arguments": {"word": "x"}}}],
}
RESULT: ChatMessage = {"role": "tool", "content": "42", "tool_call_id": "a1b2c3d4e", "name": "probe"}


def examine(template: Template, *, end_ids: Sequence[int], form: CallFormat | None) -> tuple[Finding, ...]:
    """The findings about `template`, for an engine whose model ends with `end_ids`."""
    found = [*_ends(template, end_ids), *_history(template)]
    if template.thinking:
        found.append(Finding("reasoning", "the prompt opens the reasoning; the model only closes it"))
    if template.renderer.dated:
        found.append(Finding("date", "the template may write the date; today= says which"))
    if template.tools:
        found.append(Finding("tools", f"tool calls are written in the format {form!r}"))
    return tuple(found)


def _ends(template: Template, end_ids: Sequence[int]) -> list[Finding]:
    if template.end_id is None:
        return [Finding("end", "the template ends a turn with plain text; a turn ends with the model's own end tokens")]
    if template.end_id not in end_ids:
        name = template.tokens.decode([template.end_id])
        return [Finding("end", f"the model's settings do not name {name!r}, which ends a turn; it is added")]
    return []


def _history(template: Template) -> list[Finding]:
    """Where the template says of earlier messages something else than was said then."""
    found = []
    human: ChatMessage = {"role": "user", "content": "And now?"}
    answer: ChatMessage = {"role": "assistant", "content": ANSWER}
    for turn, news, when in ((answer, human, "a human writes again"), (CALLED, RESULT, "a tool has answered")):
        if turn is CALLED and not template.tools:
            continue
        reasoned = _reasoned(template, turn)
        if reasoned is None and template.thinks:
            found.append(Finding("reasoning", f"the template never shows reasoning to the model again once {when}"))
        try:
            finding = _rewritten(template, reasoned or turn, news, when)
        except ConfigError as error:
            finding = Finding("history", f"once {when}: {error}")
        if finding is not None:
            found.append(finding)
    return found


def _reasoned(template: Template, turn: ChatMessage) -> ChatMessage | None:
    """`turn` with reasoning in a form that the template writes; None if it writes none."""
    forms = (
        turn | {"reasoning_content": REASON},
        turn | {"content": f"<think>\n{REASON}\n</think>\n\n{turn['content']}"},
    )
    # The second form is only text to a template that knows no reasoning.
    written = (form for form in forms[: 2 if template.thinks else 1])
    return next((form for form in written if REASON in template.text([HELLO, form], generation=False)[0]), None)


def _rewritten(template: Template, turn: ChatMessage, news: ChatMessage, when: str) -> Finding | None:
    """Whether `turn`, or what stood before it, changes once `news` follow it."""
    asked, _ = template.text([HELLO], generation=True)
    then, _ = template.text([HELLO, turn], generation=False)
    later, mark = template.text([HELLO, turn, news], generation=True)
    told = then.removesuffix(template.after([], generation=False)[0])
    told = told if told.startswith(asked) else asked
    kept = len(commonprefix([told, later]))
    if kept == len(told):
        return None
    what = "drops reasoning" if REASON in then and REASON not in later else "rewrites what stood before"
    again = len(template.tokens.encode(later[kept:], mark=mark, after=True)) - len(template.extension((), [news]))
    whole = len(template.tokens.encode(later, mark=mark))
    return Finding(
        "history",
        f"the template {what} once {when}. Computed ids are kept as they are; where a history has to be rendered anew, "
        f"everything from there on is computed again: {max(again, 0)} of {whole} tokens of a small conversation",
        max(again, 0),
    )
