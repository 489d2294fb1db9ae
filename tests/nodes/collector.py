"""A LangSmith-shaped endpoint on this machine: what tracers send to it, put together."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INFO = {
    "version": "0.9.0",
    "batch_ingest_config": {
        "use_multipart_endpoint": True,
        "size_limit": 100,
        "size_limit_bytes": 20_971_520,
        "scale_up_qsize_trigger": 1000,
        "scale_up_nthreads_limit": 16,
        "scale_down_nempty_trigger": 4,
    },
}


class Collector:
    """Where it listens, and the runs that it was told of, by id."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.runs: dict[str, dict[str, Any]] = {}

    def take(self, content_type: str, body: bytes) -> None:
        """Parts are named `post.ID` or `patch.ID`, with the field they hold behind it where they hold only one."""
        whole = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        for part in whole.walk():
            name = part.get_param("name", header="content-disposition")
            if not isinstance(name, str):
                continue
            _, run, *field = name.split(".")
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            value = json.loads(payload)
            self.runs.setdefault(run, {}).update({field[0]: value} if field else value)


@contextmanager
def collector() -> Iterator[Collector]:
    """An endpoint that lives as long as the context."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, json.dumps(INFO).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.take(self.headers["content-type"], body)
            self._answer(202, b"{}")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to say."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
