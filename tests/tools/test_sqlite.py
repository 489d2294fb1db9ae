"""The SQLite tools read one database and can do nothing else."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.tools import BaseTool

from tools.sqlite import BYTES, CHARACTERS, LONGEST, ROWS, SECONDS, make_sqlite_tools


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT, cents INTEGER, photo BLOB)")
        connection.executemany("INSERT INTO orders (item, cents) VALUES (?, ?)", [("tea", 300), ("cup", None)])
        connection.execute("UPDATE orders SET photo = x'00ff' WHERE id = 1")
        connection.commit()
    return path


def named(path: Path) -> dict[str, BaseTool]:
    return {tool.name: tool for tool in make_sqlite_tools(path)}


def ask(path: Path, sql: str) -> str:
    answer: str = named(path)["sqlite_query"].invoke({"sql": sql})
    return answer


def test_a_model_sees_the_schema_and_answers_with_columns(database: Path) -> None:
    tools = named(database)
    assert "CREATE TABLE orders" in tools["sqlite_schema"].invoke({})
    answer = tools["sqlite_query"].invoke({"sql": "SELECT item, cents, photo FROM orders ORDER BY id"})
    assert answer.splitlines() == ["item | cents | photo", "tea | 300 | <2 bytes>", "cup | NULL | NULL"]
    assert tools["sqlite_query"].invoke({"sql": "SELECT count(*) AS n FROM orders"}) == "n\n2"


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM orders",
        "INSERT INTO orders (item) VALUES ('x')",
        "DROP TABLE orders",
        "CREATE TABLE x (y)",
        "ATTACH DATABASE '/tmp/other.db' AS other",
        "PRAGMA writable_schema = 1",
        "SELECT load_extension('x')",
        "SELECT 1; DELETE FROM orders",
        "VACUUM INTO '/tmp/copy.db'",
    ],
)
def test_whatever_does_more_than_read_is_refused_and_changes_nothing(database: Path, sql: str) -> None:
    before = database.read_bytes()
    answer = named(database)["sqlite_query"].invoke({"sql": sql})
    assert sql[:6] in answer and any(word in answer for word in ("does more than read", "failed", "one statement"))
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT load_extension('x')",
        "SELECT Load_Extension('x', 'y')",
        "SELECT * FROM pragma_table_info('orders')",
        "SELECT * FROM json_each('[1]')",
        "CREATE TEMP TABLE x (y)",
        "PRAGMA query_only = 0",
        "SAVEPOINT x",
    ],
)
def test_what_is_not_authorised_is_called_more_than_reading(database: Path, sql: str) -> None:
    assert "does more than read; write one SELECT" in ask(database, sql)


def test_a_column_may_be_called_like_what_is_not_authorised(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "odd.db")) as connection:
        connection.execute("CREATE TABLE t (load_extension)")
    assert ask(tmp_path / "odd.db", "SELECT load_extension FROM t") == "load_extension"


@pytest.mark.parametrize("sql", ["", "-- nothing", "REINDEX"])
def test_what_asks_nothing_is_refused(database: Path, sql: str) -> None:
    assert ask(database, sql) == f"{sql!r} asks nothing; write one SELECT statement"


def test_long_answers_and_endless_questions_are_cut(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n {}) SELECT {} FROM n"
    lines = named(database)["sqlite_query"].invoke({"sql": count.format("WHERE i < 1000", "i")}).splitlines()
    assert len(lines) == ROWS + 2 and "narrow the question" in lines[-1]
    monkeypatch.setattr("tools.sqlite.SECONDS", 0.05)
    assert "took longer than" in named(database)["sqlite_query"].invoke({"sql": count.format("", "count(*)")})


COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT {} FROM n"


def test_no_single_step_outlasts_the_limit(database: Path) -> None:
    a, b = f"hex(zeroblob({BYTES // 2 - 1}))", f"hex(zeroblob({BYTES // 4}))||'1'"
    began = time.monotonic()
    assert ask(database, f"SELECT instr({a}, {b}) AS i") == "i\n0"
    assert ask(database, f"SELECT length(replace({a}, {b}, '')) AS i") == f"i\n{BYTES - 2}"
    assert ask(database, f"SELECT {a} LIKE '%{'0' * 900}1' AS i") == "i\n0"
    assert ask(database, f"SELECT {a} GLOB '*{'[01]' * 240}2' AS i") == "i\n0"
    assert "failed" in ask(database, f"SELECT {a} LIKE '%{'0' * 2000}1'")
    assert time.monotonic() - began < SECONDS
    for sql in ("instr(zeroblob(2000000), zeroblob(1000000)||x'01')", f"zeroblob({BYTES + 1})"):
        assert f"a value of more than {BYTES} bytes" in ask(database, f"SELECT {sql}")


def test_the_limit_on_time_holds_for_many_quick_rows_and_for_one_slow_row(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.sqlite.SECONDS", 0.2)
    slow = f"sum(length(hex(zeroblob({BYTES // 2 - 9} + i % 2))))"
    for sql in (COUNT.format(-1, slow), COUNT.format(-1, "i") + " WHERE i < 0", COUNT.format(-1, "i") + " ORDER BY i"):
        began = time.monotonic()
        assert "took longer than 0.2 seconds" in ask(database, sql)
        assert time.monotonic() - began < 2


def test_large_rows_are_read_only_as_far_as_they_are_shown(database: Path) -> None:
    blobs = ", ".join(f"zeroblob({BYTES}) AS c{column}" for column in range(100))
    assert ask(database, COUNT.format(-1, blobs)).endswith("... cut; select fewer columns or rows")
    wide = ask(database, COUNT.format(-1, f"hex(zeroblob({BYTES // 2 - 1}))"))
    assert len(wide) < CHARACTERS + 100 and wide.endswith("... cut; select fewer columns or rows")


def test_a_long_schema_is_cut_after_a_whole_statement_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "many.db"
    with closing(sqlite3.connect(path)) as connection:
        for number in range(71):
            connection.execute(f"CREATE TABLE tab{number:03} (x)")
        connection.commit()
        assert named(path)["sqlite_schema"].invoke({}).splitlines() == [
            f"CREATE TABLE tab{n:03} (x)" for n in range(71)
        ]
        for number in range(71, 300):
            connection.execute(f"CREATE TABLE tab{number:03} (x)")
        connection.commit()
    *shown, note = named(path)["sqlite_schema"].invoke({}).splitlines()
    assert shown == [f"CREATE TABLE tab{n:03} (x)" for n in range(len(shown))] and len(shown) > 71
    assert note.startswith(f"... and {300 - len(shown)} more of 300 statements; ask sqlite_query")
    assert "tab299" in ask(path, "SELECT sql FROM sqlite_master WHERE name = 'tab299'")


def test_one_statement_longer_than_an_answer_is_cut(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "wide.db")) as connection:
        connection.execute(f"CREATE TABLE t ({', '.join(f'column{number}' for number in range(900))})")
    shown, note = named(tmp_path / "wide.db")["sqlite_schema"].invoke({}).splitlines()
    assert len(shown) == CHARACTERS and note.startswith("... and 1 more of 1 statements")
    header = ask(tmp_path / "wide.db", "SELECT * FROM t")
    assert len(header) < CHARACTERS + 100 and header.endswith("... cut; select fewer columns or rows")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=[])), st.integers(1, 3 * LONGEST), st.booleans())
def test_any_text_gets_an_answer_of_limited_length(database: Path, text: str, times: int, quoted: bool) -> None:
    sql = (text * times)[: 3 * LONGEST]
    answer = ask(database, f"SELECT {sql!r}" if quoted else sql)
    assert len(answer) < CHARACTERS + 100
    answer.encode()


def test_a_refusal_repeats_the_beginning_of_a_long_question(database: Path) -> None:
    assert f"at most {LONGEST}" in ask(database, "SELECT " + "x" * LONGEST)
    for sql in ("SELECT x" + "y" * 9000, "SELECT '\ud800'" + " " * 9000, "SELECT (" * 1000):
        answer = ask(database, sql)
        assert sql[:7] in answer and "failed: " in answer and len(answer) < 600


# Write-ahead logs


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    path = tmp_path / "log" / "shop.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE orders (item TEXT)")
        connection.execute("INSERT INTO orders VALUES ('tea')")
        connection.commit()
    return path


def test_nothing_is_left_beside_a_database_with_a_write_ahead_log(logged: Path) -> None:
    assert ask(logged, "SELECT item FROM orders") == "item\ntea"
    assert "orders" in named(logged)["sqlite_schema"].invoke({})
    assert [file.name for file in logged.parent.iterdir()] == ["shop.db"]


def test_what_stands_only_in_the_log_is_read(logged: Path) -> None:
    with closing(sqlite3.connect(logged)) as connection:
        connection.execute("INSERT INTO orders VALUES ('cup')")
        connection.commit()
        assert ask(logged, "SELECT item FROM orders") == "item\ntea\ncup"
    assert ask(logged, "SELECT item FROM orders") == "item\ntea\ncup"


def test_an_answer_from_a_database_that_was_written_meanwhile_is_not_given(
    logged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1, 2])
    monkeypatch.setattr("tools.sqlite._written", lambda database: next(times))
    assert ask(logged, "SELECT item FROM orders") == "somebody wrote to the database meanwhile; ask again"


def test_a_database_without_a_log_is_read_under_its_locks(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.sqlite.SECONDS", 0.1)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in ask(database, "SELECT item FROM orders")


def test_a_file_that_is_no_database_or_is_gone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("hello" * 1000)
    tools = named(path)
    assert "file is not a database" in tools["sqlite_schema"].invoke({})
    path.unlink()
    assert "unable to open" in tools["sqlite_schema"].invoke({})


def test_there_must_be_a_database(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        make_sqlite_tools(tmp_path / "none.db")
