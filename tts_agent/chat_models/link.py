"""What a chat model is connected to."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tts_agent.chat_models.voice import Renders, ServerVoice, TemplateVoice, Tool, Voice
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError

VOICES = 32
"""Sets of tools that are kept ready."""


class Link:
    """An engine and its voices, made when they are first needed; several copies of a model share one.

    `make` opens the engine, which may wait for a server. `folder` is that of the model's tokenizer and chat template;
    without it the engine's server renders and reads. Usable from any number of threads.
    """

    def __init__(
        self, make: Callable[[], Engine], *, folder: str | Path | None, variables: Mapping[str, Any] | None
    ) -> None:
        self._make, self._folder, self._variables = make, folder, variables
        self._lock = threading.Lock()
        self._voices: OrderedDict[str, Voice] = OrderedDict()
        self._engine: Engine | None = None

    @property
    def opened(self) -> Engine | None:
        """The engine, if it was needed already."""
        return self._engine

    def engine(self) -> Engine:
        """The engine. Raises what opening it raises."""
        with self._lock:
            if self._engine is None:
                self._engine = self._make()
            return self._engine

    def voice(self, tools: Sequence[Tool]) -> Voice:
        """How the model is spoken to when it has `tools`. Raises `ConfigError` if it cannot have them."""
        engine, key = self.engine(), json.dumps(tools, sort_keys=True, default=str)
        with self._lock:
            voice = self._voices.get(key) or self._open(engine, tools)
            self._voices[key] = voice
            self._voices.move_to_end(key)
            while len(self._voices) > VOICES:
                self._voices.popitem(last=False)
        return voice

    def _open(self, engine: Engine, tools: Sequence[Tool]) -> Voice:
        if self._folder is not None:
            return TemplateVoice(engine, self._folder, tools, self._variables)
        if not hasattr(engine, "render"):
            raise ConfigError(
                f"engine {engine.name!r} renders no conversations; pass folder=, the model's own with its template"
            )
        return ServerVoice(cast(Renders, engine), tools, self._variables)
