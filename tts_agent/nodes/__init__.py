"""Planning nodes and agents for LangGraph."""

from tts_agent.nodes.act import make_act_node
from tts_agent.nodes.agent import create_planner, create_planning_agent, route, route_expanded, route_selected
from tts_agent.nodes.handle import SearchHandle, running_searches
from tts_agent.nodes.outside import OutsideVerifier, drop, growable, judge, unjudged
from tts_agent.nodes.overrides import BudgetOverride, TTSContext
from tts_agent.nodes.plan import PlanNode, make_plan_node
from tts_agent.nodes.progress import Progress
from tts_agent.nodes.shared import SharedBudget
from tts_agent.nodes.spent import merge_budgets
from tts_agent.nodes.stages import StageNode, make_expand_node, make_select_node, make_verify_node
from tts_agent.nodes.state import PlanState, StagedState
from tts_agent.nodes.transformer import TTSTransformer

__all__ = (
    "BudgetOverride",
    "OutsideVerifier",
    "PlanNode",
    "PlanState",
    "Progress",
    "SearchHandle",
    "SharedBudget",
    "StageNode",
    "StagedState",
    "TTSContext",
    "TTSTransformer",
    "create_planner",
    "create_planning_agent",
    "drop",
    "growable",
    "judge",
    "make_act_node",
    "make_expand_node",
    "make_plan_node",
    "make_select_node",
    "make_verify_node",
    "merge_budgets",
    "route",
    "route_expanded",
    "route_selected",
    "running_searches",
    "unjudged",
)
