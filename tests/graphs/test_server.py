"""`langgraph dev` serves the graphs of langgraph.json on this machine, without a network."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chat_models.server import WORDS, ChatServer
from tests.sglang.server import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 100.0
PUZZLE = {"messages": [{"role": "user", "content": "Make 24 from 8 5 3 1"}]}


class DevServer:
    """`langgraph dev` in `folder`, where it keeps its files."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "server.log"
        port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        for name in ("graphs", "tools", "langgraph.json"):
            (folder / name).symlink_to(ROOT / name)
        command = [str(Path(sys.executable).with_name("langgraph")), "dev", "--no-browser", "--no-reload"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                cwd=folder,
                stdout=log,
                stderr=log,
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith(("LANG", "TTS_"))},
                    "LANGGRAPH_CLI_NO_ANALYTICS": "1",
                    "LANGSMITH_TRACING": "false",
                    "OMP_NUM_THREADS": "1",
                },
            )

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text()
            with suppress(httpx.TransportError):
                if self.client.get("/ok").json()["ok"]:
                    return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def ask(self, path: str, body: Any = None) -> Any:
        answer = self.client.get(path) if body is None else self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def run(self, assistant: str, **settings: Any) -> list[tuple[str, Any]]:
        """The events of a run, with their names."""
        body = {"assistant_id": assistant, "input": PUZZLE, "stream_mode": ["custom", "updates"], **settings}
        with self.client.stream("POST", "/runs/stream", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith(("event:", "data:"))]
        names = [line.removeprefix("event: ") for line in lines[::2]]
        return list(zip(names, (json.loads(line.removeprefix("data: ")) for line in lines[1::2]), strict=True))

    def close(self) -> None:
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    server = DevServer(tmp_path_factory.mktemp("dev"))
    try:
        server.wait()
        yield server
        log = server.log.read_text()
    finally:
        server.close()
    assert "BlockingError" not in log and "blocking call" not in log


def of(events: list[tuple[str, Any]], name: str) -> list[Any]:
    return [data for kind, data in events if kind == name]


def test_every_graph_is_offered_with_its_budgets(server: DevServer) -> None:
    found = server.ask("/assistants/search", {})
    config = json.loads((ROOT / "langgraph.json").read_text())
    assert {one["graph_id"] for one in found} == set(config["graphs"]) == {"countdown", "assistant"}
    for one in found:
        schemas = server.ask(f"/assistants/{one['assistant_id']}/schemas")
        budget = schemas["context_schema"]["$defs"]["BudgetOverride"]["properties"]
        assert {"calls", "computed_tokens", "generated_tokens", "dollars", "seconds"} <= set(budget)
        assert "messages" in schemas["input_schema"]["properties"]
        nodes = {node["id"] for node in server.ask(f"/assistants/{one['assistant_id']}/graph")["nodes"]}
        assert {"plan", "act"} <= nodes


def test_a_run_streams_its_search_and_its_decisions(server: DevServer) -> None:
    events = server.run("countdown")
    assert not of(events, "error")
    kinds = {event["type"] for event in of(events, "custom")}
    assert kinds and all(kind.startswith("tts.") for kind in kinds)
    updates = of(events, "updates")
    assert [next(iter(update)) for update in updates] == ["plan", "act"] * 3 + ["plan"]
    assert updates[-1]["plan"]["messages"][0]["content"].endswith(" Solved.")


def test_a_run_keeps_to_the_budgets_of_its_context(server: DevServer) -> None:
    bounded = server.run("countdown", context={"tts": {"plan": {"calls": 2}, "run": {"computed_tokens": 200}}})
    steps = [update["plan"] for update in of(bounded, "updates") if "plan" in update]
    assert steps[0]["tts"]["outcome"]["stop"] == "budget"
    assert all(step["tts"]["outcome"]["usage"].get("calls", 0) <= 2 for step in steps)
    usage = steps[-1]["tts"]["totals"]["usage"]
    assert usage.get("prompt_computed", 0) + usage["decoded"] <= 200
    (error,) = of(server.run("countdown", context={"tts": {"plam": {"calls": 2}}}), "error")
    assert "plam" in error["message"]


def test_a_thread_remembers(server: DevServer) -> None:
    thread = server.ask("/threads", {})["thread_id"]
    server.ask(f"/threads/{thread}/runs/wait", {"assistant_id": "countdown", "input": PUZZLE})
    state = server.ask(f"/threads/{thread}/state")
    assert state["values"]["messages"][-1]["content"].endswith(" Solved.")
    assert state["values"]["tts"]["totals"]["usage"]["generated"] > 0


def test_the_assistant_says_what_it_needs(server: DevServer) -> None:
    (error,) = of(server.run("assistant"), "error")
    assert "TTS_AGENT_MODEL" in error["message"]
    (error,) = of(server.run("assistant", config={"configurable": {"model": "sglang://127.0.0.1:9"}}), "error")
    assert error["error"] == "EngineUnavailable"


def test_the_assistant_works_on_the_model_that_a_run_names(server: DevServer) -> None:
    model = ChatServer(max_req_input_len=8000)
    named = {"configurable": {"model": model.address.replace("http", "sglang")}}
    events = server.run("assistant", config=named)
    model.close()
    assert not of(events, "error")
    updates = of(events, "updates")
    assert [next(iter(update)) for update in updates] == ["plan", "act", "plan"]
    assert updates[-1]["plan"]["messages"][0]["content"].startswith(WORDS)
