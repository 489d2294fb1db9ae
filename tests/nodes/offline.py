"""Tests of what runs in graphs reach this machine and no other."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse connections to other machines."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            raise OSError(f"a test connects to {address!r}; only this machine may be reached")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    yield
