"""A search is killed and goes on where it was: a process plans, dies by SIGKILL, and another one takes over.

python examples/resume.py "Make 89 from 5 5 9 3 1"

The checkpoints lie in a SQLite file (`pip install langgraph-checkpoint-sqlite`); any checkpointer of LangGraph will do.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/ are not part of the installed package

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tools.calculator import calculator
from tts_agent import BestFirst, Budget, load_engine
from tts_agent.nodes import Progress, create_planning_agent
from tts_agent.pocket import countdown_verifier
from tts_agent.pocket.dialect import CountdownDialect

CONFIG: Any = {"configurable": {"thread_id": "1"}}
LIMIT = 2500


async def plan(options: argparse.Namespace, checkpoints: str) -> None:
    """Plan from the beginning, or from what the checkpoints hold; say a line for every thought."""
    engine = load_engine(options.engine)
    graph = create_planning_agent(
        engine,
        dialect=CountdownDialect(engine),
        tools=[calculator],
        strategy=BestFirst(k=4),
        verifier=countdown_verifier(engine),
        run_budget=Budget(computed_tokens=LIMIT),
        flush_events=16,  # for a long search the default, 256, is cheaper
        seed=options.seed,
    )
    async with AsyncSqliteSaver.from_conn_string(checkpoints) as saver:
        agent: Any = graph.compile(checkpointer=saver)
        begun = (await agent.aget_state(CONFIG)).next
        start = None if begun else {"messages": [HumanMessage(options.puzzle)]}
        async for data in agent.astream(start, CONFIG, stream_mode="custom"):
            told = Progress.read(data)
            if told.kind == "thought":
                print("from the checkpoint" if told.replayed else "sampled", flush=True)
        state = (await agent.aget_state(CONFIG)).values
    usage, lost = state["tts"]["totals"]["usage"], state["tts"]["totals"]["lost"]
    computed = usage.get("prompt_computed", 0) + usage.get("decoded", 0)
    print(state["messages"][-1].text)
    print(
        f"{computed} tokens were computed and {lost.get('computed_tokens', 0)} more are charged for what the killed "
        f"process may have used; the limit is {LIMIT}"
    )
    await engine.aclose()


def start(options: argparse.Namespace, checkpoints: str) -> "subprocess.Popen[str]":
    """Another process that plans."""
    command = [sys.executable, __file__, options.puzzle, "--engine", options.engine, "--seed", str(options.seed)]
    return subprocess.Popen([*command, "--checkpoints", checkpoints], stdout=subprocess.PIPE, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzle", nargs="?", default="Make 89 from 5 5 9 3 1")
    parser.add_argument("--engine", default="embedded://pocket", help="where tokens come from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", help=argparse.SUPPRESS)  # what the processes are told that plan
    options = parser.parse_args()
    if options.checkpoints:
        asyncio.run(plan(options, options.checkpoints))
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = str(Path(folder) / "checkpoints.db")
        victim, sampled = start(options, checkpoints), 0
        assert victim.stdout is not None
        for _ in victim.stdout:
            sampled += 1
            if sampled == 40:
                victim.kill()
                break
        victim.communicate()
        if victim.returncode >= 0:  # a process that a signal ended has a negative one
            failed = f"failed with status {victim.returncode}"
            done = "was done before it could be killed; state a harder puzzle"
            sys.exit(f"the first process {failed if victim.returncode else done}")
        print(f"killed after {sampled} thoughts")
        heir = start(options, checkpoints)
        said = heir.communicate()[0].splitlines()
        if heir.returncode:
            sys.exit(f"the second process failed with status {heir.returncode}")
    print(
        f"{said.count('from the checkpoint')} thoughts came from the checkpoint, {said.count('sampled')} were sampled"
    )
    print("\n".join(line for line in said if line not in ("from the checkpoint", "sampled")))


if __name__ == "__main__":
    main()
