"""A workflow as many have it, and the same one whose planning node searches. Three lines differ.

python examples/dropin_node.py "Make 24 from 8 5 3 1"

The model of both is the planner that ships with the package, wrapped as a chat model of LangChain; put yours in its
place.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/ are not part of the installed package

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from tools.calculator import calculator
from tts_agent import Budget, load_engine
from tts_agent.dialect import Answer
from tts_agent.engines import Engine
from tts_agent.errors import ConfigError
from tts_agent.loop import run_sync
from tts_agent.nodes import PlanState, make_plan_node
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect
from tts_agent.task import Task
from tts_agent.thought import Thought


class PlannerChat(BaseChatModel):
    """A chat model that says the first next step that comes to its mind."""

    engine: Any
    seeds: list[int] = [0]

    @property
    def _llm_type(self) -> str:
        return "planner"

    def bind_tools(self, tools: Any, **kwargs: Any) -> "PlannerChat":
        return self  # the planner knows one tool, the calculator

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        dialect = CountdownDialect(self.engine)
        request = dialect.request(cast("list[AnyMessage]", messages), None)
        if isinstance(request, Answer):
            return ChatResult(generations=[ChatGeneration(message=AIMessage(request.text))])
        self.seeds[0] += 1
        ids = run_sync(sample(self.engine, request.task, self.seeds[0]))
        text = self.engine.decode(ids)
        try:
            message = dialect.decide(Thought(1, 0, 0, ids, text))
        except ConfigError:
            message = AIMessage(f"{text.strip()} is no step. Not solved.")
        size = len(request.task.root)
        message.usage_metadata = UsageMetadata(input_tokens=size, output_tokens=len(ids), total_tokens=size + len(ids))
        return ChatResult(generations=[ChatGeneration(message=message)])


async def sample(engine: Engine, task: Task, seed: int) -> tuple[int, ...]:
    return [completion.ids async for completion in engine.sample(task.root, task.thought, seeds=[seed])][0]


BUDGET = Budget(computed_tokens=1500)


def before(engine: Engine, seed: int) -> StateGraph[Any, None, Any, Any]:
    model = PlannerChat(engine=engine, seeds=[seed])
    graph = StateGraph(MessagesState)
    graph.add_node("plan", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([calculator]))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", tools_condition)
    graph.add_edge("tools", "plan")
    return graph


def after(engine: Engine, seed: int) -> StateGraph[Any, None, Any, Any]:
    dialect, verifier = CountdownDialect(engine), countdown_verifier(engine)
    graph = StateGraph(PlanState)
    graph.add_node("plan", make_plan_node(engine, dialect=dialect, verifier=verifier, budget=BUDGET, seed=seed))
    graph.add_node("tools", ToolNode([calculator]))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", tools_condition)
    graph.add_edge("tools", "plan")
    return graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzle", nargs="?", default="Make 24 from 8 5 3 1")
    parser.add_argument("--engine", default="embedded://pocket", help="where tokens come from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    engine = load_engine(options.engine)
    for make in (before, after):
        result = make(engine, options.seed).compile().invoke({"messages": [("user", options.puzzle)]})
        print(f"{make.__name__:>6}: {result['messages'][-1].text}")
    run_sync(engine.aclose())


if __name__ == "__main__":
    main()
