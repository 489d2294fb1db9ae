"""The planner that ships with the package: weights, rules, tasks and dialect of Countdown and Game of 24."""

from importlib import resources
from pathlib import Path

from tts_agent.errors import ConfigError
from tts_agent.pocket.countdown import Puzzle
from tts_agent.pocket.task import countdown_task, countdown_verifier

__all__ = ("MODELS", "Puzzle", "countdown_task", "countdown_verifier", "model_folder")

MODELS = {"pocket": "model", "pocket-small": "model_small"}
"""Names of the shipped planners, and their folders."""


def model_folder(name: str = "pocket") -> Path:
    """The Hugging Face folder of a shipped planner, for `embedded://NAME` or any other server."""
    if name not in MODELS:
        raise ConfigError(f"unknown planner {name!r}; known: {', '.join(MODELS)}")
    return Path(str(resources.files("tts_agent.pocket").joinpath(MODELS[name])))
