"""The grammar of a conversation: how turns begin, end and follow each other, as ids."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tts_agent.dialects.messages import ChatMessage
from tts_agent.dialects.renderer import Renderer
from tts_agent.dialects.tokens import Tokens
from tts_agent.dialects.turn import THINKING
from tts_agent.errors import ConfigError, ModelError

HELLO: ChatMessage = {"role": "user", "content": "Hello"}
"""Stands for the history that an extension does not render."""

_SPECIAL = re.compile(r"""<\|[^<>|\s\\"]{1,40}\|>|<｜[^<>\s\\"]{1,40}｜>|<(?:start|end)_of_\w+>""")
"""What is written like a special token by templates."""


class Template:
    """A folder's chat template with its tokenizer: chats become ids, and prefixes are extended by ids.

    `tools` are function schemas as templates read them, `end_ids` the tokens with which the model ends a turn. Raises
    `ModelError` for a folder whose template cannot be used: none, one that fails, one that needs special tokens which
    the tokenizer does not have.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        end_ids: Sequence[int] = (),
        today: datetime.date | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.tools = list(tools)
        self._folder = folder
        self._end_ids = frozenset(end_ids)
        self.tokens = Tokens(folder)
        self.renderer = Renderer(folder, today=today, variables=variables)
        self._signature = json.dumps([self.tools, dict(variables or {}), str(today)], sort_keys=True, default=str)
        try:
            beginning = self.text([HELLO], generation=True)
            ending = self.after([], generation=False)
        except ConfigError as error:
            raise ModelError(str(error)) from error
        self.thinking = any(beginning[0].rstrip().endswith(begin) for begin, _ in THINKING)
        """Whether the prompt opens the model's reasoning, so that the model does not."""
        self.thinks = any(end in source for source in self.renderer.sources.values() for _, end in THINKING)
        """Whether the template knows of reasoning."""
        self.check_special(beginning, ending)
        self.closing = self._encode_after([], generation=False)
        """Ids that end a turn of the model in mid-turn; with an end token first, if the template has one."""
        ends = bool(self.closing) and self.closing[0] in self.tokens.special.values()
        self.end_id = self.closing[0] if ends else None
        """The token with which the template ends a turn of the model; None if it is no special token."""

    # --- text

    def text(self, chat: Sequence[ChatMessage], *, generation: bool) -> tuple[str, str]:
        """The text of `chat`, and the mark in it (see `Tokens.encode`)."""
        mark, _ = self.tokens.unused([list(chat), self.tools])
        tools = self.tokens.guarded(self.tools, mark, foreign=False)
        return self.renderer.render(self._guarded(chat, mark), tools=tools, generation=generation), mark

    def after(self, chat: Sequence[ChatMessage], *, generation: bool) -> tuple[str, str]:
        """What stands between a turn of the model and the end of `chat`, which follows it; and the mark in it."""
        mark, place = self.tokens.unused([list(chat), self.tools])
        tools = self.tokens.guarded(self.tools, mark, foreign=False)
        turn = {"role": "assistant", "content": place}
        whole = [HELLO, turn, *self._guarded(chat, mark)]
        before, found, after = self.renderer.render(whole, tools=tools, generation=generation).partition(place)
        if not found or place in after:
            raise ModelError("the chat template does not write once what the model said; it cannot be extended")
        return after, mark

    def _guarded(self, chat: Sequence[ChatMessage], mark: str) -> list[ChatMessage]:
        return [self.tokens.guarded(m, mark, foreign=m["role"] in ("user", "tool")) for m in chat]

    # --- ids

    def prompt(self, chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Ids of the whole `chat`, up to where the model speaks."""
        text, mark = self.text(chat, generation=True)
        return self.tokens.encode(text, mark=mark)

    def extension(self, prefix: Sequence[int], chat: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Ids to be put after `prefix`, which ends with a turn of the model, so that `chat` follows that turn.

        They close the turn as far as `prefix` does not close it, and end where the model speaks again. Nothing of the
        history is rendered.
        """
        ids = self._encode_after(chat, generation=True)
        return ids[self._closed(prefix, ids) :]

    def question(self, prefix: Sequence[int], text: str) -> tuple[int, ...]:
        """Ids that ask `text` after `prefix`: in mid-turn, after an end token, or after a whole turn."""
        return self.extension(prefix, [{"role": "user", "content": text}])

    def _encode_after(self, chat: Sequence[ChatMessage], *, generation: bool) -> tuple[int, ...]:
        text, mark = self.after(chat, generation=generation)
        return self.tokens.encode(text, mark=mark, after=True)

    def _closed(self, prefix: Sequence[int], ids: Sequence[int]) -> int:
        """How many of the first `ids`, which close a turn, `prefix` ends with."""
        if self.end_id is None:
            return 0
        for size in range(len(self.closing), 0, -1):
            if tuple(prefix[-size:]) == self.closing[:size] == tuple(ids[:size]):
                return size
        return int(bool(prefix) and prefix[-1] in self._end_ids)  # another end token than the template's

    def digest(self, chat: Sequence[ChatMessage]) -> str:
        """Fingerprint of `chat` under these tools and variables."""
        return sha256((self._signature + json.dumps(chat, sort_keys=True, default=str)).encode()).hexdigest()[:16]

    # --- checks

    def check_special(self, *rendered: tuple[str, str]) -> None:
        """Raise `ModelError` if a text, with its mark, has a special token that the tokenizer does not know as one."""
        written = "".join(text.replace(mark, "") for text, mark in rendered)
        used = set(_SPECIAL.findall(written)) | {text for text in self.renderer.special.values() if text in written}
        quoted = _SPECIAL.findall(json.dumps(self.tools, ensure_ascii=False))  # what tools say of others' tokens
        known = {"", *quoted, *self.tokens.vocabulary()}
        if missing := sorted(used - known):
            raise ModelError(
                f"model folder {str(self._folder)!r}: its chat template writes {missing!r}, which its tokenizer does "
                "not have as one token; the tokenizer and the template belong to different models"
            )
