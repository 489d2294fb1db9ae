"""Questions to one SQLite database, which they cannot change."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from langchain_core.tools import BaseTool, StructuredTool, ToolException

ROWS = 50
"""Most rows of an answer."""
CHARACTERS = 4000
"""Longest answer."""
SECONDS = 5.0
"""Longest time a question may take."""
_STEPS = 10_000  # virtual machine instructions between two looks at the clock

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def make_sqlite_tools(path: str | Path) -> list[BaseTool]:
    """Two tools: `sqlite_schema` shows the tables of the database `path`, `sqlite_query` answers one SELECT.

    The file is opened read-only, anew for each question, and only reading is authorised: no other database can be
    attached, no extension loaded, no setting changed. Raises `FileNotFoundError` if there is no such file.
    """
    database = Path(path).resolve()
    if not database.is_file():
        raise FileNotFoundError(f"there is no database {str(path)!r}; create it first")

    def sqlite_schema() -> str:
        """Show the tables of the database and their columns, as the statements that made them."""
        made = _ask(database, "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
        return "\n".join(str(row[0]) for row in made[1]) or "the database has no tables"

    def sqlite_query(sql: str) -> str:
        """Answer one SELECT statement over the database. The first line names the columns."""
        columns, rows = _ask(database, sql)
        lines = [" | ".join(columns), *(" | ".join(map(_shown, row)) for row in rows[:ROWS])]
        if len(rows) > ROWS:
            lines.append(f"... more than {ROWS} rows; narrow the question with WHERE, or count with COUNT(*)")
        answer = "\n".join(lines)
        return answer if len(answer) <= CHARACTERS else answer[:CHARACTERS] + "\n... cut; select fewer columns"

    return [StructuredTool.from_function(tool, handle_tool_error=True) for tool in (sqlite_schema, sqlite_query)]


def _ask(database: Path, sql: str) -> tuple[list[str], list[tuple[object, ...]]]:
    """Columns and at most `ROWS + 1` rows. Raises `ToolException` with the reason."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)
            deadline = time.monotonic() + SECONDS
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            cursor = connection.execute(sql)
            rows = cursor.fetchmany(ROWS + 1)
            return [column[0] for column in cursor.description or ()], rows
    except sqlite3.Error as error:
        raise ToolException(_reason(error, sql)) from error


def _reason(error: sqlite3.Error, sql: str) -> str:
    match error.sqlite_errorcode if hasattr(error, "sqlite_errorcode") else None:
        case sqlite3.SQLITE_AUTH:
            return f"{sql!r} does more than read; write one SELECT statement"
        case sqlite3.SQLITE_INTERRUPT:
            return f"{sql!r} took longer than {SECONDS:g} seconds; ask for less"
    return f"{sql!r} failed: {error}"


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return "NULL" if value is None else str(value)
