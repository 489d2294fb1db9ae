"""The SQLite tools read one database and can do nothing else."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from langchain_core.tools import BaseTool

from tools.sqlite import ROWS, make_sqlite_tools


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


def test_long_answers_and_endless_questions_are_cut(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n {}) SELECT {} FROM n"
    lines = named(database)["sqlite_query"].invoke({"sql": count.format("WHERE i < 1000", "i")}).splitlines()
    assert len(lines) == ROWS + 2 and "narrow the question" in lines[-1]
    monkeypatch.setattr("tools.sqlite.SECONDS", 0.05)
    assert "took longer than" in named(database)["sqlite_query"].invoke({"sql": count.format("", "count(*)")})


def test_there_must_be_a_database(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        make_sqlite_tools(tmp_path / "none.db")
