"""Carrying out a decision."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode

from tts_agent.errors import ConfigError


def make_act_node(tools: Sequence[BaseTool | Callable[..., Any]], *, name: str = "act") -> ToolNode:
    """A node that runs the tool calls of the newest message, LangGraph's `ToolNode`.

    A tool that fails answers with its error, so that the planner sees it; it does not end the run.
    """
    if not tools:
        raise ConfigError("an act node without tools cannot carry out any decision; pass tools=[...]")
    return ToolNode(tools, name=name, handle_tool_errors=True)
