"""Searches: the strategies, the driver, and `search()`."""

from tts_agent.search.base import Allowance, Strategy
from tts_agent.search.beam import Beam
from tts_agent.search.best_first import BestFirst
from tts_agent.search.best_of_n import BestOfN
from tts_agent.search.driver import Search
from tts_agent.search.greedy import Greedy
from tts_agent.search.run import STRATEGIES, make_strategy, search

__all__ = (
    "STRATEGIES",
    "Allowance",
    "Beam",
    "BestFirst",
    "BestOfN",
    "Greedy",
    "Search",
    "Strategy",
    "make_strategy",
    "search",
)
