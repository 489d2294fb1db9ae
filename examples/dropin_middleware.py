"""An agent of LangChain as many have it, and the same one that thinks before it acts. One line differs.

python examples/dropin_middleware.py "Make 24 from 8 5 3 1"

Each step samples eight next actions, a judge scores them, and the best one is carried out. All calls of the run, the
candidates included, are held to a budget. The model is the one of `dropin_node.py`; put yours in its place.
"""

import argparse
import sys
from math import exp
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/ are not part of the installed package

from langchain.agents import create_agent

from examples.dropin_node import PlannerChat
from tools.calculator import calculator
from tts_agent import Budget, load_engine
from tts_agent.dialect import Request
from tts_agent.engines import Engine
from tts_agent.loop import run_sync
from tts_agent.middleware import BudgetMiddleware, Candidate, PlanSearchMiddleware
from tts_agent.pocket.dialect import CountdownDialect


class Judge:
    """Asks the planner whether the target can still be reached after a step."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.dialect = engine, CountdownDialect(engine)

    async def __call__(self, candidate: Candidate) -> float | None:
        request = self.dialect.request(candidate.request.messages, None)
        if not isinstance(request, Request) or not candidate.message.tool_calls:
            return None
        branch = request.task.root.extend(self.engine.encode(f"{candidate.message.text}\n"))
        labels = [self.engine.encode(word)[0] for word in ("sure", "impossible")]
        [answer] = await self.engine.label_logprobs([branch], self.engine.encode("?"), labels)
        sure, impossible = answer.logprobs
        return 1 / (1 + exp(impossible - sure))


def before(engine: Engine, seed: int) -> Any:
    model = PlannerChat(engine=engine, seeds=[seed])
    return create_agent(model, [calculator])


def after(engine: Engine, seed: int) -> Any:
    model = PlannerChat(engine=engine, seeds=[seed])
    return create_agent(model, [calculator], middleware=[BUDGET, PlanSearchMiddleware(8, judge=Judge(engine))])


BUDGET = BudgetMiddleware(Budget(calls=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzle", nargs="?", default="Make 24 from 8 5 3 1")
    parser.add_argument("--engine", default="embedded://pocket", help="where tokens come from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    engine = load_engine(options.engine)
    for make in (before, after):
        result = make(engine, options.seed).invoke({"messages": [("user", options.puzzle)]})
        print(f"{make.__name__:>6}: {result['messages'][-1].text}")
    print(f"        {result['tts_budgets']['agent']['usage']['calls']} calls of {BUDGET.budget.budget.calls}")
    run_sync(engine.aclose())


if __name__ == "__main__":
    main()
