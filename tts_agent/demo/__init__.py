"""The demonstration: an agent that plans by search, and searches compared at equal compute."""

from tts_agent.demo.show import run

__all__ = ("run",)
