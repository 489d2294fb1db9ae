"""A real SGLang server on the CPU, for as long as a test needs it."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx

START_SECONDS = 300.0

ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
}

SETTINGS: dict[str, str | float | bool] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "dtype": "float32",
    "disable_cuda_graph": True,
    "sleep_on_idle": True,
    "mem_fraction_static": 0.1,
    "context_length": 2048,
    "max_total_tokens": 16384,
    "enable_cache_report": True,
    "enable_metrics": True,
    "enable_custom_logit_processor": True,
    "enable_return_hidden_states": True,
}
"""Of every server here, and of `sglang.Engine`."""


def as_flags(settings: Mapping[str, str | float | bool]) -> list[str]:
    """`settings` as launch flags."""
    found = []
    for name, value in settings.items():
        found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found


def _end_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """Serves the model in `folder`; `flags` are added to those of every server here, and overrule them."""

    def __init__(self, python: Path, folder: Path, *, log: Path, flags: Sequence[str] = (), port: int = 0) -> None:
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log, self.idle = log, log.with_suffix(".idle")
        self._command = [
            *(str(python), "-m", "sglang.launch_server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--model-path", str(folder), *as_flags(SETTINGS), *flags),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it; `wait` says when it serves."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT, "IDLE_LOG": str(self.idle)},
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return self

    @property
    def alive(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None

    def wait(self) -> Self:
        """Wait until it serves."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the server stopped: {self.tail()}")
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.address}/health", timeout=10).status_code == 200:
                    httpx.post(f"{self.address}/flush_cache", timeout=10)
                    return self
            time.sleep(0.5)
        raise RuntimeError(f"the server does not serve after {START_SECONDS} s: {self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def idle_uses(self) -> list[str]:
        """What of the stand-ins was used, which should be nothing."""
        return self.idle.read_text().splitlines() if self.idle.exists() else []

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a counter of `/metrics` over the series that have `labels`."""
        total = 0.0
        for line in httpx.get(f"{self.address}/metrics", timeout=30).text.splitlines():
            if line.startswith(f"sglang:{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def computed(self) -> int:
        """Tokens that it has run through its model."""
        modes = ("prefill_compute", "decode")
        return int(sum(self.metric("realtime_tokens_total", mode=mode) for mode in modes))

    def running(self) -> int:
        """Samples that it runs or keeps waiting."""
        loads = httpx.get(f"{self.address}/v1/loads", timeout=30).json()["loads"]
        return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)

    def kill(self) -> None:
        """Kill it and its processes at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
