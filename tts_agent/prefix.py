"""The exact token ids that a branch has computed."""

import zlib
from array import array
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from dataclasses import dataclass

from tts_agent.errors import LogError


@dataclass(frozen=True, slots=True)
class Prefix:
    """Token ids of a branch, from the first token of the prompt to the branch's end.

    A prefix is only ever extended, never edited, so a child's prefix starts with its parent's, token for token,
    and an engine with a radix cache computes the common part once. Ids that were generated are kept as ids and
    are never made from text again: tokenizing a decoded text may give other ids.
    """

    ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def extend(self, ids: Iterable[int]) -> "Prefix":
        """This prefix followed by `ids`."""
        more = tuple(ids)
        return Prefix(self.ids + more) if more else self

    def starts_with(self, other: "Prefix") -> bool:
        return self.ids[: len(other.ids)] == other.ids


_SHORT = 64
"""Lists of fewer ids are not compressed: zlib would take more time than it saves bytes."""


def pack_ids(ids: Iterable[int]) -> str:
    """Token ids as text: base64 of uint32, little-endian.

    Many ids (it then begins with `p`) are compressed: their high halves, of which a vocabulary has few, by zlib, and
    after them their low halves, by zlib where that makes them smaller.
    """
    raw = array("I", ids)
    data = raw.tobytes()
    if len(raw) < _SHORT:
        return "." + b2a_base64(data, newline=False).decode("ascii") if data else ""
    low, high = data[0::4] + data[1::4], zlib.compress(data[2::4] + data[3::4], 1)
    return "p" + b2a_base64(high + min(low, zlib.compress(low, 1), key=len), newline=False).decode("ascii")


def unpack_ids(text: str) -> tuple[int, ...]:
    """The ids packed by `pack_ids`. Raises `LogError` for anything else."""
    if not text:
        return ()
    raw = array("I")
    try:
        if text[0] not in ".p":
            raise ValueError("it begins with neither '.' nor 'p'")
        data = a2b_base64(text[1:], strict_mode=True)
        raw.frombytes(data if text[0] == "." else _joined(data))
    except (ValueError, zlib.error) as error:
        raise LogError(f"packed token ids {text[:40]!r} cannot be read: {error}") from error
    return tuple(raw)


def _joined(packed: bytes) -> bytes:
    """The ids of their packed halves. Raises `ValueError` for what is cut."""
    reader = zlib.decompressobj()
    high, low = reader.decompress(packed), reader.unused_data
    size = len(high) // 2
    if len(low) != 2 * size:
        low = zlib.decompress(low)
    if not reader.eof or len(high) != 2 * size or len(low) != 2 * size:
        raise ValueError("a part of it is missing")
    data = bytearray(4 * size)
    data[0::4], data[1::4], data[2::4], data[3::4] = low[:size], low[size:], high[:size], high[size:]
    return bytes(data)
