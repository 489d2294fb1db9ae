"""Text and token ids: by the server's own tokenizer, or by the same one in this process."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tts_agent.engines.sglang.memory import Recent
from tts_agent.engines.sglang.server import Server
from tts_agent.errors import ConfigError, EngineUnavailable, ModelError

PROBE = "Größe: 42 <b>\n\tfin 🦊"
"""Text by which two tokenizers are told apart."""

TEXTS = 50_000


class Tokens(Protocol):
    """A tokenizer. What looks like a special token in a text stays text."""

    vocabulary: int
    """No id from here on is known to have a text."""

    waits: bool
    """Whether `decode` asks somebody else for what was not fetched before."""

    def encode(self, text: str) -> tuple[int, ...]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    async def prefetch(self, sequences: Iterable[tuple[int, ...]]) -> None:
        """See to it that `decode` of these does not wait, if that can be."""
        ...


class LocalTokens:
    """The tokenizer in a model's `folder`. Raises `ModelError` if there is none."""

    waits = False

    def __init__(self, folder: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as missing:
            raise ModelError(
                "a tokenizer in this process needs 'tokenizers', which is not installed; pip install tokenizers, or "
                "leave tokenizer= out, and the server encodes and decodes"
            ) from missing
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"model folder {str(folder)!r} has no tokenizer.json; pass the folder that is served")
        self._tokenizer: Any = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True
        self.vocabulary = int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    async def prefetch(self, sequences: Iterable[tuple[int, ...]]) -> None:
        """Nothing: decoding here waits for nobody."""


class ServerTokens:
    """The tokenizer of `servers`, whichever of them answers. What was decoded once is remembered; what was not is asked
    for while the caller waits.
    """

    waits = True

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = list(servers)
        self._texts: Recent[tuple[int, ...], str] = Recent(TEXTS)
        self._special: dict[int, str] = {}  # text of each special token that was seen; empty for one that is none
        self.vocabulary = self._count()

    def _count(self) -> int:
        """One more than the largest id with a text."""
        low, high = 0, 1
        while any(self._detokenize([[high], [high + 1], [high + 2]])):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            known = any(self._detokenize([[middle], [middle + 1], [middle + 2]]))
            low, high = (middle, high) if known else (low, middle)
        return high

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        for server in list(self._servers):
            try:
                return server.ask(path, body)
            except EngineUnavailable as error:
                problem = error
                self._move_back(server)
        raise problem

    def _move_back(self, server: Server) -> None:
        """Ask `server` last from now on."""
        self._servers.sort(key=lambda other: other is server)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        answer = self._ask("/tokenize", {"prompt": text, "add_special_tokens": False})
        return tuple(answer["tokens"])

    def _detokenize(self, sequences: list[list[int]], *, skip: bool = False) -> list[str]:
        body = {"tokens": sequences, "skip_special_tokens": skip}
        texts: list[str] = self._ask("/detokenize", body)["text"]
        return texts

    def encode(self, text: str) -> tuple[int, ...]:
        ids = self._tokenize(text)
        self._learn_special(ids)
        found = [said for token in set(ids) if (said := self._special[token])]
        if not found:
            return ids
        # Cut inside the first special token, so that neither half is one; what is left is looked at again.
        place, said = min((text.find(said), said) for said in found)
        if place < 0 or len(said) < 2:
            raise ConfigError(
                f"{text[:80]!r} contains what the server reads as a special token; pass tokenizer= to keep it text"
            )
        return self._tokenize(text[: place + 1]) + self.encode(text[place + 1 :])

    def _learn_special(self, ids: Sequence[int]) -> None:
        fresh = [[token] for token in dict.fromkeys(ids) if token not in self._special]
        if fresh:
            shown, hidden = self._detokenize(fresh), self._detokenize(fresh, skip=True)
            for (token,), text, rest in zip(fresh, shown, hidden, strict=True):
                self._special[token] = text if text and not rest else ""

    def decode(self, ids: Sequence[int]) -> str:
        key = tuple(ids)
        if not key:
            return ""
        text = self._texts.get(key)
        if text is None:
            (text,) = self._detokenize([list(key)])
            self._texts.put(key, text)
        return text

    async def prefetch(self, sequences: Iterable[tuple[int, ...]]) -> None:
        fresh = [ids for ids in dict.fromkeys(sequences) if ids and self._texts.get(ids) is None]
        if fresh:
            body = {"tokens": [list(ids) for ids in fresh], "skip_special_tokens": False}
            server = self._servers[0]
            try:
                answer = await server.aask("/detokenize", body)
            except EngineUnavailable:
                self._move_back(server)
                return
            for ids, text in zip(fresh, answer["text"], strict=True):
                self._texts.put(ids, text)


def open_tokens(servers: Sequence[Server], served: str, folder: str | Path | None) -> Tokens:
    """The tokenizer in `folder` if one is named, else that of the `served` folder if it is readable here, else the
    server's own. Raises `ConfigError` if the named one is another than the server's.
    """
    server = servers[0]
    theirs = tuple(server.ask("/tokenize", {"prompt": PROBE, "add_special_tokens": False})["tokens"])
    if folder is not None:
        tokens = LocalTokens(Path(folder))
        if tokens.encode(PROBE) != theirs:
            raise ConfigError(
                f"the tokenizer in {str(folder)!r} and that of the server at {server.address!r} make different ids of "
                f"{PROBE!r}; pass the folder that is served ({served!r})"
            )
        return tokens
    try:
        tokens = LocalTokens(Path(served))
    except ModelError:
        return ServerTokens(servers)
    return tokens if tokens.encode(PROBE) == theirs else ServerTokens(servers)
