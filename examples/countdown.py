"""A LangGraph agent solves a puzzle: each decision is the result of a search.

python examples/countdown.py "Make 24 from 8 5 3 1"
"""

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # graphs/ and tools/ are not part of the installed package

from langchain_core.messages import HumanMessage

from graphs.countdown import COMPUTED_TOKENS, ENGINE, build
from tts_agent import Budget, load_engine


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzle", nargs="?", default="Make 24 from 8 5 3 1")
    parser.add_argument("--engine", default=ENGINE, help="where tokens come from (default: %(default)s)")
    parser.add_argument("--computed-tokens", type=int, default=COMPUTED_TOKENS, help="limit of the whole run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    engine = load_engine(options.engine)
    agent = build(engine, run_budget=Budget(computed_tokens=options.computed_tokens), seed=options.seed).compile()
    async for update in agent.astream({"messages": [HumanMessage(options.puzzle)]}, stream_mode="updates"):
        for node, state in update.items():
            for message in state["messages"]:
                print(f"{node:>5}: {message.text.strip()}")
            if "tts" in state:
                outcome, carried = state["tts"]["outcome"], state["tts"]["carried"]
                print(f"       {outcome['thoughts']} thoughts, stop: {outcome['stop']}, carried over: {carried}")
    await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main())
