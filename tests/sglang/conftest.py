"""Tests against real servers. They run by `make test-sglang`, which installs one; elsewhere they are not collected."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import models
from tests.sglang.install import FOLDER, python
from tests.sglang.server import Server, free_port
from tts_agent.pocket import model_folder

collect_ignore_glob = [] if os.environ.get("SGLANG_TESTS") else ["test_*.py"]

PROBED = {"triton.runtime.driver.active.get_current_target"}
"""What the server tries when it starts, to find out which device it has; it expects that to fail."""

Serve = Callable[..., Server]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts servers that are stopped at the end, when nothing of the stand-ins may have been used."""
    logs, started = tmp_path_factory.mktemp("servers"), list[Server]()

    def start(folder: Path, *flags: str, port: int = 0) -> Server:
        server = Server(python(FOLDER), folder, log=logs / f"{len(started)}.log", flags=flags, port=port)
        started.append(server.start())
        return server

    yield start
    for server in started:
        server.kill()
    used = Counter(name for server in started for name in server.idle_uses())
    assert set(used) <= PROBED, used


@pytest.fixture(scope="session")
def pocket(serve: Serve) -> Server:
    """Serves the pocket planner."""
    return serve(model_folder()).wait()


class Spare:
    """A second server of the pocket planner, for tests that kill it; it comes back where it was."""

    def __init__(self, serve: Serve) -> None:
        self._serve, self._port = serve, free_port()
        self._server: Server | None = None

    def get(self) -> Server:
        """The server, started if it is not there."""
        if self._server is None or not self._server.alive:
            self._server = self._serve(model_folder(), port=self._port).wait()
        return self._server


@pytest.fixture(scope="session")
def spare(serve: Serve) -> Spare:
    return Spare(serve)


@pytest.fixture(scope="session")
def qwen(serve: Serve) -> Server:
    """Serves the small Qwen with byte-level BPE."""
    return serve(models.qwen(), "--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3").wait()


@pytest.fixture(scope="module")
def llama(serve: Serve) -> Iterator[Server]:
    """Serves the small Llama for one file of tests."""
    server = serve(models.llama()).wait()
    yield server
    server.kill()
