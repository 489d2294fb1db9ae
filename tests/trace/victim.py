"""A process that searches slowly, writes its trace, and is killed by its test."""

import asyncio
import sys
from pathlib import Path

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import Beam, Budget, Outcome, search
from tts_agent.engines import ScriptedEngine
from tts_agent.trace import Log, Recorder

LIMIT = 6000  # computed tokens


async def run(engine: ScriptedEngine, trace: Path, log: Log | None = None) -> Outcome:
    return await search(
        engine,
        make_task(engine, solvable=False),
        strategy=Beam(k=6, keep=3),
        verifier=make_verifier(engine),
        budget=Budget(computed_tokens=LIMIT),
        journal=Recorder(trace),
        log=log.events if log else (),
        name="victim",
        flush_events=16,
    )


if __name__ == "__main__":
    asyncio.run(run(make_engine(record=Path(sys.argv[2]), pace=0.005), Path(sys.argv[1])))
