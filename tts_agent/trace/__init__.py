"""Readers of the log: the recorder, the terminal, statistics."""

from tts_agent.trace.recorder import Log, Recorder, read, remove
from tts_agent.trace.statistics import Statistics, statistics
from tts_agent.trace.terminal import render

__all__ = ("Log", "Recorder", "Statistics", "read", "remove", "render", "statistics")
