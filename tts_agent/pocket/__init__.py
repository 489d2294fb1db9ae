"""The planner that ships with the package: weights, rules, tasks and dialect of Countdown and Game of 24."""

from importlib import resources
from pathlib import Path

from tts_agent.pocket.countdown import Puzzle
from tts_agent.pocket.task import countdown_task, countdown_verifier

__all__ = ("Puzzle", "countdown_task", "countdown_verifier", "model_folder")


def model_folder() -> Path:
    """The Hugging Face folder of the shipped model, for `embedded://pocket` or any other server."""
    return Path(str(resources.files("tts_agent.pocket").joinpath("model")))
