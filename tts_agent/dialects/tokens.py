"""Token ids of rendered text, in which only the template's own special tokens are special."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tts_agent.dialects.renderer import read_json
from tts_agent.errors import ConfigError, ModelError

_TAG = re.compile(r"[<\[].+[>\]]", re.DOTALL)
_MARKS = tuple(map(chr, range(0xE000, 0xF900)))  # Unicode's private use: no text means anything by them
_HALF = re.compile("[\ud800-\udfff]")  # halves of surrogate pairs, which no tokenizer takes


class Tokens:
    """The tokenizer of a folder, for text that a chat template rendered.

    Text of people and tools may contain what looks like a special token. `guarded` puts a mark into such places before
    the text goes through the template, and `encode` takes the marks out again so that these places stay plain text.
    Raises `ModelError` if the folder has no fast tokenizer.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "tokenizer.json"
        # NOTE: tokenizers reports a broken file as a bare Exception.
        if not isinstance(read_json(path).get("model"), dict):
            raise ModelError(f"{str(path)!r} describes no tokenizer; save the model's fast tokenizer there")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"{str(path)!r} cannot be read: {error}; copy the file again") from error
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {token.content: number for number, token in added.items() if token.special}
        """Ids of special tokens by text."""
        tags = {token.content for token in added.values() if token.special or _TAG.fullmatch(token.content)}
        self._in_own_text = _pattern(self.special)
        self._in_foreign_text = _pattern(tags)
        anchors = (token.content for token in added.values() if token.special and not (token.rstrip or token.lstrip))
        self._anchor = next(anchors, "")
        self._anchored = len(self._ids(self._anchor))

    def unused(self, values: Any) -> tuple[str, str]:
        """Two characters that occur nowhere in `values`, plain JSON. Raises `ConfigError` if there are not two."""
        used = set("".join(_strings(values)))
        free = [mark for mark in _MARKS if mark not in used][:2]
        if len(free) < 2:
            raise ConfigError("the messages use all of Unicode's private characters (U+E000 to U+F8FF); leave some out")
        return free[0], free[1]

    def guarded(self, value: Any, mark: str, *, foreign: bool) -> Any:
        """`value`, plain JSON, with `mark` in every text that would be read as a special token.

        `foreign` text, which the model's developers and ours do not write, is also kept from imitating the tags that
        the tokenizer knows as one token, such as `</tool_response>`.
        """
        if isinstance(value, str):
            if _HALF.search(value):
                value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            pattern = self._in_foreign_text if foreign else self._in_own_text
            while pattern is not None and pattern.search(value):
                value = pattern.sub(lambda found: found[0][0] + mark + found[0][1:], value)
            return value
        if isinstance(value, Mapping):
            # The keys that templates look for have nothing to be marked; those of arguments may.
            return dict([self.guarded(part, mark, foreign=foreign) for part in pair] for pair in value.items())
        if isinstance(value, Sequence):
            return [self.guarded(item, mark, foreign=foreign) for item in value]
        return value

    def encode(self, text: str, *, mark: str = "", after: bool = False) -> tuple[int, ...]:
        """Ids of `text` without its marks. `after` says that other tokens stand before it."""
        if not mark:
            return self._inside(text) if after else self._ids(text)
        escaped = "\\u" + format(ord(mark), "04x")  # as JSON with ASCII only writes the mark
        first, *rest = text.replace(escaped, mark).split(mark)
        ids = self._inside(first) if after else self._ids(first)
        return ids + tuple(token for piece in rest for token in self._inside(piece))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def vocabulary(self) -> dict[str, int]:
        """Ids by the tokenizer's own spelling of tokens, special ones included."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else ()

    def _after(self, text: str) -> tuple[int, ...]:
        # Some tokenizers put a space before the first word of a text; a token in front keeps them from it.
        return self._ids(self._anchor + text)[self._anchored :] if text else ()

    def _inside(self, text: str) -> tuple[int, ...]:
        """Ids of a text that goes on where another one ended in mid-word."""
        # Some put that space after every special token too, so that only another text in front helps.
        before, ids = self._after("\n"), self._after("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else self._after(text)


def _pattern(literals: Any) -> re.Pattern[str] | None:
    """Matches any of `literals` of two characters or more, the longest first."""
    found = sorted((text for text in literals if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in _strings(item)]
    if isinstance(value, Sequence):
        return [text for item in value for text in _strings(item)]
    return []
