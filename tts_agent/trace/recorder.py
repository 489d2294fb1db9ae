"""A search's log as a file of JSON Lines: written chunk by chunk, read back, resumed."""

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tts_agent.errors import ConfigError, LogError
from tts_agent.events import COMMIT, KILLED, Chosen, Event, Granted, Lost, Opened, from_json, to_json
from tts_agent.tree import ThoughtTree

_HEAD = b'{"search":'
"""How every line of a trace begins."""
_BLOCK = 65536

_writing = threading.Lock()
"""Held while a trace is written, so that recorders side by side never see each other's half lines."""


@dataclass(frozen=True, slots=True)
class Log:
    """One search of a trace. `cut` names what is missing at its end; empty if it is there to the decision.

    `events` are whole and in order, so a search that was cut can be resumed from them; it goes back to the last of
    its chunks that is whole.
    """

    search: str
    events: tuple[Event, ...]
    cut: str = ""

    @property
    def complete(self) -> bool:
        return not self.cut

    @property
    def opened(self) -> Opened:
        """The event that says what the search is: root, strategy, budget, seed."""
        first = self.events[0]
        assert isinstance(first, Opened)
        return first


def trace_path(path: str | Path) -> Path:
    """Where a trace is to be. Raises `ConfigError` for what is no path."""
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"trace={path!r} must be the path of a file")
    return Path(path)


class Recorder:
    """A journal that appends chunks of a search's log to the file `path`, one event a line, texts included.

    A chunk is on the disk when `append` returns. Several searches may go to one file, one after the other or, in one
    process, side by side under different names; every line carries the name of its search. A recorder whose first
    chunk does not open a search continues `search`, by default the last one of the file, so
    `search(..., log=read(path)[-1].events, journal=Recorder(path))` resumes what was killed.

    Raises `ConfigError` for a `path` that is none.
    """

    def __init__(self, path: str | Path, *, search: str | None = None) -> None:
        self.path = trace_path(path)
        self._search = search
        self._ready = False

    async def append(self, chunk: Sequence[Event]) -> None:
        """Write `chunk`. Raises `LogError` where the file cannot be written, or there is no search to continue."""
        if chunk:
            # NOTE: in a thread, because a disk may take its time over fsync and the searches must not wait for it.
            writing = asyncio.ensure_future(asyncio.to_thread(self._write, tuple(chunk)))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait([writing])  # who writes to the file next must not find this thread at it
                raise

    def _write(self, chunk: tuple[Event, ...]) -> None:
        try:
            with _writing:
                if not self._ready:
                    self._prepare(chunk[0])
                lines = b"".join([self._line(event) for event in chunk])
                with open(self.path, "ab") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise LogError(f"trace {str(self.path)!r} cannot be written: {error}; choose another path") from error

    def _prepare(self, first: Event) -> None:
        """Drop the half line that a kill may have left, and find the search to continue."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = _whole_bytes(self.path) if self.path.exists() else 0
        if self._search is None and not isinstance(first, Opened):
            if not whole:
                raise LogError(f"trace {str(self.path)!r} has no search that {first.kind!r} could continue")
            self._search = read(self.path)[-1].search
        if self.path.exists() and whole < self.path.stat().st_size:
            os.truncate(self.path, whole)
        self._ready = True

    def _line(self, event: Event) -> bytes:
        if isinstance(event, Opened):
            self._search = event.search
        return orjson.dumps({"search": self._search, **to_json(event)}, option=orjson.OPT_APPEND_NEWLINE)


def _whole_bytes(path: Path) -> int:
    """Bytes up to the last newline. Raises `LogError` for a file that is no trace: it would be damaged."""
    with open(path, "rb") as file:
        if not _HEAD.startswith(head := file.read(len(_HEAD))):
            raise _not_a_trace(path)
        end = file.seek(0, os.SEEK_END) if head else 0
        while end > 0:
            begin = max(end - _BLOCK, 0)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return 0


def remove(path: str | Path) -> None:
    """Delete the trace `path`, if there is one. Raises `LogError` for a file that is no trace."""
    path = Path(path)
    try:
        if path.exists():
            _whole_bytes(path)
            path.unlink()
    except OSError as error:
        raise LogError(f"trace {str(path)!r} cannot be replaced: {error.strerror}; choose another path") from error


def _not_a_trace(path: Path) -> LogError:
    return LogError(f"{str(path)!r} is not a trace; give a file that a Recorder or 'tts-agent demo' wrote")


def read(path: str | Path) -> list[Log]:
    """The searches of a trace, in the order they were opened.

    A name opened twice gives two logs, but a search that was cut, or went on after its end, and was then written anew
    from its beginning gives one.

    A file that ends in the middle of a line, or a search that ends before its decision, is returned as far as it is
    whole, and `Log.cut` names what is missing. Raises `LogError` for a file that cannot be read, is no trace or of
    another version, or is damaged before its end.
    """
    path = Path(path)
    try:
        *lines, half = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LogError(
            f"trace {str(path)!r} cannot be read: {error.strerror}; give the path of a trace file"
        ) from error
    first = lines[0] if lines else half
    if not (first.startswith(_HEAD) or _HEAD.startswith(first)):
        raise _not_a_trace(path)
    if not lines:
        what = "was cut in its first line" if half else "is empty"
        raise LogError(f"trace {str(path)!r} {what}; run the search again")
    return _logs(path, lines, bool(half))


def _logs(path: Path, lines: list[bytes], half: bool) -> list[Log]:
    opened: list[_Open] = []
    current: dict[str, _Open] = {}
    for number, line in enumerate(lines, 1):
        name, event = _event(path, number, line)
        if isinstance(event, Opened):
            if name in current and current[name].is_replaced_by(event):
                opened.remove(current[name])
            current[name] = _Open(name)
            opened.append(current[name])
        elif name not in current:
            raise LogError(f"trace {str(path)!r}, line {number}: search {name!r} was never opened")
        current[name].add(event, number)
    whole = [entry for place, entry in enumerate(opened) if not any(map(entry.goes_on_in, opened[place + 1 :]))]
    logs = [entry.log(len(lines), half) for entry in whole]
    for log in logs:
        try:
            ThoughtTree(log.events)
        except LogError as error:
            raise LogError(f"trace {str(path)!r}, search {log.search!r}: {error}") from error
    return logs


@dataclass(slots=True, eq=False)
class _Open:
    """A search while its trace is read."""

    search: str
    events: list[Event] = field(default_factory=list)
    whole: int = 0  # events in whole chunks
    line: int = 0  # where the last event stands

    def add(self, event: Event, line: int) -> None:
        if isinstance(event, Lost) and event.reservation is None:
            # A killed search goes on. It went back to its last whole chunk: the torn one after it counts for nothing.
            # What it writes off of a commit comes first.
            commit = self.events[-1:] if _is_killed_commit(self.events[-1]) else []
            self.events[self.whole :] = commit
        self.events.append(event)
        self.line = line
        if isinstance(event, Granted | Chosen):
            self.whole = len(self.events)

    def is_replaced_by(self, again: Opened) -> bool:
        """Whether `again` opens the same search anew: it was killed before anything was durable, or is resumed from
        another journal than this trace, and then written here from its beginning."""
        unfinished = not isinstance(self.events[-1], Chosen)
        return unfinished and (not self.whole or self.events[0] == again)

    def goes_on_in(self, again: "_Open") -> bool:
        """Whether `again` tells this search, which had ended, from its beginning and then further."""
        size = len(self.events)
        return self.search == again.search and size < len(again.events) and again.events[:size] == self.events

    def log(self, lines: int, half: bool) -> Log:
        cut = ""
        if not isinstance(self.events[-1], Chosen):
            cut = f"the log ends before the decision, after {self.events[-1].kind!r} in line {self.line}"
            # Whose line it was cannot be read any more; the search that wrote last is the likely one.
            if half and self.line == lines:
                cut += f"; line {lines + 1} is cut in the middle"
        return Log(self.search, tuple(self.events), cut)


def _is_killed_commit(event: Event) -> bool:
    return isinstance(event, Lost) and event.reservation == COMMIT and event.reason == KILLED


def _event(path: Path, number: int, line: bytes) -> tuple[str, Event]:
    try:
        data: dict[str, Any] = json.loads(line)
        name = data["search"]
        if data["kind"] != Opened.kind:
            del data["search"]
        return name, from_json(data)
    except LogError as error:
        raise LogError(f"trace {str(path)!r}, line {number}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LogError(
            f"trace {str(path)!r}, line {number} is damaged: {error!r}; the lines before it are still good"
        ) from error
