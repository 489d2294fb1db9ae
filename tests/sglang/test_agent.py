"""Whole agents on a real server: LangGraph, tools, search."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from graphs.assistant import QUESTION, make_tools
from graphs.countdown import COMPUTED_TOKENS, build
from tests import models
from tests.sglang.server import Server
from tools.calculator import evaluate
from tts_agent import BestOfN, Budget, Sampling
from tts_agent.dialects import TemplateDialect
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.nodes import create_planning_agent

ROOT = Path(__file__).parents[2]

CALL = r"""
root ::= "<tool_call>\n{\"name\": \"calculator\", \"arguments\": {\"expression\": \"" sum "\"}}\n</tool_call>"
sum ::= number " " [+*] " " number
number ::= [1-9] | [1-9] [0-9]
"""
"""A call of the calculator, and nothing else."""


async def test_the_countdown_agent_plays_within_its_budget(pocket: Server) -> None:
    engine = SGLangEngine(pocket.address)
    await engine.flush()
    before = pocket.computed()
    agent = build(engine).compile()
    result = await agent.ainvoke({"messages": [HumanMessage("Make 24 from 8 5 3 1")]})
    await asyncio.sleep(0.5)
    usage = result["tts"]["totals"]["usage"]
    assert usage["prompt_computed"] + usage["decoded"] == pocket.computed() - before <= COMPUTED_TOKENS
    final = result["messages"][-1]
    assert isinstance(final, AIMessage) and final.text.endswith(" Solved.")
    assert evaluate(final.text.split(" = ")[0]) == 24
    results = [message for message in result["messages"] if isinstance(message, ToolMessage)]
    assert len(results) == 3 and all(message.status == "success" for message in results)
    assert pocket.running() == 0
    await engine.aclose()


async def test_an_assistants_tool_calls_have_the_form_they_must_have(qwen: Server) -> None:
    # Random weights say nothing sensible: what is tested is the form of what they say, who acts on it, and the budget.
    engine = SGLangEngine(qwen.address)
    tools = make_tools()
    sampling = Sampling(max_tokens=90, ebnf=CALL, stop_ids=engine.capabilities.end_ids)
    dialect = TemplateDialect(engine, models.qwen(), tools=tools, sampling=sampling)
    agent = create_planning_agent(
        engine,
        dialect=dialect,
        tools=tools,
        strategy=BestOfN(n=4, width=4),
        verifier=dialect.verifier(QUESTION, good="yes", bad="no"),
        run_budget=Budget(generated_tokens=700),
    )
    before = qwen.metric("generation_tokens_total")
    result = await agent.compile().ainvoke({"messages": [HumanMessage("What is 6 times 7?")]})
    await asyncio.sleep(0.5)
    said = result["messages"]
    assert isinstance(said[1], AIMessage) and isinstance(said[2], ToolMessage)
    (call,) = said[1].tool_calls
    assert call["name"] == "calculator" and set(call["args"]) == {"expression"}
    assert int(json.loads(str(said[2].content))) == evaluate(call["args"]["expression"])
    usage = result["tts"]["totals"]["usage"]
    assert usage["verifier_computed"] > 0
    assert 0 < usage["generated"] <= 700
    assert qwen.metric("generation_tokens_total") - before <= 700
    await engine.aclose()


def test_the_example_runs(pocket: Server) -> None:
    command = [sys.executable, "examples/on_sglang.py", "--engine", f"sglang://127.0.0.1:{pocket.port}"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "SGLang 0.5.23" in said and "solved (stop: solved)" in said
