"""Event loops: the one that runs here, and a private one for callers that are not asynchronous."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from tts_agent.errors import SearchError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end and return its result; also inside a running loop, which it blocks.

    All calls share one loop on a thread of its own, so that what one call leaves running (the samples of a search)
    goes on for the next.
    """
    if threading.current_thread().name == "tts-agent":
        work.close()
        raise SearchError(
            "a synchronous call from inside a search, which would wait for itself; await the asynchronous one there"
        )
    future = asyncio.run_coroutine_threadsafe(work, _private_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()  # an interrupted caller must not leave work behind
        raise


def in_a_loop() -> bool:
    """Whether the caller runs in an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _private_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="tts-agent", daemon=True).start()
        return _loop
