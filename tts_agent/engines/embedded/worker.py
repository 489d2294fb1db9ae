"""The one thread that runs the model: orders reach it through a queue, answers go to the callers' loops."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

import torch

from tts_agent.engines.embedded.request import Mailbox, Message
from tts_agent.engines.embedded.scheduler import Scheduler
from tts_agent.loop import in_a_loop

Order = Callable[[], object]


class Worker:
    """Runs a scheduler in its own thread, which starts with the first order and sleeps without work."""

    def __init__(self, scheduler: Scheduler, *, threads: int) -> None:
        self.scheduler = scheduler
        self._threads = threads
        self._orders: SimpleQueue[Order] = SimpleQueue()
        # NOTE: reentrant, because a finalizer may post while its own thread is in post().
        self._gate = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stopped = False  # orders are refused from now on

    def post(self, order: Order) -> bool:
        """Have `order` called in the worker's thread, between two steps; False if the worker has stopped."""
        with self._gate:
            if self._stopped:
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tts-agent-embedded", daemon=True)
                self._thread.start()
            self._orders.put(order)
            return True

    def stop(self) -> None:
        """End the thread after the step it is in; requests still waiting get `EngineUnavailable`."""
        with self._gate:
            self._stopped = True
            thread = self._thread
        # NOTE: a garbage collection may be what ends the engine, in the worker's own thread or in an event loop, which
        # must not wait for a step.
        if thread is not None and thread is not threading.current_thread():
            self._orders.put(lambda: None)  # wakes the thread if it sleeps
            if not in_a_loop():
                thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while not self._stopped:
                    self._obey(wait=not self.scheduler.busy)
                    if self.scheduler.busy:
                        self.scheduler.step()
                    self._send()
        finally:
            # Whatever ended the loop, nobody is left waiting; an unexpected error is printed by threading.
            with self._gate:
                self._stopped = True
            self._obey(wait=False)
            self.scheduler.close("the embedded engine has stopped; make a new one")
            self._send()

    def _obey(self, *, wait: bool) -> None:
        """Carry out the orders that have come; with `wait`, at least one."""
        if wait:
            self._orders.get()()
        with contextlib.suppress(Empty):
            while True:
                self._orders.get_nowait()()

    def _send(self) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Message]]] = {}
        for mailbox, message in self.scheduler.outbox:
            by_loop.setdefault(mailbox.loop, []).append((mailbox, message))
        self.scheduler.outbox.clear()
        for loop, letters in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_over, letters)
            except RuntimeError:  # the loop was closed: nobody waits there any more
                continue


def _hand_over(letters: list[tuple[Mailbox, Message]]) -> None:
    for mailbox, message in letters:
        mailbox.receive(message)
