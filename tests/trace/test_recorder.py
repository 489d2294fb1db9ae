"""Traces: what was written is read back, what was cut is named, what was killed goes on."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripts import make_engine, make_task, make_verifier
from tests.trace.victim import LIMIT, run
from tts_agent import Beam, BestFirst, Budget, Outcome, ScriptedEngine, search
from tts_agent.errors import ConfigError, LogError
from tts_agent.events import VERSION, Chosen, Deepened, Event, Granted, Opened, Sampled
from tts_agent.trace import Log, Recorder, read, remove


async def record(path: Path, name: str, *, seed: int = 0) -> Outcome:
    engine = make_engine()
    return await search(
        engine,
        make_task(engine),
        strategy=BestFirst(k=3, parallel=2),
        verifier=make_verifier(engine),
        budget=Budget(computed_tokens=3000),
        seed=seed,
        name=name,
        journal=Recorder(path),
        flush_events=20,
    )


class Recorded:
    """One recorded search: what is in the file, and its events."""

    def __init__(self, content: bytes, events: list[Event]) -> None:
        self.content, self.events = content, events


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    path = tmp_path_factory.mktemp("trace") / "one.jsonl"
    outcome = asyncio.run(record(path, "one", seed=3))
    return Recorded(path.read_bytes(), list(outcome.log))


async def test_searches_of_one_file_are_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "trace.jsonl"
    first, second = await record(path, "a"), await record(path, "b", seed=1)
    logs = read(path)
    assert [log.search for log in logs] == ["a", "b"]
    assert [list(log.events) for log in logs] == [list(first.log), list(second.log)]
    assert all(log.complete for log in logs)
    assert logs[1].opened.seed == 1


async def test_searches_side_by_side_keep_their_lines_apart(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    outcomes = await asyncio.gather(*(record(path, name, seed=ord(name)) for name in "abcd"))
    logs = {log.search: list(log.events) for log in read(path)}
    assert logs == {name: list(outcome.log) for name, outcome in zip("abcd", outcomes, strict=True)}


async def test_a_name_opened_twice_gives_two_logs(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    outcomes = [await record(path, "again", seed=seed) for seed in (1, 2)]
    assert [list(log.events) for log in read(path)] == [list(outcome.log) for outcome in outcomes]


async def test_a_cut_search_that_is_written_anew_gives_one_log(trace: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(trace.content[: len(trace.content) // 2])
    await record(path, "one", seed=4)
    assert [log.complete for log in read(path)] == [False, True]  # another seed is another search
    path.write_bytes(trace.content[: len(trace.content) // 2])
    await record(path, "one", seed=3)
    (log,) = read(path)
    assert log.complete and list(log.events) == trace.events


async def test_a_search_that_was_killed_during_its_commit_can_be_resumed_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"

    async def run(log: Sequence[Event] = ()) -> Outcome:
        engine = ScriptedEngine(lambda prefix, seed: "dd\n", judge=lambda prefix: 0.5)  # nothing but dead ends
        settings: dict[str, Any] = {"strategy": Beam(k=2, keep=1), "budget": Budget(computed_tokens=60)}
        return await search(engine, make_task(engine), **settings, log=log, journal=Recorder(path))

    await run()
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:cut]))
        outcome = await run(read(path)[-1].events)
        assert list(read(path)[-1].events) == list(outcome.log)
        again = path.read_bytes().splitlines(keepends=True)
        for place in range(cut, len(again)):
            path.write_bytes(b"".join(again[:place]))
            outcome = await run(read(path)[-1].events)
            assert list(read(path)[-1].events) == list(outcome.log)


async def test_a_search_that_goes_on_after_its_end_and_is_written_anew_gives_one_log(
    trace: Recorded, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(trace.content)
    again = [*trace.events, Deepened({"computed_tokens": 10}), trace.events[-1]]
    await Recorder(path).append(again)
    (log,) = read(path)
    assert list(log.events) == again and log.complete


def test_every_line_names_its_search_and_carries_the_texts(trace: Recorded) -> None:
    lines = [json.loads(line) for line in trace.content.splitlines()]
    assert {line["search"] for line in lines} == {"one"}
    assert lines[0]["version"] == VERSION
    assert all("text" in line["thought"] for line in lines if line["kind"] == "sampled")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_shows_what_is_whole_and_names_the_cut(
    trace: Recorded, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole, events = trace.content, trace.events
    size = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.mktemp("cut") / "cut.jsonl"
    path.write_bytes(whole[:size])
    lines = whole[:size].count(b"\n")
    if not lines:
        with pytest.raises(LogError, match=r"empty|cut in its first line"):
            read(path)
        return
    (log,) = read(path)
    assert list(log.events) == events[:lines]
    assert not log.complete
    assert f"line {lines}" in log.cut
    assert (f"line {lines + 1} is cut in the middle" in log.cut) == (not whole[:size].endswith(b"\n"))


@given(st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_search_goes_on_from_a_cut_trace(
    trace: Recorded, tmp_path_factory: pytest.TempPathFactory, where: float
) -> None:
    whole = trace.content
    path = tmp_path_factory.mktemp("resume") / "cut.jsonl"
    path.write_bytes(whole[: max(int(len(whole) * where), whole.index(b"\n") + 1)])
    (log,) = read(path)
    engine = make_engine()
    outcome = asyncio.run(
        search(
            engine,
            make_task(engine),
            strategy=BestFirst(k=3, parallel=2),
            verifier=make_verifier(engine),
            budget=Budget(computed_tokens=3000),
            name="one",
            journal=Recorder(path),
            log=log.events,
        )
    )
    (resumed,) = read(path)
    assert resumed.complete
    assert list(resumed.events) == list(outcome.log)
    durable = durable_part(log)
    assert resumed.events[: len(durable)] == durable
    sampled = [event.thought.id for event in resumed.events if isinstance(event, Sampled)]
    assert len(sampled) == len(set(sampled))


def durable_part(log: Log) -> tuple[Event, ...]:
    """The whole chunks: a kill may have torn the last one."""
    ends = [place for place, event in enumerate(log.events, 1) if isinstance(event, Granted | Chosen)]
    return log.events[: max(ends, default=0)]


def test_a_killed_search_goes_on_from_its_trace(tmp_path: Path) -> None:
    path, served = tmp_path / "trace.jsonl", tmp_path / "served.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "tests.trace.victim", str(path), str(served)])
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b'"judged"') < 12):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (log,) = read(path)
    assert log.cut
    durable = [event for event in durable_part(log) if isinstance(event, Sampled)]
    assert durable

    engine = make_engine(record=served)
    outcome = asyncio.run(run(engine, path, log))
    asyncio.run(engine.aclose())
    (resumed,) = read(path)
    assert isinstance(resumed.events[-1], Chosen)
    sampled = [event for event in resumed.events if isinstance(event, Sampled)]
    assert sampled[: len(durable)] == durable
    assert len({event.thought.id for event in sampled}) == len(sampled)
    assert not outcome.tree.thoughts.keys() - {event.thought.id for event in sampled}

    spent = [json.loads(line) for line in served.read_text().splitlines()]
    assert sum(usage.get("prompt_computed", 0) + usage.get("decoded", 0) for usage in spent) <= LIMIT
    straight = asyncio.run(run(make_engine(), tmp_path / "straight.jsonl"))
    assert outcome.tree.to_json() == straight.tree.to_json()


def test_another_version_is_refused_naming_both(trace: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    path.write_bytes(trace.content.replace(b'"version":%d' % VERSION, b'"version":7', 1))
    with pytest.raises(LogError, match=rf"version 7.*version {VERSION}"):
        read(path)


def test_a_damaged_line_before_the_end_is_named(trace: Recorded, tmp_path: Path) -> None:
    lines = trace.content.splitlines(keepends=True)
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(b"".join([*lines[:4], lines[4][:20] + b"\n", *lines[5:]]))
    with pytest.raises(LogError, match="line 5 is damaged"):
        read(path)


def test_a_trace_without_its_head_is_refused(trace: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "headless.jsonl"
    path.write_bytes(trace.content.partition(b"\n")[2])
    with pytest.raises(LogError, match=r"line 1.*'one' was never opened"):
        read(path)


@pytest.mark.parametrize("content", [b"# A read me\n", b'{"kind": "opened"}\n', b"PK\x03\x04", b"\xff\xfe"])
def test_what_is_no_trace_is_neither_read_nor_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(LogError, match="not a trace"):
        read(path)
    with pytest.raises(LogError, match="not a trace"):
        asyncio.run(record(path, "a"))
    with pytest.raises(LogError, match="not a trace"):
        remove(path)
    assert path.read_bytes() == content


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"nowhere.jsonl.*No such file"):
        read(tmp_path / "nowhere.jsonl")


async def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="cannot be written"):
        await record(tmp_path, "a")


async def test_a_recorder_needs_a_search_to_continue(trace: Recorded, tmp_path: Path) -> None:
    later = [event for event in trace.events if not isinstance(event, Opened)]
    with pytest.raises(LogError, match="no search that 'reserved' could continue"):
        await Recorder(tmp_path / "new.jsonl").append(later)


async def test_a_half_line_is_dropped_when_a_new_search_begins(trace: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "half.jsonl"
    path.write_bytes(trace.content[:40])
    outcome = await record(path, "new")
    (log,) = read(path)
    assert list(log.events) == list(outcome.log)


async def test_remove_deletes_a_trace_and_nothing_else(trace: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    remove(path)
    path.write_bytes(trace.content)
    remove(path)
    assert not path.exists()


async def test_beams_are_recorded_like_any_search(tmp_path: Path) -> None:
    engine = make_engine()
    outcome = await search(
        engine,
        make_task(engine),
        strategy=Beam(k=4, keep=2),
        verifier=make_verifier(engine),
        name="beam",
        journal=Recorder(tmp_path / "beam.jsonl"),
    )
    assert list(read(tmp_path / "beam.jsonl")[0].events) == list(outcome.log)


@pytest.mark.parametrize("kind", ["planned", "sampled"])
def test_a_trace_with_a_line_missing_is_refused_and_the_gap_named(trace: Recorded, tmp_path: Path, kind: str) -> None:
    lines = trace.content.splitlines(keepends=True)
    place = next(place for place, line in enumerate(lines) if f'"kind":"{kind}"'.encode() in line)
    path = tmp_path / "gap.jsonl"
    path.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    with pytest.raises(LogError, match="gap"):
        read(path)


@pytest.mark.parametrize("path", [5, None, b"trace.jsonl", ["trace.jsonl"]])
def test_what_is_no_path_is_no_trace(path: Any) -> None:
    with pytest.raises(ConfigError, match=r"trace=.* must be the path of a file"):
        Recorder(path)
