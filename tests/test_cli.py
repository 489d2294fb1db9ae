"""The `tts-agent` command."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import make_engine, make_task, make_verifier
from tts_agent import BestFirst, Budget, Outcome, __version__, search
from tts_agent.cli import main
from tts_agent.trace import Recorder


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """A trace of two searches, `first` and `second`."""
    path = tmp_path_factory.mktemp("cli") / "trace.jsonl"
    outcomes = [asyncio.run(record(path, name, seed)) for seed, name in enumerate(("first", "second"))]
    return path, outcomes


async def record(path: Path, name: str, seed: int) -> Outcome:
    engine = make_engine()
    return await search(
        engine,
        make_task(engine, solvable=False),
        strategy=BestFirst(k=4),
        verifier=make_verifier(engine),
        budget=Budget(computed_tokens=1500),
        seed=seed,
        name=name,
        journal=Recorder(path),
    )


def test_tree_shows_every_search_of_the_file(
    trace: tuple[Path, list[Outcome]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tree", str(trace[0])]) == 0
    text = capsys.readouterr().out
    assert text.index("first: best_first") < text.index("second: best_first")
    assert "hidden" in text


def test_tree_html_is_a_page_of_every_search(
    trace: tuple[Path, list[Outcome]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "tree.html"
    assert main(["tree", str(trace[0]), "--html", str(page)]) == 0
    assert f"wrote {page}: 2 searches" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "<h2>first</h2>" in text and "<h2>second</h2>" in text and "not listed" not in text
    assert main(["tree", str(trace[0]), "--html", str(page), "--search", "first"]) == 0
    assert "<h2>second</h2>" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("wanted", ["second", "2"])
def test_tree_selects_a_search_by_name_or_number(
    trace: tuple[Path, list[Outcome]], capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    assert main(["tree", str(trace[0]), "--search", wanted]) == 0
    text = capsys.readouterr().out
    assert "second: best_first" in text and "first: best_first" not in text


def test_tree_all_hides_nothing(trace: tuple[Path, list[Outcome]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tree", str(trace[0]), "--search", "1", "--all"]) == 0
    text = capsys.readouterr().out
    assert "hidden" not in text
    assert all(f"#{number} " in text for number in trace[1][0].tree.thoughts)


def test_tree_json_is_the_tree_and_its_numbers(
    trace: tuple[Path, list[Outcome]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tree", str(trace[0]), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    for one, outcome in zip(data["searches"], trace[1], strict=True):
        assert one["thoughts"] == outcome.tree.to_json()
        assert one["stop"] == "budget" and one["limit"] == "computed_tokens" and one["cut"] == ""
        assert one["chosen"] == [thought.id for thought in outcome.path]
        assert one["statistics"]["computed_tokens"] == outcome.usage.computed


def test_a_cut_trace_is_shown_with_its_cut_and_is_no_failure(
    trace: tuple[Path, list[Outcome]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_bytes(trace[0].read_bytes()[:4000])
    assert main(["tree", str(path)]) == 0
    assert "is cut in the middle" in " ".join(capsys.readouterr().out.split())


def test_errors_are_one_line_on_stderr_and_status_2(
    trace: tuple[Path, list[Outcome]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("notes\n")
    for arguments, words in (
        (["tree", str(tmp_path / "none.jsonl")], "No such file"),
        (["tree", str(other)], "not a trace"),
        (["tree", str(trace[0]), "--search", "third"], "1 = 'first', 2 = 'second'"),
        (["tree", str(trace[0]), "--search", "3"], "no search '3'"),
        (["tree", str(trace[0]), "--html", str(tmp_path / "no" / "page.html")], "cannot write the page"),
        (["tree", str(trace[0]), "--html", str(tmp_path / "page.html"), "--json"], "name one of them"),
        (["demo", "--puzzles", "0"], "puzzles=0 must be at least 1"),
        (["demo", "--engine", "llama://x"], "unknown engine 'llama://x'"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_wrong_arguments_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["plant"], ["tree"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "usage: tts-agent" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_tree_needs_no_engine_and_no_graph_library(trace: tuple[Path, list[Outcome]]) -> None:
    program = (
        "import sys; from tts_agent.cli import main; main(['tree', sys.argv[1]]); "
        "heavy = {'torch', 'transformers', 'langgraph', 'langchain_core'} & sys.modules.keys(); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program, str(trace[0])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_crash(trace: tuple[Path, list[Outcome]]) -> None:
    command = f"{sys.executable} -m tts_agent.cli tree {trace[0]} --all | head -c 10"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
