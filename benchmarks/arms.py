"""What is measured side by side, each arm in a process of its own.

A process of its own keeps threads, allocators and peak memory apart, and an arm that dies takes no other with it.
"""

import contextlib
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from benchmarks.workload import Size


class Arm(Protocol):
    """An engine that can run the workload on the model in a folder."""

    def tree(self) -> int:
        """Run the tree workload from an empty cache; returns the tokens sampled."""
        ...

    def step(self, branches: int) -> float | None:
        """CPU seconds of one decode step of so many branches below one prompt of 256 tokens; None: another arm's."""
        ...

    def close(self) -> None:
        """End every thread, so that the process can end."""
        ...


class Unavailable(Exception):
    """The arm cannot run here; the text says why."""


Factory = Callable[[Path, Size], Arm]


@dataclass(frozen=True, slots=True)
class Tree:
    """One run of the tree workload."""

    cpu: float  # seconds, all threads of the process
    wall: float
    sampled: int


@dataclass(frozen=True, slots=True)
class Broken:
    """Why an arm gives no answer."""

    reason: str


class Booth:
    """An arm in a process of its own, which starts with the booth and ends with `close`."""

    def __init__(self, name: str, factory: Factory, folder: Path, size: Size) -> None:
        self.name = name
        self._errors = tempfile.NamedTemporaryFile(suffix=".txt")  # noqa: SIM115  # closed by close()
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        arguments = (far, factory, folder, size, self._errors.name)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        far.close()
        self.broken: Broken | None = None
        self._receive()

    def tree(self) -> Tree | Broken:
        answer = self._ask("tree", 0)
        assert isinstance(answer, Tree | Broken)
        return answer

    def step(self, branches: int) -> float | Broken | None:
        """CPU seconds of a step, see `Arm.step`."""
        answer = self._ask("step", branches)
        assert isinstance(answer, float | Broken | None)
        return answer

    def peak_mb(self) -> float | Broken:
        """Most memory that the process has had, MB, with interpreter, torch and weights."""
        answer = self._ask("peak", 0)
        assert isinstance(answer, float | Broken)
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
        self._pipe.close()
        self._errors.close()

    def _ask(self, what: str, branches: int) -> object:
        if self.broken is None:
            self._pipe.send((what, branches))
            return self._receive()
        return self.broken

    def _receive(self) -> object:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            answer = Broken(f"its process died: {self._last_words()}")
        if isinstance(answer, Broken):
            self.broken = answer
        return answer

    def _last_words(self) -> str:
        lines = Path(self._errors.name).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


def _serve(pipe: Connection, factory: Factory, folder: Path, size: Size, errors: str) -> None:
    """Answer what comes through `pipe` until None comes."""
    with open(errors, "w") as file:
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    try:
        arm = factory(folder, size)
    except Unavailable as reason:
        pipe.send(Broken(str(reason)))
        return
    pipe.send(None)
    while question := pipe.recv():
        what, branches = question
        if what == "tree":
            cpu, wall = time.process_time(), time.perf_counter()
            sampled = arm.tree()
            pipe.send(Tree(time.process_time() - cpu, time.perf_counter() - wall, sampled))
        elif what == "step":
            pipe.send(arm.step(branches))
        else:
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
    arm.close()
