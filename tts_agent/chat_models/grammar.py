"""What an answer must be: which tools it may call, and the JSON that it has to be."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from langchain_core.utils.json_schema import dereference_refs

from tts_agent.dialects.calls import Call, whole_json
from tts_agent.dialects.turn import Turn
from tts_agent.errors import ConfigError

ToolChoice = Literal["auto", "none", "any"] | str
"""`auto`: the model may call tools. `none`: it is not told of them. `any`: it must call at least one. Another text is
the name of the one that it must call."""

FORMATS = ("text", "json_object", "json_schema")


def tool_name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def read_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """`choice` in any of the forms that LangChain's models take. Raises `ConfigError` for another, or another tool."""
    known = [tool_name(tool) for tool in tools]
    match choice:
        case None | "auto":
            return "auto"
        case "none" | False:
            return "none"
        case "any" | "required" | True:
            named = "any"
        case {"type": "function", "function": {"name": str(name)}} | {"type": "tool", "name": str(name)} | str(name):
            named = name
        case _:
            raise ConfigError(f"tool_choice={choice!r} is not known; use 'auto', 'none', 'any' or the name of a tool")
    if not known:
        raise ConfigError(f"tool_choice={choice!r} needs tools; bind_tools([...], tool_choice=...)")
    if named != "any" and named not in known:
        raise ConfigError(f"tool_choice={choice!r} names no tool; known: {', '.join(known)}")
    return named


def call_schema(tools: Sequence[Mapping[str, Any]], choice: ToolChoice, *, several: bool) -> str:
    """JSON schema of a list of tool calls: of the tool named by `choice`, or of any; one of them, or `several`.

    Where a tool's schema refers to itself, what lies below the second level is left open.
    """
    wanted = [tool for tool in tools if choice in ("any", tool_name(tool))]
    one = [_one_call(tool) for tool in wanted]
    items = one[0] if len(one) == 1 else {"anyOf": one}
    most = {} if several and choice == "any" else {"maxItems": 1}
    return json.dumps({"type": "array", "minItems": 1, **most, "items": items})


def _one_call(tool: Mapping[str, Any]) -> dict[str, Any]:
    parameters = tool["function"].get("parameters") or {"type": "object", "properties": {}}
    # References point from the root of a schema, which this one will not be any more.
    arguments = {key: value for key, value in dereference_refs(dict(parameters)).items() if key != "$defs"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool_name(tool)}, "arguments": {"type": "object", **arguments}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def read_calls(text: str) -> Turn:
    """The turn that says the list of tool calls in `text`, which may be broken off, or be what no checkpoint holds."""
    try:
        said = whole_json(text)
        return Turn("", calls=tuple(Call(str(call["name"]), dict(call["arguments"])) for call in said))
    except (ValueError, TypeError, KeyError) as error:
        return Turn(text.strip(), problem=f"the tool calls are not whole: {error}")


def read_answer(text: str) -> Turn:
    """The turn that says the JSON `text`, and has nothing else in it."""
    return Turn(text.strip())


def answer_schema(wanted: Any) -> str | None:
    """The JSON schema in a `response_format` as the OpenAI API writes it; None for plain text.

    Raises `ConfigError` for anything else.
    """
    match wanted:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return json.dumps({"type": "object"})
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return json.dumps(schema)
    raise ConfigError(
        f"response_format={wanted!r} is not known; its type is one of {', '.join(FORMATS)}, the last with "
        "{'json_schema': {'schema': {...}}}"
    )
