"""The exact token ids that a branch has computed."""

import base64
import zlib
from array import array
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
        return Prefix(self.ids + tuple(ids))

    def starts_with(self, other: "Prefix") -> bool:
        return self.ids[: len(other.ids)] == other.ids


def pack_ids(ids: Iterable[int]) -> str:
    """Token ids as text: base64 of zlib-compressed little-endian uint32 (short lists stay cheap to read and write)."""
    raw = array("I", ids)
    return base64.b64encode(zlib.compress(raw.tobytes(), 1)).decode("ascii") if raw else ""


def unpack_ids(text: str) -> tuple[int, ...]:
    """The ids packed by `pack_ids`. Raises `LogError` for anything else."""
    if not text:
        return ()
    raw = array("I")
    try:
        raw.frombytes(zlib.decompress(base64.b64decode(text, validate=True)))
    except (ValueError, zlib.error) as error:
        raise LogError(f"packed token ids {text[:40]!r} cannot be read: {error}") from error
    return tuple(raw)
