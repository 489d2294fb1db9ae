"""Which forward pass serves a folder."""

from importlib.util import find_spec
from pathlib import Path

import torch

from tts_agent.engines.embedded.folder import read_config
from tts_agent.engines.embedded.llama import load_llama, unserved
from tts_agent.engines.embedded.model import Model
from tts_agent.errors import ConfigError, ModelError

DEVICES = ("cpu", "cuda", "mps")


def load_model(folder: Path, device: str = "cpu") -> Model:
    """The model in `folder`, on `device`: by our own forward pass if that is exact, else by `transformers`' modules.

    Raises `ModelError` if the folder is missing or broken, if neither computes it exactly, or if `transformers` is
    needed and not installed. Raises `ConfigError` if torch has no such device here.
    """
    at = _device(device)
    config = read_config(folder)
    reason = unserved(config)
    if not reason:
        return load_llama(folder, config, at)
    if find_spec("transformers") is None:
        raise ModelError(
            f"model folder {str(folder)!r}: {reason}; "
            'to serve such models through transformers run pip install "tts-agent[models]"'
        )
    # Importing transformers takes seconds and is needed by these models alone.
    from tts_agent.engines.embedded.generic import Generic

    return Generic(folder, at)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # torch reports a device that it was not built for as an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={name!r} cannot be used: {reason}; use 'cpu', 'cuda' or 'mps'") from error
    if device.type not in DEVICES:
        raise ConfigError(f"device={name!r} is not one of {', '.join(DEVICES)}")
    return device
