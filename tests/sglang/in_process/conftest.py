"""Tests that need SGLang in their own process. `tests/sglang/test_local.py` runs them there, once for each model."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sglang.server import SETTINGS
from tests.sglang.test_contract import FOLDERS
from tts_agent.engines.sglang.local import LocalServer
from tts_agent.errors import EngineUnavailable

NAME = os.environ.get("SGLANG_IN_PROCESS", "")

collect_ignore_glob = [] if NAME else ["test_*.py"]

PARSERS = {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3"}


@pytest.fixture(scope="session")
def folder() -> Path:
    """Folder of the model under test."""
    return FOLDERS[NAME]()


@pytest.fixture(scope="session")
def local(folder: Path) -> Iterator[LocalServer]:
    """SGLang in this process."""
    with LocalServer(folder, **SETTINGS, **(PARSERS if NAME == "qwen" else {})) as server:
        yield server
    with pytest.raises(EngineUnavailable, match="was stopped"):
        server.ask("/server_info", None)
    server.stop()
