"""Test-time compute scaling for LangGraph agents: planning steps that search over branches sharing their KV."""

from tts_agent.budget import Budget, Ledger
from tts_agent.engines import Sampling, ScriptedEngine, load_engine
from tts_agent.errors import TTSError
from tts_agent.outcome import Outcome
from tts_agent.prefix import Prefix
from tts_agent.search import Beam, BestFirst, BestOfN, Greedy, search
from tts_agent.task import Task
from tts_agent.thought import Expansion, Observation, Reading, StopReason, Thought, Unverified, Verdict
from tts_agent.tree import ThoughtTree
from tts_agent.usage import Prices, Usage
from tts_agent.verifiers import CheckVerifier, LabelVerifier

__version__ = "0.1.0"

__all__ = (
    "Beam",
    "BestFirst",
    "BestOfN",
    "Budget",
    "CheckVerifier",
    "Expansion",
    "Greedy",
    "LabelVerifier",
    "Ledger",
    "Observation",
    "Outcome",
    "Prefix",
    "Prices",
    "Reading",
    "Sampling",
    "ScriptedEngine",
    "StopReason",
    "TTSError",
    "Task",
    "Thought",
    "ThoughtTree",
    "Unverified",
    "Usage",
    "Verdict",
    "load_engine",
    "search",
)
