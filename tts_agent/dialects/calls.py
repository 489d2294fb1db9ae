"""Tool calls in the formats that models write them in."""

import json
import re
from collections.abc import Callable, Mapping
from math import isfinite
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
    calls: list[Call] = []
    try:
        return Spoken(_READERS[form](text, calls).strip(), tuple(calls))
    except _Unreadable as error:
        return Spoken(text.strip(), tuple(calls), str(error))


def find_format(rendered: str, name: str) -> CallFormat | None:
    """The format in which a template wrote a call of the tool `name`; None if it is none that can be read."""
    if re.search(rf'<tool_call>\s*\{{"name": ?"{name}", ?"arguments": ?\{{', rendered):
        return "hermes"
    if re.search(rf'\[TOOL_CALLS\]\s*(\[\s*\{{.*"name": ?"{name}"|{name}(\[ARGS\]|\{{))', rendered):
        return "mistral"
    if re.search(rf'\{{"name": ?"{name}", ?"parameters": ?\{{', rendered):
        return "llama"
    return None


# Each reader adds the calls to a list and returns the rest of the text. What stands in a string of JSON is no tag.

_CLOSE = "</tool_call>"


def _hermes(text: str, calls: list[Call]) -> str:
    content, tag, rest = text.partition("<tool_call>")
    while tag:
        value, rest = _json(rest)
        rest = rest.lstrip()
        if not rest.startswith(_CLOSE):
            raise _Unreadable(OPEN if _CLOSE.startswith(rest) else f"a tool call goes on with {rest[:40]!r}")
        calls.append(_call(value))
        said, tag, rest = rest.removeprefix(_CLOSE).partition("<tool_call>")
        content += said
    return content


_PYTHON = "<|python_tag|>"
_ARGUMENTS = ("arguments", "parameters")


def _llama(text: str, calls: list[Call]) -> str:
    rest = text.strip().removeprefix(_PYTHON).lstrip()
    # What is no call, such as code in braces, is an answer; what began as one is a broken call.
    begun = re.match(r'\{\s*"(name|type)"', rest)
    values = []
    while rest.startswith("{"):
        try:
            value, rest = _json(rest)
        except _Unreadable:
            if begun is None:
                break
            raise
        values.append(value)
        rest = rest.lstrip().lstrip(";").lstrip()
    if rest or not (values and _calls_a_tool(values[0])):
        return text
    calls += map(_call, values)
    return ""


def _calls_a_tool(data: Any) -> bool:
    """Whether an answer in JSON is a call: with arguments, or a name and nothing that calls do not have."""
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return False
    return any(key in data for key in _ARGUMENTS) or set(data) <= {"name", "type", "id"}


_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _mistral(text: str, calls: list[Call]) -> str:
    content, tag, rest = text.partition("[TOOL_CALLS]")
    while tag:
        if (named := _NAMED.match(rest)) is not None:
            args, rest = _json(rest[named.end() :])
            calls.append(_call({"name": named[1], "arguments": args}))
        elif rest.lstrip().startswith(("[", "{")):
            listed, rest = _json(rest)
            calls += map(_call, listed if isinstance(listed, list) else [listed])
        else:
            raise _Unreadable(OPEN)
        said, tag, rest = rest.partition("[TOOL_CALLS]")
        if said.strip():
            raise _Unreadable(f"a tool call goes on with {said.strip()[:40]!r}")
    return content


_READERS: Mapping[CallFormat, Callable[[str, list[Call]], str]] = {
    "hermes": _hermes,
    "llama": _llama,
    "mistral": _mistral,
}


def _call(data: Any) -> Call:
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise _Unreadable(f"a tool call names no tool: {json.dumps(data, ensure_ascii=False)[:80]}")
    args: Any = next((data[key] for key in _ARGUMENTS if key in data), {})
    if isinstance(args, str):
        args = _whole(args)
    if not isinstance(args, dict):
        raise _Unreadable(f"the arguments of {data['name']!r} are no JSON object: {args!r}")
    return Call(data["name"], args)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _integer(digits: str) -> int:
    # A checkpoint holds no more, and would fail with the run.
    if not -(2**63) <= (number := int(digits)) < 2**64:
        raise ValueError(f"{digits[:40]} has more than 64 bits")
    return number


def _real(digits: str) -> float:
    if not isfinite(number := float(digits)):
        raise ValueError(f"{digits[:40]} is out of range")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=_integer, parse_float=_real)


def whole_json(text: str) -> Any:
    """The JSON that `text` is.

    Raises `ValueError` for anything else, and for what no checkpoint holds: an integer of more than 64 bits, a number
    that is none, half a surrogate pair.
    """
    text = text.strip()
    value, end = _decode(text)
    if end < len(text):
        raise ValueError(f"it goes on with {text[end:].lstrip()[:40]!r}")
    return value


def _decode(text: str) -> tuple[Any, int]:
    """The JSON with which `text` begins, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return value, end


def _json(text: str) -> tuple[Any, str]:
    """The JSON with which `text` begins, and what follows it."""
    text = text.lstrip()
    try:
        value, end = _decode(text)
    except json.JSONDecodeError as error:
        raise _Unreadable(OPEN if _unfinished(text, error) else f"a tool call is not JSON: {error}") from error
    except ValueError as error:
        raise _Unreadable(f"a tool call is not JSON: {error}") from error
    return value, text[end:]


def _whole(text: str) -> Any:
    """The JSON that `text` is; `text` itself if it is none."""
    try:
        return whole_json(text)
    except ValueError:
        return text


def _unfinished(text: str, error: json.JSONDecodeError) -> bool:
    """Whether `text` could become JSON if it went on: it breaks off at its end, not before."""
    rest = text[error.pos :].rstrip()
    if error.msg.startswith("Unterminated string") or re.fullmatch("u[0-9a-fA-F]{0,4}|[.eE][-+]?", rest):
        return True
    return any(word.startswith(rest) for word in ("true", "false", "null", "-"))
