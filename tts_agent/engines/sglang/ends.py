"""The tokens with which a model ends its answer, and the width of its vocabulary."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tts_agent.engines.sglang.server import Server
from tts_agent.engines.sglang.tokens import Tokens
from tts_agent.errors import ConfigError, EngineUnavailable

EDGE = 512
"""Special tokens are looked for among so many ids at each end of the vocabulary."""

CERTAIN = 1e4
"""Added to a logit, it makes a token the only one that can be drawn."""


def read_ends(
    server: Server, served: str, tokens: Tokens, end_ids: Sequence[int] | None
) -> tuple[tuple[int, ...], int]:
    """The end tokens and the width of the vocabulary: as given, as the `served` folder says where it is readable here,
    else as the server shows.
    """
    folder = Path(served)
    config = _read(folder / "config.json")
    width = int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)
    if end_ids is not None:
        return tuple(end_ids), width
    if config:
        for settings in (_read(folder / "generation_config.json"), config):
            if (ids := settings.get("eos_token_id")) is not None:
                return (tuple(ids) if isinstance(ids, list) else (ids,)), width
        return (), width
    return _shown_ends(server, tokens.vocabulary), width


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    return data if isinstance(data, dict) else {}


def _shown_ends(server: Server, vocabulary: int) -> tuple[int, ...]:
    """The special tokens at which the server ends an answer on its own, found by making it say each of them."""
    ids = list(dict.fromkeys(chain(range(min(EDGE, vocabulary)), range(max(vocabulary - EDGE, 0), vocabulary))))
    body = {"tokens": [[token] for token in ids]}
    shown = server.ask("/detokenize", {**body, "skip_special_tokens": False})["text"]
    hidden = server.ask("/detokenize", {**body, "skip_special_tokens": True})["text"]
    special = [token for token, text, rest in zip(ids, shown, hidden, strict=True) if text and not rest]
    if not special:
        return ()
    params = [{"max_new_tokens": 2, "temperature": 0.0, "logit_bias": {str(token): CERTAIN}} for token in special]
    try:
        answers = server.ask("/generate", {"input_ids": [[token] for token in special], "sampling_params": params})
    except EngineUnavailable as error:
        raise ConfigError(
            f"the server at {server.address!r} does not show its end tokens ({error}); pass end_ids="
        ) from error
    return tuple(
        token
        for token, answer in zip(special, answers, strict=True)
        if answer["meta_info"]["finish_reason"]["type"] == "stop"
    )
