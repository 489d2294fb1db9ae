"""Checkpointers by their address: a path for SQLite, `postgresql://...`, or `memory`."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver


@contextmanager
def saver_at(address: str) -> Iterator[BaseCheckpointSaver[Any]]:
    """The checkpointer for graphs that are not asynchronous."""
    if address == "memory":
        yield InMemorySaver()
    elif address.startswith("postgresql:"):
        from langgraph.checkpoint.postgres import PostgresSaver

        with PostgresSaver.from_conn_string(address) as postgres:
            yield postgres
    else:
        with SqliteSaver.from_conn_string(address) as sqlite:
            yield sqlite


@asynccontextmanager
async def async_saver_at(address: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The checkpointer for asynchronous graphs."""
    if address == "memory":
        yield InMemorySaver()
    elif address.startswith("postgresql:"):
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        async with AsyncPostgresSaver.from_conn_string(address) as postgres:
            yield postgres
    else:
        async with AsyncSqliteSaver.from_conn_string(address) as sqlite:
            yield sqlite
