"""Engines: where tokens come from. Heavy imports happen when an engine is loaded, not before."""

from collections.abc import Callable, Mapping, Sequence
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
    reached as `embedded://./pocket`). `sglang://HOST:PORT` is an SGLang server, several of them with commas between
    (`SGLangEngine`); `sglang-local://FOLDER` starts SGLang in this process (`SGLangLocalEngine`). Raises `ConfigError`
    for another scheme or an unknown option, `ModelError` for a bad folder or an extra that is not installed,
    `EngineUnavailable` if no server answers.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _LOADERS or not rest:
        raise ConfigError(
            f"unknown engine {url!r}; known: 'embedded://pocket', 'embedded://FOLDER', 'sglang://HOST:PORT', "
            "'sglang-local://FOLDER'"
        )
    return _LOADERS[scheme](url, rest, options)


def _embedded(url: str, rest: str, options: dict[str, Any]) -> Engine:
    try:
        from tts_agent.engines.embedded import EmbeddedEngine
    except ModuleNotFoundError as missing:
        raise _not_installed(missing, "the embedded engine", "embedded") from missing
    from tts_agent.pocket import MODELS, model_folder

    _check_options(EmbeddedEngine, url, options, ("folder", "name"))
    if rest in MODELS:
        return EmbeddedEngine(model_folder(rest), name=url, **options)
    return EmbeddedEngine(rest, **options)


def _sglang(url: str, rest: str, options: dict[str, Any]) -> Engine:
    try:
        from tts_agent.engines.sglang import SGLangEngine
    except ModuleNotFoundError as missing:
        raise _not_installed(missing, "the SGLang client", "sglang") from missing
    _check_options(SGLangEngine, url, options, ("address", "name"))
    return SGLangEngine(*rest.split(","), **options)


def _sglang_local(url: str, rest: str, options: dict[str, Any]) -> Engine:
    try:
        from tts_agent.engines.sglang_local import SGLangLocalEngine
    except ModuleNotFoundError as missing:
        raise _not_installed(missing, "SGLang in this process", "sglang-local") from missing
    _check_options(SGLangLocalEngine, url, options, ("model", "name"))
    return SGLangLocalEngine(rest, **options)


_LOADERS: dict[str, Callable[[str, str, dict[str, Any]], Engine]] = {
    "embedded": _embedded,
    "sglang": _sglang,
    "sglang-local": _sglang_local,
}


def _check_options(kind: type[Any], url: str, options: Mapping[str, Any], ours: Sequence[str]) -> None:
    known = [name for name in signature(kind).parameters if name not in ours]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"unknown options {unknown!r} of engine {url!r}; known: {', '.join(known)}")


def _not_installed(missing: ModuleNotFoundError, what: str, extra: str) -> ModelError:
    return ModelError(f"{what} needs {missing.name!r}, which is not installed; pip install 'tts-agent[{extra}]'")
