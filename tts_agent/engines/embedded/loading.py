"""Which forward pass serves a folder."""

from importlib.util import find_spec
from pathlib import Path

from tts_agent.engines.embedded.folder import read_config
from tts_agent.engines.embedded.llama import load_llama, unserved
from tts_agent.engines.embedded.model import Model
from tts_agent.errors import ModelError


def load_model(folder: Path) -> Model:
    """The model in `folder`: by our own forward pass if it computes it exactly, else by that of `transformers`.

    Raises `ModelError` if the folder is missing or broken, if neither computes it exactly, or if `transformers` is
    needed and not installed.
    """
    config = read_config(folder)
    reason = unserved(config)
    if not reason:
        return load_llama(folder, config)
    if find_spec("transformers") is None:
        raise ModelError(
            f"model folder {str(folder)!r}: {reason}; "
            'to serve such models through transformers run pip install "tts-agent[models]"'
        )
    # Importing transformers takes seconds and is needed by these models alone.
    from tts_agent.engines.embedded.generic import Generic

    return Generic(folder)
