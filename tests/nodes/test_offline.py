"""The tests beside this one reach this machine and no other."""

import socket

import pytest


def test_other_machines_are_out_of_reach() -> None:
    with socket.socket() as other, pytest.raises(OSError, match="only this machine"):
        other.connect(("192.0.2.1", 80))


def test_this_machine_is_not() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
