"""An assistant with tools that searches for its next action: any chat model, an SGLang server, or a model folder.

from graphs.assistant import build_chat
build_chat(model, folder="notes").compile().invoke({"messages": [("user", "Which note is the longest?")]})

With LangGraph's server (`langgraph dev`) the environment names what it works with: `TTS_AGENT_MODEL`,
`TTS_AGENT_FOLDER`, `TTS_AGENT_DATABASE`. A run may name another model: `{"configurable": {"model": ...}}`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph

from graphs.kept import Kept
from tools.calculator import calculator
from tools.files import make_file_tools
from tools.sqlite import make_sqlite_tools
from tts_agent import BestOfN, Budget, Sampling, load_engine
from tts_agent.engines import Engine
from tts_agent.errors import ConfigError
from tts_agent.nodes import PlanState, create_planning_agent

CANDIDATES = 4
"""Next actions sampled for each decision."""
GENERATED_TOKENS = 16_000
"""What one run may generate, over all its decisions."""
QUESTION = "Is the last message of the assistant the right next step? Answer yes or no."
MODEL, FOLDER, DATABASE = "TTS_AGENT_MODEL", "TTS_AGENT_FOLDER", "TTS_AGENT_DATABASE"
KINDS = "'sglang://HOST:PORT', 'embedded://FOLDER', or a model of LangChain's such as 'openai:gpt-5'"
Graph = StateGraph[PlanState, None, PlanState, PlanState]
Agent = CompiledStateGraph[PlanState, None, PlanState, PlanState]


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
    from tts_agent.verifiers import AgreementVerifier

    tools = make_tools(folder=folder, database=database)
    engine = ChatEngine(model.bind_tools(tools))
    return _agent(engine, ChatDialect(engine, tools=tools, sampling=sampling), AgreementVerifier(), tools, settings)


def build_judging(
    engine: Engine,
    model: str | Path,
    *,
    folder: str | Path | None = None,
    database: str | Path | None = None,
    sampling: Sampling | None = None,
    **settings: Any,
) -> Graph:
    """The assistant on an engine of token ids, not compiled; `model` is the Hugging Face folder of what it serves.

    The model judges its own candidates in place: it is asked after each whether that is the right next step.
    """
    from tts_agent.dialects import TemplateDialect

    tools = make_tools(folder=folder, database=database)
    dialect = TemplateDialect(engine, model, tools=tools, sampling=sampling)
    judge: Any = (
        settings.pop("verifier") if "verifier" in settings else dialect.verifier(QUESTION, good="yes", bad="no")
    )
    return _agent(engine, dialect, judge, tools, settings)


def build_local(model: str | Path, **settings: Any) -> Graph:
    """The assistant on the Hugging Face folder `model`, served in this process; see `build_judging`."""
    return build_judging(load_engine(f"embedded://{model}"), model, **settings)


def _agent(engine: Any, dialect: Any, verifier: Any, tools: Sequence[BaseTool], settings: dict[str, Any]) -> Graph:
    chosen: dict[str, Any] = {
        "strategy": BestOfN(n=CANDIDATES, width=CANDIDATES),
        "verifier": verifier,
        "run_budget": Budget(generated_tokens=GENERATED_TOKENS),
    }
    return create_planning_agent(engine, dialect=dialect, tools=tools, **(chosen | settings))


# --- for LangGraph's server


class Unnamed(BaseChatModel):
    """Stands for a model as long as nobody has named one: the graph can be looked at, and says what is missing."""

    @property
    def _llm_type(self) -> str:
        return "unnamed"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        raise ConfigError(
            f"the assistant has no model; set {MODEL} in the server's environment, or 'model' in the run's "
            f"configurable, to {KINDS}"
        )


def graph(model: str = "") -> Agent:
    """The assistant on `model`, as the environment names it if it is empty. Raises `ConfigError` for no model."""
    name = model or os.environ.get(MODEL, "")
    # NOTE: callers of the server name a model; what it may read of this machine only its owner names.
    readable: dict[str, Any] = {"folder": os.environ.get(FOLDER) or None, "database": os.environ.get(DATABASE) or None}
    kind, _, rest = name.partition("://")
    if kind == "embedded":
        return build_local(rest, **readable).compile()
    return build_chat(_chat_model(name), **readable).compile()


def _chat_model(name: str) -> BaseChatModel:
    if not name:
        return Unnamed()
    kind, _, rest = name.partition("://")
    if kind == "sglang":
        from tts_agent.chat_models import ChatSGLang

        return ChatSGLang(base_url=rest)
    try:
        from langchain.chat_models import init_chat_model

        found: BaseChatModel = init_chat_model(name)
        return found
    except (ImportError, ValueError) as error:
        raise ConfigError(f"there is no model {name!r} ({error}); name {KINDS}") from error


_kept: Kept[str, Agent] = Kept(graph)


async def agraph(config: RunnableConfig) -> Agent:
    """The assistant for LangGraph's server (`langgraph.json`), on the model that the run or the environment names."""
    return await _kept.get(str(config.get("configurable", {}).get("model") or ""))
