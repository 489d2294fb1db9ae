"""What the README shows runs, and what it names is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_in_the_readme_runs(number: int) -> None:
    result = subprocess.run([sys.executable, "-c", BLOCKS[number]], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr


def test_the_commands_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README names make {target}"
    for module in set(re.findall(r"python -m ([a-z_.]+)", README)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"README names {module}"
    for path in set(re.findall(r"`((?:docs|training|graphs|examples|tools|benchmarks)/[\w./-]+)`", README)):
        assert (ROOT / path).exists(), f"README names {path}"


def test_every_top_level_folder_is_on_the_map() -> None:
    structure = (ROOT / "docs" / "structure.md").read_text()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for folder in {path.split("/")[0] for path in listed if "/" in path} - {".ci", "docs", "tts_agent"}:
        assert f"`{folder}/`" in structure, f"docs/structure.md does not name {folder}/"
    for part in {path.split("/")[1] for path in listed if path.startswith("tts_agent/")} - {"__init__.py", "py.typed"}:
        assert f"`tts_agent/{part}" in structure, f"docs/structure.md does not name tts_agent/{part}"
