"""Messages as ids, for engines that know no tokens.

Three bytes of UTF-8 are one id, so that lengths come close to a tokenizer's and a prefix that is extended stays what it
was. A message is a record: an id that says how many follow, and its JSON. Text outside records is what a human says.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    messages_from_dict,
)

from tts_agent.errors import ConfigError

END = 2**32 - 1
"""The id that stands after a message of the model."""

_BYTES = 3
_LENGTH = 2**24  # smaller ids are lengths of records, larger ones bytes with their number in the highest byte

_KEPT = ("content", "tool_calls", "invalid_tool_calls", "tool_call_id", "status", "name", "role", "additional_kwargs")
_KEPT_METADATA = ("model_provider", "output_version")
"""What a model may be told of a message again. Ids and accounts change from run to run and are left out."""


def encode_text(text: str) -> tuple[int, ...]:
    """Ids of plain text."""
    raw = text.encode("utf-8", "surrogatepass")
    pieces = (raw[place : place + _BYTES] for place in range(0, len(raw), _BYTES))
    return tuple(len(piece) << 24 | int.from_bytes(piece, "big") for piece in pieces)


def encode_message(message: BaseMessage) -> tuple[int, ...]:
    """Ids of one message, as a record. Raises `ConfigError` for what is no message to a model."""
    if isinstance(message, RemoveMessage):
        raise ConfigError("a message of type 'remove' says nothing to a model; apply it to the state (add_messages)")
    data = {key: value for key in _KEPT if (value := getattr(message, key, None)) not in (None, [], {})}
    metadata = {key: value for key, value in message.response_metadata.items() if key in _KEPT_METADATA}
    record = {"type": message.type, "data": data | ({"response_metadata": metadata} if metadata else {})}
    try:
        ids = encode_text(json.dumps(record, ensure_ascii=False, separators=(",", ":"), sort_keys=True))
    except TypeError as error:
        raise ConfigError(f"a message of type {message.type!r} cannot be written as JSON: {error}") from error
    if len(ids) >= _LENGTH:
        raise ConfigError(
            f"a message of type {message.type!r} has {len(ids)} ids, more than {_LENGTH}; make it shorter"
        )
    return (len(ids), *ids)


def decode_messages(ids: Sequence[int]) -> list[AnyMessage]:
    """The messages that `ids` stand for. Raises `ConfigError` where they stand for none."""
    return [HumanMessage(part) if isinstance(part, str) else _message(part) for part in _parts(ids)]


def decode_text(ids: Sequence[int]) -> str:
    """The messages of `ids` for people to read; the model's own words and tool calls without a heading."""
    return "".join(part if isinstance(part, str) else _shown(_message(part)) for part in _parts(ids))


def _parts(ids: Sequence[int]) -> Iterator[str | dict[str, Any]]:
    """Plain texts and records, in order."""
    place, text = 0, b""
    while place < len(ids):
        token = ids[place]
        if token == END or token < _LENGTH:
            if text:
                yield text.decode("utf-8", "replace")
            text = b""
        if token < _LENGTH:
            yield _record(ids[place + 1 : place + 1 + token], token)
            place += token
        elif token != END:
            text += _bytes(token)
        place += 1
    if text:
        yield text.decode("utf-8", "replace")


def _record(ids: Sequence[int], size: int) -> dict[str, Any]:
    try:
        data = json.loads(b"".join(map(_bytes, ids)).decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise ConfigError(f"a message of {size} ids is cut or broken ({error}); prefixes are only extended") from error
    assert isinstance(data, dict)
    return data


def _bytes(token: int) -> bytes:
    size = token >> 24
    if not 1 <= size <= _BYTES:
        raise ConfigError(f"id {token!r} stands for no text; a chat engine serves ids of its own only")
    return (token & (_LENGTH - 1)).to_bytes(_BYTES, "big")[-size:]


def _message(record: dict[str, Any]) -> AnyMessage:
    message: AnyMessage = messages_from_dict([record])[0]  # type: ignore[assignment]
    return message


def _shown(message: AnyMessage) -> str:
    if not isinstance(message, AIMessage):
        return f"[{message.type}] {message.text}\n"
    calls = [json.dumps({"name": c["name"], "arguments": c["args"]}, ensure_ascii=False) for c in message.tool_calls]
    calls += [f'{{"name": "{call["name"]}", "arguments": {call["args"]}}}' for call in message.invalid_tool_calls]
    tagged = "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in calls)
    # What only talks of the tag is no call: a word joiner, which nobody sees, tells the two apart.
    return (message.text.replace("<tool_call>", "<tool_call\u2060>") + tagged).lstrip("\n")
