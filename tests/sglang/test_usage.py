"""What completions report is what the server counts, to the token."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from tests.sglang.server import Server
from tts_agent import BestFirst, Budget, Prefix, Sampling, search
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.pocket import countdown_task, countdown_verifier
from tts_agent.pocket.puzzles import Puzzle
from tts_agent.usage import Usage, total_usage

STOPS = (9, 10, 16)


@pytest.fixture(params=["seeded", "unseeded"])
async def engine(pocket: Server, request: pytest.FixtureRequest) -> AsyncIterator[SGLangEngine]:
    found = SGLangEngine(pocket.address, seeds=request.param == "seeded")
    await found.flush()
    yield found
    await found.aclose()


def prompt(length: int, seed: int) -> Prefix:
    rng = random.Random(seed)
    return Prefix(tuple(rng.randrange(100) for _ in range(length)))


async def sample(engine: SGLangEngine, prefix: Prefix, n: int, sampling: Sampling) -> Usage:
    return total_usage([c.usage async for c in engine.sample(prefix, sampling, seeds=range(n))])


async def counted(server: Server, before: int) -> int:
    await asyncio.sleep(0.5)  # the scheduler counts after it has answered
    return server.computed() - before


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("stops", [(), STOPS, (*STOPS, 1)])
async def test_samples(pocket: Server, engine: SGLangEngine, n: int, stops: tuple[int, ...]) -> None:
    prefix, sampling = prompt(40, n), Sampling(max_tokens=12, stop_ids=stops)
    for _ in ("cold", "warm"):
        before = pocket.computed()
        usage = await sample(engine, prefix, n, sampling)
        assert usage.computed == await counted(pocket, before)
        # A sample that stops on a server that runs ahead computes one token beyond its end.
        assert n * 40 <= usage.prompt <= n * 40 + (n == 1)


async def test_questions(pocket: Server, engine: SGLangEngine) -> None:
    prefixes = [prompt(30, 1), prompt(30, 1).extend((4, 5)), prompt(7, 2)]
    before = pocket.computed()
    scores = await engine.label_logprobs(prefixes, (20, 21), [5, (6, 7), (6, 8, 9)])
    assert sum(score.usage.computed for score in scores) == await counted(pocket, before)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.05, 0.4])
async def test_what_was_stopped(pocket: Server, engine: SGLangEngine, seconds: float) -> None:
    before = pocket.computed()
    stream = engine.sample(prompt(40, 3), Sampling(max_tokens=1500), seeds=range(6))
    await asyncio.sleep(seconds)
    usage = await stream.abort()
    assert usage is not None
    assert usage.computed == await counted(pocket, before)
    assert pocket.running() == 0


async def test_a_dropped_stream_stops(pocket: Server, engine: SGLangEngine) -> None:
    stream = engine.sample(prompt(40, 4), Sampling(max_tokens=1500), seeds=range(6))
    await asyncio.sleep(0.2)
    assert pocket.running() == 6
    del stream
    for _ in range(50):
        await asyncio.sleep(0.1)
        if not pocket.running():
            return
    raise AssertionError("samples still run")


async def test_a_search(pocket: Server, engine: SGLangEngine) -> None:
    before = pocket.computed()
    limit = Budget(computed_tokens=1500)
    task = countdown_task(engine, Puzzle((8, 5, 3, 1), 24))
    outcome = await search(engine, task, strategy=BestFirst(k=4), verifier=countdown_verifier(engine), budget=limit)
    assert outcome.usage.computed == await counted(pocket, before) <= 1500
