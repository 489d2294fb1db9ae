"""Nothing that runs in an event loop waits in it: no file, no socket, no sleep."""

import asyncio
import gc
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from blockbuster import BlockingError, blockbuster_ctx
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from graphs.assistant import build_chat
from graphs.countdown import agraph, build
from tests.chat_models.server import ChatServer
from tests.nodes.table import make_engine
from tts_agent import Prefix, Sampling
from tts_agent.chat_models import ChatSGLang
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.pocket import model_folder


async def test_what_waits_is_found() -> None:
    with blockbuster_ctx(), pytest.raises(BlockingError):
        time.sleep(0)


async def test_the_countdown_agent_loads_and_plans() -> None:
    with blockbuster_ctx():
        agent = await agraph()
        assert await agraph() is agent
        result = await agent.ainvoke({"messages": [HumanMessage("Make 24 from 8 5 3 1")]})
    assert result["messages"][-1].text.endswith(" Solved.")


async def test_an_engine_that_nobody_holds_ends_beside_the_loop() -> None:
    engine = await asyncio.to_thread(EmbeddedEngine, model_folder())
    sampling = Sampling(max_tokens=3)
    with blockbuster_ctx():  # what it finds in a finalizer is a warning, and so an error
        assert [done async for done in engine.sample(Prefix((7, 8)), sampling, seeds=[1])]
        engine = None
        gc.collect()


async def test_a_trace_is_written_beside_the_loop(tmp_path: Path) -> None:
    agent = build(make_engine(), trace=tmp_path / "trace.jsonl").compile()
    with blockbuster_ctx():
        await agent.ainvoke({"messages": [HumanMessage("Make 24 from 8 5 3 1")]})
    assert (tmp_path / "trace.jsonl").stat().st_size


async def test_the_assistant_asks_a_server_and_reads_a_database(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("CREATE TABLE orders (item TEXT)")
    server = ChatServer(max_req_input_len=8000)
    model = ChatSGLang(base_url=server.address)
    agent = build_chat(model, database=tmp_path / "shop.db").compile()
    with blockbuster_ctx(), pytest.warns(UserWarning, match="budgets are soft"):  # a token is a byte there
        result = await agent.ainvoke({"messages": [HumanMessage("Ask 'SELECT 1'.")]})
        chunks = [chunk async for chunk in model.astream("Hi")]
    assert [type(message) for message in result["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert len(chunks) > 1
    model.close()
    await model.aclose()
    server.close()
