"""An agent that plans by search and acts with tools."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode

from tts_agent.dialect import Dialect
from tts_agent.engines.base import Engine
from tts_agent.errors import ConfigError
from tts_agent.nodes.act import make_act_node
from tts_agent.nodes.overrides import TTSContext
from tts_agent.nodes.plan import PlanNode, make_plan_node
from tts_agent.nodes.planner import Settings
from tts_agent.nodes.review import Wanted
from tts_agent.nodes.stages import StageNode, make_expand_node, make_select_node, make_verify_node
from tts_agent.nodes.state import PlanState, StagedState, newest_tool_calls

Node = PlanNode | StageNode


def route(state: Mapping[str, Any]) -> Literal["act", "__end__"]:
    """`"act"` if the newest message asks for tools, else the end: an answer was given, or there is no decision."""
    return "act" if newest_tool_calls(state["messages"]) else "__end__"


def route_expanded(state: Mapping[str, Any]) -> Literal["verify", "__end__"]:
    """After `expand`: on to `"verify"`, or to the end if there was nothing left to decide."""
    return "verify" if state.get("search") else "__end__"


def route_selected(state: Mapping[str, Any]) -> Literal["expand", "act", "__end__"]:
    """After `select`: another round while the search is under way, else as `route`."""
    return "expand" if state.get("search") else route(state)


class _Route(Runnable[Mapping[str, Any], str]):
    """A condition of an edge that is no run of its own: LangGraph traces a bare function, at a cost above its own."""

    def __init__(self, to: Callable[[Mapping[str, Any]], str]) -> None:
        self.name = to.__name__
        self._to = to

    def invoke(self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> str:
        return self._to(input)

    async def ainvoke(self, input: Mapping[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> str:
        return self._to(input)


def create_planner(
    engine: Engine,
    *,
    dialect: Dialect,
    staged: bool = False,
    trace: str | Path | None = None,
    review: Wanted | None = None,
    grant: float | None = None,
    flush_events: int | None = None,
    flush_seconds: float | None = None,
    **settings: Unpack[Settings],
) -> StateGraph[Any, Any, Any, Any]:
    """A graph of one planning step: it ends with the decision as the newest message, or without one.

    Compiled, it is a node for a graph of yours over `PlanState`, with `route` behind it:
    `graph.add_node("plan", create_planner(...).compile())`. The arguments are those of `create_planning_agent`.
    """
    fused = {"review": review, "grant": grant, "flush_events": flush_events, "flush_seconds": flush_seconds}
    return _wired(_planning(engine, dialect, staged, trace, fused, settings), None)


def create_planning_agent(
    engine: Engine,
    *,
    dialect: Dialect,
    tools: Sequence[BaseTool | Callable[..., Any]],
    staged: bool = False,
    trace: str | Path | None = None,
    review: Wanted | None = None,
    grant: float | None = None,
    flush_events: int | None = None,
    flush_seconds: float | None = None,
    **settings: Unpack[Settings],
) -> StateGraph[Any, Any, Any, Any]:
    """A graph that plans, acts, and plans again, until the planner answers without tools or has no decision.

    The planning step is one node, named by `settings["name"]` ("plan"), or, if `staged`, the nodes `expand`, `verify`
    and `select`. The other arguments are those of `make_plan_node`; the stages know no review, no grants, no flushes:
    each is durable when it ends, and a graph can be interrupted between them. Budgets can be changed for a run:
    `agent.invoke(state, context={"tts": {"plan": {"calls": 20}}})`. The graph is not compiled:
    `.compile(checkpointer=...)` is the caller's.
    """
    fused = {"review": review, "grant": grant, "flush_events": flush_events, "flush_seconds": flush_seconds}
    return _wired(_planning(engine, dialect, staged, trace, fused, settings), make_act_node(tools))


def _planning(
    engine: Engine,
    dialect: Dialect,
    staged: bool,
    trace: str | Path | None,
    fused: Mapping[str, Any],
    settings: Settings,
) -> list[Node]:
    """The nodes of a planning step in their order: one, or three."""
    given: dict[str, Any] = {name: value for name, value in fused.items() if value is not None}
    if not staged:
        return [make_plan_node(engine, dialect=dialect, trace=trace, **given, **settings)]
    if given:
        raise ConfigError(f"{sorted(given)!r} have no effect on a staged agent; leave them out")
    return [
        make_expand_node(engine, dialect=dialect, **settings),
        make_verify_node(engine, dialect=dialect, **settings),
        make_select_node(engine, dialect=dialect, trace=trace, **settings),
    ]


def _wired(planning: Sequence[Node], act: ToolNode | None) -> StateGraph[Any, Any, Any, Any]:
    """The graph of the planning nodes, and of `act` if there is one; without it a decision ends the graph."""
    staged = len(planning) > 1
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(StagedState if staged else PlanState, TTSContext)
    for node in planning:
        graph.add_node(str(node.name), node)
    first, last = str(planning[0].name), str(planning[-1].name)
    graph.add_edge(START, first)
    if staged:
        graph.add_conditional_edges(first, _Route(route_expanded), ["verify", END])
        graph.add_edge("verify", last)
    decided: str = END
    if act is not None:
        decided = "act"
        graph.add_node("act", act)
        graph.add_edge("act", first)
    ends: dict[Hashable, str] = {"act": decided, END: END}
    onward = _Route(route_selected if staged else route)
    graph.add_conditional_edges(last, onward, ends | {"expand": first} if staged else ends)
    return graph
