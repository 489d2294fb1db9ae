"""Scripted worlds that several tests share: a small random grammar with rules, scores and latencies."""

from collections.abc import Mapping
from pathlib import Path
from random import Random

from tts_agent import LabelVerifier, Prefix, Reading, Sampling, ScriptedEngine, Task, Thought
from tts_agent.engines import Fault

NEWLINE = ord("\n")


def script(prefix: str, seed: int) -> str:
    """A line of one to four letters."""
    rng = Random(f"{prefix}|{seed}")
    return "".join(rng.choice("abcd") for _ in range(rng.randint(1, 4))) + "\n"


def judge(prefix: str) -> float:
    return Random(prefix).random()


def latency(prefix: str, seed: int) -> float:
    return 1 + seed % 7 / 4


def read(parent: Thought | None, text: str) -> Reading:
    """Lines with `dd` are illegal, lines with `bbb` dead; lines that are equal as multisets are the same."""
    line = text.rstrip("\n")
    if "dd" in line:
        return Reading("invalid", reason="dd")
    if "bbb" in line:
        return Reading("dead", reason="bbb")
    if line == "cab":
        return Reading("solved", line, reason="cab")
    return Reading("open", line, f"{parent.id if parent else 0}:{''.join(sorted(line))}")


def make_engine(
    *,
    faults: Mapping[int, Fault] | None = None,
    cache: bool = False,
    context: int | None = None,
    record: Path | None = None,
    pace: float = 0.0,
) -> ScriptedEngine:
    return ScriptedEngine(
        script, judge=judge, latency=latency, faults=faults, cache=cache, context=context, record=record, pace=pace
    )


def make_task(engine: ScriptedEngine, *, max_depth: int = 4, solvable: bool = True) -> Task:
    def never_solved(parent: Thought | None, text: str) -> Reading:
        reading = read(parent, text)
        return reading._replace(status="open", key=text) if reading.status == "solved" else reading

    return Task(
        root=Prefix(engine.encode("root\n")),
        thought=Sampling(max_tokens=6, stop_ids=(NEWLINE,)),
        answer=Sampling(max_tokens=8, stop_ids=()),
        read=read if solvable else never_solved,
        max_depth=max_depth,
    )


def make_verifier(engine: ScriptedEngine) -> LabelVerifier:
    return LabelVerifier(engine, question="?", good="y", bad="n")
