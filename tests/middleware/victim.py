"""A process that runs an agent with a search over its next actions, or goes on with what a killed one left.

Run by `python -m tests.middleware.victim FOLDER sync|async KILLED_AT`. In FOLDER: `calls.txt`, a line for each call of
the model as it begins, by which the calls are numbered; the checkpoints; `result.json`, written at the end. The process
ends abruptly at the call of number KILLED_AT.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tests.middleware.world import Teller, add, calls
from tts_agent.middleware import Candidate, PlanSearchMiddleware

CONFIG: Any = {"configurable": {"thread_id": "1"}}


def make_agent(folder: Path, killed_at: int, saver: Any) -> Any:
    def say(messages: Any, call: int) -> Any:
        with open(folder / "calls.txt", "a+", encoding="utf-8") as file:
            file.seek(0)
            number = len(file.readlines())
            file.write(f"{number}\n")
        if number == killed_at:
            os._exit(9)
        return str(number) if isinstance(messages[-1], ToolMessage) else calls("add", a=number, b=0)

    def judge(candidate: Candidate) -> float:
        said = candidate.message
        return (said.tool_calls[0]["args"]["a"] if said.tool_calls else int(said.text)) / 100

    model = Teller(say, pause=0.05)
    search = PlanSearchMiddleware(4, judge=judge, concurrency=1)
    return create_agent(model, [add], middleware=[search], checkpointer=saver)


def report(folder: Path, result: Any) -> None:
    texts = [message.text for message in result["messages"]]
    (folder / "result.json").write_text(json.dumps(texts), encoding="utf-8")


def main(folder: Path, killed_at: int) -> None:
    with SqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        agent = make_agent(folder, killed_at, saver)
        report(folder, agent.invoke(None if agent.get_state(CONFIG).next else {"messages": [("user", "go")]}, CONFIG))


async def amain(folder: Path, killed_at: int) -> None:
    async with AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.db")) as saver:
        agent = make_agent(folder, killed_at, saver)
        begun = (await agent.aget_state(CONFIG)).next
        report(folder, await agent.ainvoke(None if begun else {"messages": [("user", "go")]}, CONFIG))


if __name__ == "__main__":
    place, kind, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    asyncio.run(amain(place, number)) if kind == "async" else main(place, number)
