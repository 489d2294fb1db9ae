"""A LangGraph agent that plays one puzzle, told step by step."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import ToolException, tool

from tts_agent.budget import Budget
from tts_agent.demo.arms import SEARCH, SETTINGS
from tts_agent.engines.base import Engine
from tts_agent.nodes import PlanState, create_planning_agent
from tts_agent.pocket import Puzzle, countdown_verifier
from tts_agent.pocket.countdown import OPERATORS, IllegalStep, prompt_text, result_of
from tts_agent.pocket.dialect import CountdownDialect

_OPERATION = re.compile(r"(\d+)([-+*/])(\d+)")


@tool
def calculator(expression: str) -> str:
    """One operation with two whole numbers, such as 8*3; division only where nothing remains."""
    found = _OPERATION.fullmatch(expression)
    if found is None:
        raise ToolException(f"{expression!r} is not an operation; write 8*3")
    operator = next(sign for sign in OPERATORS if sign == found[2])
    try:
        return str(result_of(int(found[1]), operator, int(found[3])))
    except IllegalStep as illegal:
        raise ToolException(illegal.reason) from illegal


@dataclass(frozen=True, slots=True)
class Planned:
    """A planning step: what it decided and what the search behind it took."""

    step: int
    decision: str
    score: float | None
    inherited: int  # thoughts that this search began with, found by the step before
    thoughts: int
    computed: int
    cached: int
    stop: str
    limit: str | None


@dataclass(frozen=True, slots=True)
class Observed:
    """What a tool returned."""

    expression: str
    result: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of the run."""

    text: str
    solved: bool


Moment = Planned | Observed | Answered


async def play(
    engine: Engine, puzzle: Puzzle, *, computed_tokens: int, seed: int, trace: Path
) -> AsyncIterator[Moment]:
    """Play `puzzle`, at most `computed_tokens` a planning step; the log of every step's search goes to `trace`."""
    setting = SETTINGS[SEARCH]
    graph = create_planning_agent(
        engine,
        dialect=CountdownDialect(engine, temperature=setting.temperature),
        tools=[calculator],
        strategy=setting.strategy,
        verifier=countdown_verifier(engine),
        budget=Budget(computed_tokens=computed_tokens),
        seed=seed,
        trace=trace,
    ).compile()
    teller = _Teller()
    start: PlanState = {"messages": [HumanMessage(prompt_text(puzzle).strip())]}
    async for update in graph.astream(start, stream_mode="updates"):
        for moment in teller.tell(update):
            yield moment


class _Teller:
    """Makes moments of a graph's updates."""

    def __init__(self) -> None:
        self._expressions: dict[str, str] = {}
        self._below = 0  # thoughts that the newest step left below its decision

    def tell(self, update: dict[str, Any]) -> list[Moment]:
        return [moment for values in update.values() for moment in self._node(values)]

    def _node(self, values: dict[str, Any]) -> list[Moment]:
        moments: list[Moment] = []
        note: dict[str, Any] = values.get("tts", {})
        if note and not values["messages"]:
            moments.append(Answered("no decision: " + note["outcome"]["cut"], False))
        for message in values["messages"]:
            if isinstance(message, ToolMessage):
                moments.append(Observed(self._expressions.get(message.tool_call_id, ""), message.text))
            elif isinstance(message, AIMessage) and message.tool_calls:
                self._expressions |= {str(call["id"]): call["args"]["expression"] for call in message.tool_calls}
                moments.append(self._planned(note, message))
            elif isinstance(message, AIMessage):
                moments.append(Answered(message.text, bool(note["outcome"]["solved"])))
        return moments

    def _planned(self, note: dict[str, Any], message: AIMessage) -> Planned:
        outcome = note["outcome"]
        usage = outcome["usage"]
        inherited = self._below if note["carried"] else 0
        self._below = len(note.get("subtree", ()))
        return Planned(
            step=note["step"],
            decision=str(outcome["decision"]).strip(),
            score=message.response_metadata["tts"]["score"],
            inherited=inherited,
            thoughts=outcome["thoughts"] - inherited,
            computed=usage.get("prompt_computed", 0) + usage.get("decoded", 0),
            cached=usage.get("prompt_cached", 0),
            stop=outcome["stop"],
            limit=outcome["limit"],
        )
