"""An agent that plays Countdown and Game of 24: it plans to the end, acts one operation at a time, and plans again.

from graphs.countdown import graph
graph().invoke({"messages": [("user", "Make 24 from 8 5 3 1")]})
"""

from typing import Any

from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph

from graphs.kept import Kept
from tools.calculator import calculator
from tts_agent import BestFirst, Budget, load_engine
from tts_agent.engines import Engine
from tts_agent.nodes import PlanState, create_planning_agent
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect

ENGINE = "embedded://pocket"
COMPUTED_TOKENS = 2500
"""What one run may compute, over all its decisions; what the first one finds is carried over to the others."""
Agent = CompiledStateGraph[PlanState, None, PlanState, PlanState]


def build(engine: Engine, **settings: Any) -> StateGraph[PlanState, None, PlanState, PlanState]:
    """The agent on `engine`, not compiled. `settings` replace those chosen here; they are `make_plan_node`'s."""
    chosen: dict[str, Any] = {
        "strategy": BestFirst(),
        "verifier": countdown_verifier(engine),
        "run_budget": Budget(computed_tokens=COMPUTED_TOKENS),
    }
    return create_planning_agent(engine, dialect=CountdownDialect(engine), tools=[calculator], **(chosen | settings))


def graph() -> Agent:
    """The agent on the planner that ships with the package, which is loaded here and not before."""
    return build(load_engine(ENGINE)).compile()


_kept: Kept[None, Agent] = Kept(lambda _: graph())


async def agraph() -> Agent:
    """The same for LangGraph's server (`langgraph.json`): one agent for all runs, and nothing blocks the event loop."""
    return await _kept.get(None)
