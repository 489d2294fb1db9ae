"""Readers of the log: the recorder, the terminal, a page for a browser, statistics."""

from tts_agent.trace.page import page
from tts_agent.trace.recorder import Log, Recorder, read, remove
from tts_agent.trace.statistics import Statistics, statistics
from tts_agent.trace.terminal import render

__all__ = ("Log", "Recorder", "Statistics", "page", "read", "remove", "render", "statistics")
