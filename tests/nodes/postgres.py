"""A PostgreSQL server of the tests' own, on this machine alone."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGED = Path("/usr/lib/postgresql")
"""Where Debian's package `postgresql` puts its programs."""
USER = "tts"


def programs() -> Path:
    """The folder of the newest server's programs. Skips the test if there is none."""
    folders = sorted(PACKAGED.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    found = next((folder for folder in folders if (folder / "initdb").exists()), None)
    if found is None:
        pytest.skip(f"no PostgreSQL server under {PACKAGED}; apt-get install postgresql")
    return found


def account() -> str:
    """Who runs the server, which refuses to be run by root."""
    if os.geteuid() != 0:
        return getpass.getuser()
    known = {line.partition(":")[0] for line in Path("/etc/passwd").read_text(encoding="utf-8").splitlines()}
    return "postgres" if "postgres" in known else "nobody"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    give_up = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(address).close()
            return
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"PostgreSQL did not start: {log.read_text(encoding='utf-8')}") from error
            time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a running server with the tables of LangGraph's checkpointer."""
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[dev]'")
    from langgraph.checkpoint.postgres import PostgresSaver

    binaries, user = programs(), account()
    folder = Path(tempfile.mkdtemp(prefix="tts-postgres-"))
    shutil.chown(folder, user)
    options = {"user": user} if os.geteuid() == 0 else {}
    data, port = folder / "data", free_port()
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions"],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        **options,  # type: ignore[call-overload]
    )
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
    command = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, **options)  # type: ignore[call-overload]
    try:
        address = f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        wait_for(address, server, log)
        with PostgresSaver.from_conn_string(address) as saver:
            saver.setup()
        yield address
    finally:
        server.send_signal(signal.SIGINT)  # ends at once, also with clients connected
        server.wait(30)
        shutil.rmtree(folder)
