"""Every example runs, offline, on the planner that ships with the package."""

import subprocess
import sys
from pathlib import Path

import pytest

from tts_agent.pocket import model_folder

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def run(example: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_as_it_is(example: Path) -> None:
    assert "solved" in run(example).lower()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_engine_can_be_switched(example: Path) -> None:
    assert run(example, "--engine", f"embedded://{model_folder()}", "--seed", "3")
