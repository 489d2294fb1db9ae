"""Engines: where tokens come from. Heavy imports happen when an engine is loaded, not before."""

from inspect import signature
from typing import Any

from tts_agent.engines.base import (
    Capabilities,
    Completion,
    Engine,
    HiddenState,
    Label,
    LabelScores,
    Reader,
    Sampling,
    Stream,
)
from tts_agent.engines.scripted import Fault, ScriptedEngine
from tts_agent.errors import ConfigError, ModelError

__all__ = (
    "Capabilities",
    "Completion",
    "Engine",
    "Fault",
    "HiddenState",
    "Label",
    "LabelScores",
    "Reader",
    "Sampling",
    "ScriptedEngine",
    "Stream",
    "load_engine",
)


def load_engine(url: str, **options: Any) -> Engine:
    """The engine named by `url`, with the options of its class.

    `embedded://pocket` is the planner that ships with the package, `embedded://pocket-small` its smaller sister;
    `embedded://FOLDER` serves a Hugging Face folder in this process (`EmbeddedEngine`; a folder of a planner's name is
    reached as `embedded://./pocket`). Raises `ConfigError` for another scheme and `ModelError` for a bad folder.
    """
    scheme, separator, rest = url.partition("://")
    if scheme != "embedded" or not separator or not rest:
        raise ConfigError(f"unknown engine {url!r}; known: 'embedded://pocket', 'embedded://FOLDER'")
    try:
        from tts_agent.engines.embedded import EmbeddedEngine
    except ModuleNotFoundError as missing:
        raise ModelError(
            f"the embedded engine needs {missing.name!r}, which is not installed; pip install 'tts-agent[embedded]'"
        ) from missing
    known = [name for name in signature(EmbeddedEngine).parameters if name not in ("folder", "name")]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"unknown options {unknown!r} of engine {url!r}; known: {', '.join(known)}")
    from tts_agent.pocket import MODELS, model_folder

    if rest in MODELS:
        return EmbeddedEngine(model_folder(rest), name=url, **options)
    return EmbeddedEngine(rest, **options)
