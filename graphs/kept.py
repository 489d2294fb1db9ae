"""What LangGraph's server asks for again and again, in its event loop, and should be made once."""

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
G = TypeVar("G")

KEPT = 4
"""Graphs that are kept, with the models behind them."""


class Kept(Generic[K, G]):
    """Graphs by what they are made from, the `KEPT` that were asked for last. `make` may wait, for a model to load."""

    def __init__(self, make: Callable[[K], G]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: dict[K, G] = {}

    async def get(self, key: K) -> G:
        """The graph of `key`, made in a thread if it is not there."""
        return await asyncio.to_thread(self._get, key)

    def _get(self, key: K) -> G:
        with self._lock:
            graph = self._made.pop(key) if key in self._made else self._make(key)
            self._made[key] = graph  # as the newest
            for oldest in list(self._made)[:-KEPT]:
                del self._made[oldest]
            return graph
