"""Questions to one SQLite database, which they cannot change."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from langchain_core.tools import BaseTool, StructuredTool, ToolException

ROWS = 50
"""Most rows of an answer."""
CHARACTERS = 4000
"""Longest answer, its last note not counted."""
SECONDS = 5.0
"""Longest time a question may take, between two instructions of SQLite; and longest wait for a lock."""
LONGEST = 10_000
"""Longest question, in characters."""
BYTES = 100_000
"""Largest value that a question may read or make."""
_PATTERN = 1000  # longest pattern of LIKE and GLOB, in bytes: they take time by its length times the value's
_AGAIN = 0.05  # seconds between two interruptions of a question whose time is over
_QUOTED = 200  # most characters of a question or an error that a refusal repeats
_UNCHANGING = "&immutable=1"  # SQLite neither locks the file nor looks for a log beside it

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def make_sqlite_tools(path: str | Path) -> list[BaseTool]:
    """Two tools: `sqlite_schema` shows the tables of the database `path`, `sqlite_query` answers one SELECT.

    The file is opened read-only, anew for each question, and only reading is authorised: no other database can be
    attached, no extension loaded, no setting changed. Virtual tables are not read: they run statements of their own.
    Nothing is left beside the file, unless it has a write-ahead log that others have open or have not put away. Raises
    `FileNotFoundError` if there is no such file.

    A question is ended after `SECONDS`, and fails when it touches a value larger than `BYTES`. Neither is exact: SQLite
    ends a question only between two of its instructions, and one that works on two values of that size (`trim`,
    `instr`, `replace`, `json_patch`) can take about a second; a row takes up to `BYTES` for each of its columns, and
    what is sorted may take space in the folder for temporary files for as long as the question runs.
    """
    database = Path(path).resolve()
    if not database.is_file():
        raise FileNotFoundError(f"there is no database {str(path)!r}; create it first")

    def sqlite_schema() -> str:
        """Show the tables of the database and their columns, as the statements that made them."""
        with _asked(database, "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name") as made:
            statements = [str(row[0]) for row in made]
        size, shown = -1, list[str]()
        for statement in statements:
            size += 1 + len(statement)
            if size > CHARACTERS:
                break
            shown.append(statement)
        if left := len(statements) - len(shown):
            shown = shown or [statements[0][:CHARACTERS]]
            shown.append(
                f"... and {left} more of {len(statements)} statements; ask sqlite_query for them: SELECT name FROM "
                "sqlite_master, then SELECT sql FROM sqlite_master WHERE name = '...'"
            )
        return "\n".join(shown) or "the database has no tables"

    def sqlite_query(sql: str) -> str:
        """Answer one SELECT statement over the database. The first line names the columns."""
        with _asked(database, sql) as cursor:
            answer = " | ".join(column[0] for column in cursor.description)
            for row in islice(cursor, ROWS):
                answer += "\n" + " | ".join(map(_shown, row))
                if len(answer) > CHARACTERS:
                    break
            more = len(answer) <= CHARACTERS and cursor.fetchone() is not None
        if len(answer) > CHARACTERS:
            return f"{answer[:CHARACTERS]}\n... cut; select fewer columns or rows"
        if more:
            return f"{answer}\n... more than {ROWS} rows; narrow the question with WHERE, or count with COUNT(*)"
        return answer

    return [StructuredTool.from_function(tool, handle_tool_error=True) for tool in (sqlite_schema, sqlite_query)]


@contextmanager
def _asked(database: Path, sql: str) -> Iterator[sqlite3.Cursor]:
    """The rows of the answer, as they are found. Raises `ToolException` with the reason why there are none."""
    if len(sql) > LONGEST:
        raise ToolException(f"the question has {len(sql)} characters; at most {LONGEST} are taken")
    refused: list[int] = []

    def authorised(action: int, _: object, name: str | None, *__: object) -> int:
        loads = action == sqlite3.SQLITE_FUNCTION and name == "load_extension"
        if action in _READS and not loads:
            return sqlite3.SQLITE_OK
        refused.append(action)
        return sqlite3.SQLITE_DENY

    written, address = _written(database), _address(database)
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=SECONDS)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, _PATTERN)
            connection.set_authorizer(authorised)
            with _ended(connection):
                cursor = connection.execute(sql)
                if cursor.description is None:
                    raise ToolException(f"{_quoted(sql)} asks nothing; write one SELECT statement")
                yield cursor
        if address.endswith(_UNCHANGING) and _written(database) != written:
            raise ToolException("somebody wrote to the database meanwhile; ask again")
    except (sqlite3.Error, UnicodeError, MemoryError) as error:
        # NOTE: what is refused to a pragma function or a virtual table inside the question comes back as any error.
        reason = (
            "does more than read; write one SELECT statement over ordinary tables, with no pragma or extension"
            if refused
            else _reason(error)
        )
        raise ToolException(f"{_quoted(sql)} {reason}") from error


def _address(database: Path) -> str:
    """The URI that opens `database` to read.

    A reader of a write-ahead log leaves two files beside the database. Where there is no log, nobody has the database
    open, and it is read as a file that does not change.
    """
    try:
        with database.open("rb") as file:
            logged = file.read(20)[18:] == b"\x02\x02"  # the versions to write and read it: with a write-ahead log
    except OSError:
        logged = False  # SQLite says what is wrong with it
    alone = logged and not database.with_name(f"{database.name}-wal").exists()
    return f"{database.as_uri()}?mode=ro{_UNCHANGING if alone else ''}"


def _written(database: Path) -> int:
    """When the file was last written to, in nanoseconds; 0 if that cannot be known."""
    try:
        return database.stat().st_mtime_ns
    except OSError:
        return 0


@contextmanager
def _ended(connection: sqlite3.Connection) -> Iterator[None]:
    """Interrupts what runs on `connection` once `SECONDS` have passed."""
    over = threading.Event()

    def watch() -> None:
        wait = SECONDS
        while not over.wait(wait):
            connection.interrupt()
            wait = _AGAIN  # again, since SQLite forgets an interruption that comes before the statement runs

    watcher = threading.Thread(target=watch, name="sqlite-limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _reason(error: Exception) -> str:
    match getattr(error, "sqlite_errorcode", None):
        case sqlite3.SQLITE_INTERRUPT:
            return f"took longer than {SECONDS:g} seconds; ask for less"
        case sqlite3.SQLITE_TOOBIG:
            return f"reads or makes a value of more than {BYTES} bytes; leave such columns and values out"
    if isinstance(error, MemoryError):
        return "needs more memory than there is; ask for less"
    return f"failed: {str(error)[:_QUOTED]}"


def _quoted(sql: str) -> str:
    return repr(sql) if len(sql) <= _QUOTED else f"{sql[:_QUOTED]!r}..."


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return "NULL" if value is None else str(value)[: CHARACTERS + 1]
