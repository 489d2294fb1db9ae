"""A process that plans once, or goes on with what a killed one left.

Run by `python -m tests.nodes.victim FOLDER STRATEGY SEED`.

In FOLDER: `engine.jsonl`, what the engine computed; `heard.txt`, the samples it was asked for; `trace.jsonl`; the
checkpoints; `result.json`, written at the end.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tests.nodes.world import STRATEGIES, make_engine, make_graph

CONFIG = {"configurable": {"thread_id": "1"}}


async def main(folder: Path, strategy: str, seed: int) -> None:
    heard = open(folder / "heard.txt", "a", encoding="utf-8")  # noqa: SIM115

    def note(prefix: str, sample: int) -> None:
        heard.write(f"{os.getpid()} {sample}\n")
        heard.flush()

    engine = make_engine(heard=note, record=folder / "engine.jsonl", pace=0.002)
    graph = make_graph(
        engine,
        strategy=STRATEGIES[strategy],
        solvable=seed % 2 == 0,
        seed=seed,
        trace=folder / "trace.jsonl",
        flush_events=10,
        grant=0.08,
    )
    async with AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        agent = graph.compile(checkpointer=saver)
        state = await agent.aget_state(CONFIG)
        if not state.values or state.next:
            await agent.ainvoke(None if state.next else {"messages": [HumanMessage("go")]}, CONFIG)
        result = (await agent.aget_state(CONFIG)).values["tts"]
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    heard.close()
    await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
