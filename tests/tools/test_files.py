"""The file tools read one folder and nothing outside it."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tools.files import CHARACTERS, ENTRIES, LINES, LONGEST, WIDTH, make_file_tools


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
    answer = ask(folder, "read_file", path="long.txt")
    assert answer.endswith(f"{LINES - 1}\n... and 5 more lines; go on with first_line={LINES + 1}")
    (folder / "wide.txt").write_text("x" * (CHARACTERS + 1))
    answer = ask(folder, "read_file", path="wide.txt")
    assert answer.endswith(f"x\n... and more of this line; go on with first_line=1, first_character={CHARACTERS + 1}")
    assert ask(folder, "read_file", path="wide.txt", first_character=CHARACTERS + 1) == "x"
    assert "has 8001 characters" in ask(folder, "read_file", path="wide.txt", first_character=CHARACTERS + 2)


texts = st.lists(
    st.one_of(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=9),
              st.integers(0, 3 * CHARACTERS).map("x".__mul__)),
    max_size=12,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, st.integers(1, 3))
def test_whoever_goes_on_as_the_answers_say_reads_every_character(folder: Path, some: list[str], times: int) -> None:
    lines = (some * 40 * times)[: 3 * LINES] if len("".join(some)) < 200 else some
    text = "\n".join(lines)
    (folder / "text.txt").write_bytes(text.encode())
    read, where = "", {"first_line": 1}
    while True:
        answer = ask(folder, "read_file", path="text.txt", **where)
        more = re.search(r"\n\.\.\. and (?P<left>\d+ more lines|more of this line); go on with (?P<where>.*)\Z", answer)
        part = answer[: more.start()] if more else answer
        assert len(part) <= CHARACTERS
        read += part + ("\n" if more and more["left"] != "more of this line" else "")
        if not more:
            break
        where = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", more["where"])}
    assert read == "\n".join(text.splitlines())


def test_long_listings_and_searches_end_with_a_whole_line_and_say_how_much_is_left(folder: Path) -> None:
    many = folder / "many"
    many.mkdir()
    for number in range(ENTRIES + 1):
        (many / f"{number:03}{'n' * 100}").write_text("one needle" + "y" * 2 * WIDTH)
    *names, note = ask(folder, "list_files", path="many").splitlines()
    assert all(len(name) == 103 for name in names) and note == f"... and {ENTRIES + 1 - len(names)} more"
    *hits, note = ask(folder, "search_files", text="needle", path="many").splitlines()
    assert all(hit.startswith("many/") and hit.endswith("yyy...") for hit in hits)
    assert note == f"... and {ENTRIES + 1 - len(hits)} more lines; look for a longer text or in one file"
    assert len("\n".join(hits)) <= CHARACTERS


def test_a_file_too_large_is_not_read_and_a_search_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.files.BYTES", 18)
    (folder / "large.txt").write_text("x" * 19)
    assert "more than 18 bytes" in ask(folder, "read_file", path="large.txt")
    assert "more than 18 bytes" in ask(folder, "search_files", text="x", path="large.txt")
    assert ask(folder, "search_files", text="two").splitlines() == [
        "sub/b.txt:1: needle two",
        "... 2 files of more than 18 bytes were not searched",
    ]


def test_a_pipe_is_refused_and_left_out(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for name, arguments in (("read_file", {}), ("search_files", {"text": "needle"})):
        assert "is no file but a pipe" in ask(folder, name, path="pipe", **arguments)
    assert "is no folder" in ask(folder, "list_files", path="pipe")
    assert "a.txt:2" in ask(folder, "search_files", text="needle")


def odd_links(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "up").symlink_to("..")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "endless").symlink_to("x" * 300)


def test_links_that_lead_nowhere_are_listed_and_refused(folder: Path) -> None:
    odd_links(folder)
    assert {"loop", "dangling", "endless"} <= set(ask(folder, "list_files").splitlines())
    assert ask(folder, "search_files", text="second") == "a.txt:2: second needle"
    for path in ("loop", "loop/a.txt", "dangling", "endless", "x" * 300):
        for name, arguments in (("read_file", {}), ("list_files", {}), ("search_files", {"text": "needle"})):
            answer = ask(folder, name, path=path, **arguments)
            assert repr(path) in answer and "list_files shows what there is" in answer


def test_a_path_longer_than_any_is_refused_in_a_few_words(folder: Path) -> None:
    for arguments in ({"path": "x" * (LONGEST + 1)}, {"text": "x" * (LONGEST + 1), "path": "."}):
        answer = ask(folder, "search_files" if "text" in arguments else "read_file", **arguments)
        assert f"at most {LONGEST}" in answer and len(answer) < 100


def test_names_that_are_not_utf8_are_counted_and_never_said(folder: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (folder / f"{odd}.txt").write_text("needle")
    (folder / odd).mkdir()
    (folder / odd / "c.txt").write_text("needle three")
    (folder / "plain").symlink_to(odd)
    listed = ask(folder, "list_files")
    assert listed.endswith("\n... and 2 whose names are not UTF-8, which cannot be read")
    found = ask(folder, "search_files", text="needle")
    refused = ask(folder, "read_file", path=f"{odd}.txt")
    assert "is no path" in refused
    for answer in (listed, found, refused):
        answer.encode()
    assert ask(folder, "search_files", text="needle", path="plain") == "plain/c.txt:1: needle three"


def test_a_search_in_a_file_that_is_no_text_says_so(folder: Path) -> None:
    assert ask(folder, "search_files", text="needle", path="raw.bin") == "'raw.bin' is not a text in UTF-8"


def test_no_answer_names_the_folder_itself(folder: Path) -> None:
    odd_links(folder)
    os.mkfifo(folder / "pipe")
    paths = [
        "loop",
        "loop/x",
        "endless",
        "x" * 300,
        "x/" * 2000,
        "a\0b",
        "\ud800",
        "pipe",
        "raw.bin",
        "a.txt/b",
        "up",
        "no",
    ]
    for path in paths:
        for name, arguments in (("read_file", {}), ("list_files", {}), ("search_files", {"text": "needle"})):
            assert str(folder) not in ask(folder, name, path=path, **arguments)


parts = st.sampled_from(["..", "sub", "link", ".", "secret.txt", "a.txt", "~", "loop", "up", "dangling"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(parts, min_size=1, max_size=6))
@example(["loop", "..", "up", "secret.txt"])
def test_no_path_reads_what_lies_outside(folder: Path, parts: list[str]) -> None:
    if not (folder / "loop").is_symlink():
        odd_links(folder)
    assert "needle: secret" not in ask(folder, "read_file", path="/".join(parts))
    assert "secret.txt" not in ask(folder, "list_files", path="/".join(parts)).splitlines()
    assert ": secret" not in ask(folder, "search_files", text="needle", path="/".join(parts))


def test_there_must_be_a_folder(folder: Path) -> None:
    with pytest.raises(NotADirectoryError, match="create it first"):
        make_file_tools(folder / "a.txt")
