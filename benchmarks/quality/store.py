"""Results on disk: one JSON line for each try, so that a benchmark that was interrupted goes on where it was."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.quality.attempt import Attempt, Reading
from tts_agent.errors import ConfigError
from tts_agent.pocket import Puzzle


class Key(NamedTuple):
    """Which try it was. `fingerprint` names model and settings: a changed one makes it another try."""

    task: str
    split: str
    arm: str
    limit: int
    numbers: tuple[int, ...]
    target: int
    seed: int
    fingerprint: str

    @classmethod
    def of(cls, task: str, split: str, arm: str, limit: int, puzzle: Puzzle, seed: int, fingerprint: str) -> "Key":
        return cls(task, split, arm, limit, puzzle.numbers, puzzle.target, seed, fingerprint)


@dataclass(slots=True)
class Store:
    """The tries in `path`, which need not exist yet. Each is appended the moment it has ended.

    A last line that was torn by a kill is dropped. Raises `ConfigError` for a file that holds anything else.
    """

    path: Path
    rows: dict[Key, Attempt]

    @classmethod
    def open(cls, path: Path) -> "Store":
        rows = dict(_read(path)) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path, rows)

    def add(self, key: Key, attempt: Attempt) -> None:
        line = {**key._asdict(), **asdict(attempt)}
        line["readings"] = {str(budget): list(reading) for budget, reading in attempt.readings.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self.rows[key] = attempt


def _read(path: Path) -> Iterator[tuple[Key, Attempt]]:
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            yield _parse(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{str(path)!r} line {number} is no result of this benchmark ({error}); give another --out"
            ) from error


def _parse(row: dict[str, Any]) -> tuple[Key, Attempt]:
    row["numbers"] = tuple(row["numbers"])
    row["samples"] = tuple(row["samples"])
    row["readings"] = {int(budget): Reading(*reading) for budget, reading in row["readings"].items()}
    key = Key(**{name: row.pop(name) for name in Key._fields})
    return key, Attempt(**row)
