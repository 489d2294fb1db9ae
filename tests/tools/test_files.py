"""The file tools read one folder and nothing outside it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools.files import CHARACTERS, LINES, make_file_tools


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("first\nsecond needle\n")
    (root / "sub" / "b.txt").write_text("needle two\n")
    (root / "raw.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "secret.txt").write_text("needle: secret")
    (root / "link").symlink_to(tmp_path / "secret.txt")
    return root


def ask(folder: Path, name: str, **arguments: Any) -> str:
    return next(tool for tool in make_file_tools(folder) if tool.name == name).invoke(arguments)


def test_a_model_lists_reads_and_searches(folder: Path) -> None:
    assert ask(folder, "list_files").splitlines() == ["a.txt", "link", "raw.bin", "sub/"]
    assert ask(folder, "read_file", path="a.txt") == "first\nsecond needle"
    assert ask(folder, "read_file", path="a.txt", first_line=2) == "second needle"
    assert ask(folder, "search_files", text="needle") == "a.txt:2: second needle\nsub/b.txt:1: needle two"
    assert ask(folder, "search_files", text="none") == "no line contains 'none'"


@pytest.mark.parametrize("path", ["../secret.txt", "link", "/etc/passwd", "sub/../../secret.txt", "a\0b"])
def test_what_leads_out_of_the_folder_is_refused(folder: Path, path: str) -> None:
    for name in ("read_file", "list_files"):
        answer = ask(folder, name, path=path)
        assert "leads out of the folder" in answer or "is no path" in answer
    assert "secret" not in ask(folder, "read_file", path=path).replace(path, "").replace(repr(path), "")


def test_mistakes_are_answered_with_a_remedy(folder: Path) -> None:
    assert "list_files shows" in ask(folder, "read_file", path="nothing.txt")
    assert "is a folder" in ask(folder, "read_file", path="sub")
    assert "is no folder" in ask(folder, "list_files", path="a.txt")
    assert "not a text" in ask(folder, "read_file", path="raw.bin")
    assert "there is no line 9" in ask(folder, "read_file", path="a.txt", first_line=9)
    assert "at least 1" in ask(folder, "read_file", path="a.txt", first_line=0)


def test_long_files_come_in_parts(folder: Path) -> None:
    (folder / "long.txt").write_text("\n".join(map(str, range(LINES + 5))))
    assert ask(folder, "read_file", path="long.txt").endswith(f"{LINES - 1}\n... and 5 more lines")
    (folder / "wide.txt").write_text("x" * (CHARACTERS + 1))
    assert ask(folder, "read_file", path="wide.txt").endswith("... cut; ask for less")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", "sub", "link", ".", "secret.txt", "a.txt", "~"]), min_size=1, max_size=6))
def test_no_path_reads_what_lies_outside(folder: Path, parts: list[str]) -> None:
    assert "needle: secret" not in ask(folder, "read_file", path="/".join(parts))


def test_there_must_be_a_folder(folder: Path) -> None:
    with pytest.raises(NotADirectoryError, match="create it first"):
        make_file_tools(folder / "a.txt")
