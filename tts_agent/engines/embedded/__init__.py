"""The default engine: a model folder, served in this process."""

from tts_agent.engines.embedded.counters import Counters
from tts_agent.engines.embedded.engine import EmbeddedEngine, EmbeddedStream

__all__ = ("Counters", "EmbeddedEngine", "EmbeddedStream")
