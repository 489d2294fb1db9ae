"""An assistant with tools that searches for its next action: any chat model, or a model folder on the embedded engine.

from graphs.assistant import build_chat
build_chat(model, folder="notes").compile().invoke({"messages": [("user", "Which note is the longest?")]})
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.graph import StateGraph

from tools.calculator import calculator
from tools.files import make_file_tools
from tools.sqlite import make_sqlite_tools
from tts_agent import BestOfN, Budget, Sampling, load_engine
from tts_agent.nodes import PlanState, create_planning_agent
from tts_agent.verifiers import AgreementVerifier

CANDIDATES = 4
"""Next actions sampled for each decision."""
GENERATED_TOKENS = 16_000
"""What one run may generate, over all its decisions."""
QUESTION = "Is the last message of the assistant the right next step? Answer yes or no."
Graph = StateGraph[PlanState, None, PlanState, PlanState]


def make_tools(*, folder: str | Path | None = None, database: str | Path | None = None) -> list[BaseTool]:
    """Arithmetic, and reading the files of `folder` and the SQLite `database` where they are given."""
    files = [] if folder is None else make_file_tools(folder)
    tables = [] if database is None else make_sqlite_tools(database)
    return [calculator, *files, *tables]


def build_chat(
    model: BaseChatModel,
    *,
    folder: str | Path | None = None,
    database: str | Path | None = None,
    sampling: Sampling | None = None,
    **settings: Any,
) -> Graph:
    """The assistant on a LangChain chat model, not compiled: of several next actions it takes the commonest.

    Limits on tokens are soft for such models (`ChatEngine`). `sampling` says how messages are drawn; `settings` replace
    those chosen here, and are `make_plan_node`'s.
    """
    from tts_agent.dialects import ChatDialect
    from tts_agent.engines.chat import ChatEngine

    tools = make_tools(folder=folder, database=database)
    engine = ChatEngine(model.bind_tools(tools))
    return _agent(engine, ChatDialect(engine, tools=tools, sampling=sampling), AgreementVerifier(), tools, settings)


def build_local(
    model: str | Path,
    *,
    folder: str | Path | None = None,
    database: str | Path | None = None,
    sampling: Sampling | None = None,
    **settings: Any,
) -> Graph:
    """The assistant on the Hugging Face folder `model`, served in this process; not compiled.

    The model judges its own candidates in place: it is asked after each whether that is the right next step.
    """
    from tts_agent.dialects import TemplateDialect

    tools = make_tools(folder=folder, database=database)
    engine = load_engine(f"embedded://{model}")
    dialect = TemplateDialect(engine, model, tools=tools, sampling=sampling)
    verifier = dialect.verifier(QUESTION, good="yes", bad="no")
    return _agent(engine, dialect, verifier, tools, settings)


def _agent(engine: Any, dialect: Any, verifier: Any, tools: Sequence[BaseTool], settings: dict[str, Any]) -> Graph:
    chosen: dict[str, Any] = {
        "strategy": BestOfN(n=CANDIDATES, width=CANDIDATES),
        "verifier": verifier,
        "run_budget": Budget(generated_tokens=GENERATED_TOKENS),
    }
    return create_planning_agent(engine, dialect=dialect, tools=tools, **(chosen | settings))
