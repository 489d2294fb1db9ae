"""Tool calls in the formats that models write them in."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

CallFormat = Literal["hermes", "llama", "mistral"]
"""`hermes`: JSON between <tool_call> tags (Hermes, Qwen 2 and 3, and others). `llama`: the turn is a JSON object with
`name` and `parameters` (Llama 3). `mistral`: a list, or names with arguments, after [TOOL_CALLS]."""

FORMATS: tuple[CallFormat, ...] = get_args(CallFormat)

OPEN = "a tool call is not closed"


class Call(NamedTuple):
    """A tool that the model wants to be run."""

    name: str
    args: dict[str, Any]


class Spoken(NamedTuple):
    """A text with its tool calls read out of it."""

    content: str
    calls: tuple[Call, ...] = ()
    problem: str = ""  # why the calls cannot be read; `OPEN` if the text may go on


class _Unreadable(ValueError):
    """A tool call does not say which tool is to be called, or with what."""


def read_calls(text: str, form: CallFormat) -> Spoken:
    """What `text` says and which tools it calls, in the format `form`."""
    try:
        return _READERS[form](text)
    except _Unreadable as error:
        return Spoken(text.strip(), problem=str(error))


def find_format(rendered: str, name: str) -> CallFormat | None:
    """The format in which a template wrote a call of the tool `name`; None if it is none that can be read."""
    if re.search(rf'<tool_call>\s*\{{"name": ?"{name}", ?"arguments": ?\{{', rendered):
        return "hermes"
    if re.search(rf'\[TOOL_CALLS\]\s*(\[\s*\{{.*"name": ?"{name}"|{name}(\[ARGS\]|\{{))', rendered):
        return "mistral"
    if re.search(rf'\{{"name": ?"{name}", ?"parameters": ?\{{', rendered):
        return "llama"
    return None


_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def _hermes(text: str) -> Spoken:
    calls = tuple(_call(_json(found[1])) for found in _TAGGED.finditer(text))
    content = _TAGGED.sub("", text)
    if "<tool_call>" in content:
        return Spoken(content.partition("<tool_call>")[0].strip(), calls, OPEN)
    return Spoken(content.strip(), calls)


_PYTHON = "<|python_tag|>"


def _llama(text: str) -> Spoken:
    body = text.strip().removeprefix(_PYTHON).lstrip()
    if not body.startswith("{"):
        return Spoken(text.strip())
    calls: list[Call] = []
    decoder = json.JSONDecoder()
    while body:
        try:
            data, end = decoder.raw_decode(body)
        except ValueError as error:
            # What is no call, such as code in braces, is an answer; what began as one is a broken call.
            if not re.match(r'\{\s*"(name|type)"', body):
                return Spoken(text.strip())
            return Spoken("", tuple(calls), OPEN if _unfinished(body) else f"a tool call is not JSON: {error}")
        if not calls and not (isinstance(data, dict) and isinstance(data.get("name"), str)):
            return Spoken(text.strip())
        calls.append(_call(data))
        body = body[end:].lstrip().lstrip(";").lstrip()
    return Spoken("", tuple(calls))


_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _mistral(text: str) -> Spoken:
    content, *parts = text.split("[TOOL_CALLS]")
    calls: list[Call] = []
    for part in parts:
        body = part.strip()
        if body.startswith("["):
            if _unfinished(body):
                return Spoken(content.strip(), tuple(calls), OPEN)
            calls += map(_call, _json(body))
            continue
        named = _NAMED.match(body)
        if named is None or _unfinished(body[named.end() :]):
            return Spoken(content.strip(), tuple(calls), OPEN)
        calls.append(_call({"name": named[1], "arguments": _json(body[named.end() :])}))
    return Spoken(content.strip(), tuple(calls))


_READERS: Mapping[CallFormat, Callable[[str], Spoken]] = {"hermes": _hermes, "llama": _llama, "mistral": _mistral}


def _call(data: Any) -> Call:
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise _Unreadable(f"a tool call names no tool: {json.dumps(data, ensure_ascii=False)[:80]}")
    args = data.get("arguments", data.get("parameters", {}))
    args = _json(args) if isinstance(args, str) else args
    if not isinstance(args, dict):
        raise _Unreadable(f"the arguments of {data['name']!r} are no JSON object: {args!r}")
    return Call(data["name"], args)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _Unreadable(f"a tool call is not JSON: {error}") from error


def _unfinished(text: str) -> bool:
    """Whether `text` could become JSON if it went on: it breaks off at its end, not before."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    return False
