"""`sglang.Engine` in the tests' own process: that of the environment in which SGLang is installed."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.sglang.conftest import PROBED
from tests.sglang.install import FOLDER, python
from tests.sglang.server import ENVIRONMENT

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["pocket", "qwen", "llama"])
def test_the_contract_in_process(name: str, tmp_path: Path) -> None:
    idle = tmp_path / "idle"
    where = Path("tests/sglang/in_process")
    run = subprocess.run(
        [str(python(FOLDER)), "-m", "pytest", "-c", str(where / "pytest.ini"), "--rootdir", ".", str(where)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "SGLANG_IN_PROCESS": name, "IDLE_LOG": str(idle)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout[-6000:], run.stderr[-2000:])
    assert run.returncode == 0 and " passed" in run.stdout
    assert not idle.exists() or set(idle.read_text().splitlines()) <= PROBED
