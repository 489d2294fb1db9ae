"""What somebody who watches a search by the `custom` stream knows of it."""

from collections.abc import Iterable
from typing import Any


class Screen:
    """A tree kept from what was told: what comes at a position takes the place of what was there and after it."""

    def __init__(self, told: Iterable[dict[str, Any]] = ()) -> None:
        self.log: list[dict[str, Any]] = []
        self.fresh: list[tuple[int, str]] = []  # what was told as new
        for data in told:
            self.show(data)

    def show(self, data: dict[str, Any]) -> None:
        if data.get("replayed"):
            if self.log and self.log[-1]["at"] >= data["at"]:
                return  # seen before
        else:
            while self.log and self.log[-1]["at"] > data["at"]:
                self.log.pop()
            if self.log and self.log[-1]["at"] == data["at"] and self.log[-1]["type"] == data["type"]:
                self.log.pop()
            self.fresh.append((data["at"], data["type"]))
        self.log.append(data)

    def rows(self) -> list[dict[str, Any]]:
        """As `ThoughtTree.to_json`."""
        rows: dict[int, dict[str, Any]] = {}
        for data in self.log:
            match data["type"]:
                case "tts.thought":
                    rows[data["branch"]] = {
                        "id": data["branch"],
                        "parent": data["parent"],
                        "text": data["text"],
                        "status": data["status"],
                    }
                case "tts.verdict":
                    rows[data["branch"]]["score"] = None if data["score"] is None else round(data["score"], 6)
                case "tts.merged":
                    rows[data["branch"]]["merged"] = data["into"]
                case "tts.pruned":
                    rows[data["branch"]]["pruned"] = data["reason"]
        return [rows[number] for number in sorted(rows)]

    def last(self, kind: str) -> dict[str, Any]:
        return next(data for data in reversed(self.log) if data["type"] == kind)
