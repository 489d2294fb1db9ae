"""Middleware for `langchain.agents.create_agent` (extra `langchain`)."""

from tts_agent.middleware.bounds import PromptBound, PromptSize, TextBound, utf8_bytes
from tts_agent.middleware.budget import BudgetMiddleware, BudgetState
from tts_agent.middleware.candidates import Candidate
from tts_agent.middleware.meter import BudgetRefusal
from tts_agent.middleware.plan_search import PlanSearchMiddleware
from tts_agent.middleware.tree_search import TreeSearchMiddleware, TreeSearchState

__all__ = (
    "BudgetMiddleware",
    "BudgetRefusal",
    "BudgetState",
    "Candidate",
    "PlanSearchMiddleware",
    "PromptBound",
    "PromptSize",
    "TextBound",
    "TreeSearchMiddleware",
    "TreeSearchState",
    "utf8_bytes",
)
