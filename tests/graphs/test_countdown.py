"""The ready-made Countdown agent, on the planner that ships with the package."""

import subprocess
import sys
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage

from graphs.countdown import COMPUTED_TOKENS, build, graph
from tests.nodes.table import make_engine
from tts_agent import Beam
from tts_agent.pocket.countdown import prompt_text
from tts_agent.pocket.puzzles import load

ROOT = Path(__file__).parents[2]


def test_importing_it_loads_no_model() -> None:
    code = "import sys, graphs.countdown; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


async def test_it_plays_puzzles_never_trained_on_within_its_budget() -> None:
    agent = graph()
    right = 0
    for puzzle in [*load("countdown4", "dev")[:3], *load("game24", "dev")[:3]]:
        result = await agent.ainvoke({"messages": [HumanMessage(prompt_text(puzzle))]})
        totals = result["tts"]["totals"]["usage"]
        assert totals["prompt_computed"] + totals["decoded"] <= COMPUTED_TOKENS
        final = result["messages"][-1]
        if isinstance(final, AIMessage) and not final.tool_calls and final.text.endswith(" Solved."):
            right += 1
            assert eval(final.text.split(" = ")[0]) == puzzle.target
    assert right > 0


def test_the_settings_can_be_replaced() -> None:
    agent = build(make_engine(), strategy=Beam(k=3, keep=2), name="think").compile()
    assert "think" in agent.get_graph().nodes
