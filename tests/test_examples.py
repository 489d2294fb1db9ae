"""Every example runs, offline, on the planner that ships with the package."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tts_agent.pocket import model_folder

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def ran(example: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", str(example), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def run(example: Path, *arguments: str) -> str:
    done = ran(example, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_example_hides_a_package_from_itself() -> None:
    """A script's folder is the first place where it imports from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[^\w-]", one)[0].lower().replace("-", "_") for one in needed}
    assert {"langgraph", "sglang", "torch"} <= names
    stems = {example.stem for example in EXAMPLES}
    assert not stems & (names | sys.stdlib_module_names)
    assert not any(importlib.util.find_spec(stem) for stem in stems)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_as_it_is(example: Path) -> None:
    assert "solved" in run(example).lower()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_engine_can_be_switched(example: Path) -> None:
    assert run(example, "--engine", f"embedded://{model_folder()}", "--seed", "3")


# --- the two processes of resume.py

RESUME = ROOT / "examples" / "resume.py"


@pytest.mark.parametrize(
    ("puzzle", "reason"),
    [
        ("hello", "the first process failed with status 1"),
        ("Make 10 from 5 5", "the first process was done before it could be killed; state a harder puzzle"),
    ],
)
def test_a_process_that_nobody_killed_is_no_resumption(puzzle: str, reason: str) -> None:
    done = ran(RESUME, puzzle)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == reason


def test_the_failure_of_the_second_process_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("resume_example", RESUME)
    assert spec is not None and spec.loader is not None
    resume = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the example adds to it
    spec.loader.exec_module(resume)
    programs = ["import time; print('sampled\\n' * 40, flush=True); time.sleep(100)", "raise SystemExit(3)"]

    def start(options: Any, checkpoints: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-c", programs.pop(0)], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(resume, "start", start)
    monkeypatch.setattr(sys, "argv", ["resume.py"])
    with pytest.raises(SystemExit, match="the second process failed with status 3"):
        resume.main()
    assert capsys.readouterr().out == "killed after 40 thoughts\n"
