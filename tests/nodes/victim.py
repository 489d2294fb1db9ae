"""A process that plans once, or goes on with what a killed one left.

In its folder: `engine.jsonl`, what the engine computed; `heard.txt`, the samples it was asked for; `trace.jsonl`;
`result.json`, written at the end.
"""

import asyncio
import json
import os
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command

from tests.nodes.savers import async_saver_at, saver_at
from tests.nodes.world import STRATEGIES, make_engine, make_graph
from tts_agent import BestFirst, Budget, Usage

PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "tests.nodes.victim", "psycopg", "langgraph.checkpoint.postgres.aio"])


SMALL, MORE = 1200, 1800
REVIEWED: dict[str, Any] = {
    "review": 2,
    "budget": Budget(computed_tokens=SMALL),
    "strategy": BestFirst(k=3, parallel=2),
    "solvable": False,
}


@dataclass(frozen=True, slots=True)
class Victim:
    """What to plan, where, and in which checkpointer (see `savers.py`)."""

    folder: Path
    saver: str
    strategy: str
    seed: int
    asynchronous: bool
    reviewed: bool = False  # a small budget, and a reviewer who gives more once

    @property
    def config(self) -> Any:
        return {"configurable": {"thread_id": str(self.folder)}}

    def start(self) -> BaseProcess:
        """Run it in a process of its own, forked from one that has imported everything."""
        process = PROCESSES.Process(target=run, args=(self,))
        process.start()
        return process


def run(victim: Victim) -> None:
    heard = open(victim.folder / "heard.txt", "a", encoding="utf-8")  # noqa: SIM115

    def note(prefix: str, sample: int) -> None:
        heard.write(f"{os.getpid()} {sample}\n")
        heard.flush()

    engine = make_engine(heard=note, record=victim.folder / "engine.jsonl", pace=0.002)
    settings: dict[str, Any] = {"strategy": STRATEGIES[victim.strategy], "solvable": victim.seed % 2 == 0}
    graph = make_graph(
        engine,
        seed=victim.seed,
        trace=victim.folder / "trace.jsonl",
        flush_events=10,
        grant=0.08,
        **(settings | (REVIEWED if victim.reviewed else {})),
    )
    result = asyncio.run(plan_async(victim, graph)) if victim.asynchronous else plan(victim, graph)
    (victim.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def asked(state: Any) -> Any:
    """What to invoke a graph in this state with: to go on, or from the beginning."""
    return None if state.next else {"messages": [HumanMessage("go")]}


def answer(result: Any) -> Any:
    """What a reviewer says to the question in `result`: more, if there was none yet, else what the search chose."""
    question = result["__interrupt__"][0].value
    charged = Usage.from_json(question["usage"]).computed + question["lost"].get("computed_tokens", 0)
    if charged + question["room"]["computed_tokens"] <= SMALL:
        return Command(resume={"more": {"computed_tokens": MORE}})
    return Command(resume={"choose": question["chosen"]})


def plan(victim: Victim, graph: Any) -> Any:
    with saver_at(victim.saver) as saver:
        agent = graph.compile(checkpointer=saver)
        state = agent.get_state(victim.config)
        if not state.values or state.next:
            result = agent.invoke(asked(state), victim.config)
            while "__interrupt__" in result:
                result = agent.invoke(answer(result), victim.config)
        return agent.get_state(victim.config).values["tts"]


async def plan_async(victim: Victim, graph: Any) -> Any:
    async with async_saver_at(victim.saver) as saver:
        agent = graph.compile(checkpointer=saver)
        state = await agent.aget_state(victim.config)
        if not state.values or state.next:
            result = await agent.ainvoke(asked(state), victim.config)
            while "__interrupt__" in result:
                result = await agent.ainvoke(answer(result), victim.config)
        return (await agent.aget_state(victim.config)).values["tts"]


def stored(saver: BaseCheckpointSaver[Any], config: Any) -> list[Any]:
    """All that tasks stored in the thread of `config`."""
    thread = config["configurable"]["thread_id"]
    saved = [one for one in saver.list(None) if one.config["configurable"]["thread_id"] == thread]
    return [value for one in saved for _, _, value in one.pending_writes or ()]
