"""What the middleware costs: CPU a candidate, above as many bare calls of the handler.

python -m benchmarks.middleware --json

Each arm is an agent of LangChain that makes one decision from `candidates` calls of one model, which answers at once:
`bare` awaits the handler so many times and takes the first answer, and `search` is `PlanSearchMiddleware` with a judge.
`idle` is the bare arm inside a middleware that only hands on, and `budget` inside a `BudgetMiddleware` of hard tokens.
What they add, `search` to `bare` and `budget` to `idle`, is divided by the candidates. The arms take turns; figures are
medians of CPU.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult

from tts_agent import Budget
from tts_agent.middleware import BudgetMiddleware, Candidate, PlanSearchMiddleware, TextBound


class Instant(BaseChatModel):
    """Says a number at once, another one each time."""

    max_tokens: int = 256
    said: list[int] = [0]

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.said[0] += 1
        usage = UsageMetadata(input_tokens=300, output_tokens=4, total_tokens=304)
        message = AIMessage(f"answer {self.said[0]}", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages)


class Bare(AgentMiddleware[Any, Any, Any]):
    """The handler, so many times, side by side, and the first answer of them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        return (await asyncio.gather(*(handler(request) for _ in range(self.n))))[0]


class Idle(AgentMiddleware[Any, Any, Any]):
    """Hands on."""

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        return await handler(request)


def judge(candidate: Candidate) -> float:
    return 1 / (1 + len(candidate.text))


def agents(n: int) -> dict[str, Any]:
    model = Instant()
    guard = BudgetMiddleware(Budget(calls=10**9, total_tokens=10**12), prompt_bound=TextBound())
    middleware: dict[str, list[Any]] = {
        "bare": [Bare(n)],
        "search": [PlanSearchMiddleware(n, judge=judge, concurrency=n)],
        "idle": [Idle(), Bare(n)],
        "budget": [guard, Bare(n)],
    }
    return {name: create_agent(model, [], middleware=each) for name, each in middleware.items()}


async def measure(n: int, rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of one decision, by arm."""
    arms = agents(n)
    times: dict[str, list[float]] = {name: [] for name in arms}
    question: Any = {"messages": [("user", "A question of ordinary length. " * 40)]}
    for turn in range(rounds + 1):
        for name, agent in arms.items():
            begun = time.process_time()
            await agent.ainvoke(question)
            if turn:  # the first one warms up
                times[name].append((time.process_time() - begun) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.middleware", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--candidates", type=int, nargs="*", default=[1, 4, 16, 64], help="of a decision (1 4 16 64)")
    parser.add_argument("--rounds", type=int, default=101, help="interleaved runs of each arm (101)")
    options = parser.parse_args(argv)
    print("milliseconds of CPU a decision, and what is added for each candidate")
    rows = []
    for n in options.candidates:
        cost = asyncio.run(measure(n, options.rounds))
        pairs = {"search": "bare", "budget": "idle"}
        above = {f"{arm}_above_{base}_ms": round((cost[arm] - cost[base]) / n, 3) for arm, base in pairs.items()}
        rows.append({"candidates": n, **{f"{arm}_ms": round(value, 2) for arm, value in cost.items()}, **above})
        costs = "   ".join(f"{arm} {value:7.2f}" for arm, value in cost.items())
        print(f"  {n:4} candidates   {costs}   {above}")
    if options.json:
        print(json.dumps({"rounds": options.rounds, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
