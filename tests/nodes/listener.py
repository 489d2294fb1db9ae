"""A process that plans before an audience, or goes on with what a killed one left.

Run by `python -m tests.nodes.listener FOLDER STRATEGY`. In FOLDER: `told.jsonl`, what came on the `custom` stream; the
trace; the checkpoints.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tests.nodes.world import STRATEGIES, make_engine, make_graph

CONFIG: Any = {"configurable": {"thread_id": "1"}}


async def main(folder: Path, strategy: str) -> None:
    graph = make_graph(
        make_engine(pace=0.002),
        strategy=STRATEGIES[strategy],
        solvable=False,
        trace=folder / "trace.jsonl",
        flush_events=10,
        grant=0.08,
        stream_candidates=True,
    )
    async with AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        agent = graph.compile(checkpointer=saver)
        state = await agent.aget_state(CONFIG)
        start: Any = None if state.next else {"messages": [HumanMessage("go")]}
        with open(folder / "told.jsonl", "a", encoding="utf-8") as file:
            async for data in agent.astream(start, CONFIG, stream_mode="custom"):
                file.write(json.dumps(data) + "\n")
                file.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
