"""A human reviews what a search found: the graph waits, shows the candidates, and goes on with the answer.

python examples/interrupt.py "Make 24 from 8 5 3 1"

Here a rule stands in for the human: as long as nothing is solved it asks for more budget, then it takes the best.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/ are not part of the installed package

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from tools.calculator import calculator
from tts_agent import BestFirst, Budget, Outcome, load_engine
from tts_agent.nodes import create_planning_agent
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect


def unsure(outcome: Outcome) -> bool:
    """Ask about what is not proven."""
    return not outcome.solved


def show(question: dict[str, Any]) -> None:
    stopped = f"{question['stop']} ({question['limit']})" if question["limit"] else question["stop"]
    print(f"{question['search']}: stopped by {stopped}, {question['usage']['calls']} calls; what shall be done?")
    for candidate in question["candidates"]:
        cost = candidate["usage"].get("prompt_computed", 0) + candidate["usage"].get("decoded", 0)
        answer = " | ".join(candidate["answer"].strip().splitlines())
        print(f"  #{candidate['choice']}: {answer}  (score {candidate['score']}, {cost} tokens computed)")


def decide(question: dict[str, Any], asked: int) -> dict[str, Any]:
    """The answer: a choice, an edit, or more budget (see `tts_agent.nodes.review`)."""
    if "more" in question["answers"] and asked < 8:
        return {"more": {"computed_tokens": 200}}
    if question["answers"].get("choose"):
        return {"choose": question["answers"]["choose"][0]}
    return {"edit": {"content": "I do not know. Not solved."}}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzle", nargs="?", default="Make 24 from 8 5 3 1")
    parser.add_argument("--engine", default="embedded://pocket", help="where tokens come from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    engine = load_engine(options.engine)
    agent: Any = create_planning_agent(
        engine,
        dialect=CountdownDialect(engine),
        tools=[calculator],
        strategy=BestFirst(k=4),
        verifier=countdown_verifier(engine),
        budget=Budget(computed_tokens=80),
        review=unsure,
        seed=options.seed,
    ).compile(checkpointer=InMemorySaver())

    config: Any = {"configurable": {"thread_id": "1"}}
    result = await agent.ainvoke({"messages": [HumanMessage(options.puzzle)]}, config)
    asked = 0
    while waiting := result.get("__interrupt__"):
        question = waiting[0].value
        show(question)
        answer = decide(question, asked)
        print(f"  -> {answer}")
        result, asked = await agent.ainvoke(Command(resume=answer), config), asked + 1
    print(result["messages"][-1].text)
    await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main())
