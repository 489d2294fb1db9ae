"""Servers that die, come back, and were never there."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.sglang.conftest import Spare
from tests.sglang.server import Server
from tts_agent import BestFirst, Budget, search
from tts_agent.engines import Sampling
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.engines.sglang.diagnosis import diagnose
from tts_agent.errors import ConfigError, EngineUnavailable, PromptError
from tts_agent.events import Sampled
from tts_agent.pocket import countdown_task, countdown_verifier
from tts_agent.pocket.puzzles import Puzzle
from tts_agent.prefix import Prefix

HARD = [Puzzle(numbers, 101) for numbers in ((3, 7, 9, 13), (2, 7, 9, 13), (4, 7, 9, 11), (5, 6, 8, 13), (3, 8, 9, 10))]
"""They keep a search busy."""

LIMIT = 6000


class Killing:
    """Kills the server that computes most once `after` tokens were computed in all."""

    def __init__(self, servers: Sequence[Server], after: int) -> None:
        self.servers, self.after = list(servers), after
        self.begun = {server.address: server.computed() for server in servers}
        self.left: dict[str, int] = {}

    def count(self, server: Server) -> int:
        return server.computed() - self.begun[server.address]

    async def watch(self) -> Server:
        while True:
            counts = {server.address: self.count(server) for server in self.servers}
            if sum(counts.values()) >= self.after:
                busy = max(self.servers, key=lambda server: counts[server.address])
                busy.kill()
                self.left = {busy.address: counts[busy.address]}
                return busy
            await asyncio.sleep(0.05)


async def test_a_server_that_comes_back(spare: Spare) -> None:
    server = spare.get()
    engine = SGLangEngine(server.address, attempts=2)
    await engine.flush()
    sampling = Sampling(max_tokens=4)
    first = [c async for c in engine.sample(Prefix((5, 6, 7)), sampling, seeds=[1])]
    server.kill()
    with pytest.raises(EngineUnavailable, match=server.address):
        [c async for c in engine.sample(Prefix((5, 6, 7)), sampling, seeds=[1])]
    assert spare.get().address == server.address
    again = [c async for c in engine.sample(Prefix((5, 6, 7)), sampling, seeds=[1])]
    assert again[0].ids == first[0].ids
    assert again[0].usage.prompt_computed == 3, "its cache is empty"
    await engine.aclose()


async def test_a_server_killed_in_mid_search(pocket: Server, spare: Spare) -> None:
    second = spare.get()
    engine = SGLangEngine(pocket.address, second.address)
    # The one that is killed must be the second, which other tests do not need.
    tasks = [countdown_task(engine, puzzle) for puzzle in HARD]
    task = next(task for task in tasks if engine.home(task.root) == second.address)
    killing = Killing([second], 300)
    before = pocket.computed()
    watch = asyncio.create_task(killing.watch())
    outcome = await search(
        engine,
        task,
        strategy=BestFirst(k=4),
        verifier=countdown_verifier(engine),
        budget=Budget(computed_tokens=LIMIT),
    )
    dead = await watch
    await asyncio.sleep(0.5)
    there = pocket.computed() - before
    sampled = [event.thought.id for event in outcome.log if isinstance(event, Sampled)]
    assert dead is second and there > 0
    assert outcome.path, "an answer came"
    assert len(sampled) == len(set(sampled)), "no settled thought was sampled again"
    assert killing.left[second.address] + there <= LIMIT, "the budget was kept, by the servers' own counters"
    await engine.aclose()


async def test_what_a_real_server_refuses(pocket: Server) -> None:
    engine = SGLangEngine(pocket.address)
    with pytest.raises(PromptError, match="context"):
        engine.sample(Prefix((5,) * 2042), Sampling(max_tokens=1), seeds=[1])
    with pytest.raises(PromptError, match="vocabulary"):
        engine.sample(Prefix((5, 10**6)), Sampling(max_tokens=1), seeds=[1])
    with pytest.raises(ConfigError, match="chat_template"):
        engine.render([{"role": "user", "content": "Hello"}])
    await engine.aclose()


async def test_the_doctor_on_a_real_server(pocket: Server) -> None:
    diagnosis = await diagnose(pocket.address)
    assert diagnosis.supported and diagnosis.first is not None and diagnosis.second is not None
    assert diagnosis.first.computed == 256
    assert diagnosis.second.cached == 256 + 7, "all that the first request had computed"
    assert diagnosis.end_tokens == ("<eos>",) and not diagnosis.chat_template
