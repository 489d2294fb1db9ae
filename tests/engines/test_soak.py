"""Many random requests of many clients under a small cap: every answer right, nothing left behind."""

import asyncio
import gc
import random
from dataclasses import replace

import pytest

from tests import models
from tests.engines.oracle import Oracle
from tts_agent import Prefix, Sampling
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.engines.embedded.radix import Node
from tts_agent.engines.embedded.request import Branch, Question, Sample
from tts_agent.usage import Usage, total_usage

CLIENTS = 24
CAP = 320
STOPS = tuple(range(0, 759, 6))


class Client:
    """Asks at random, compares what it is told, keeps account of what it was charged."""

    def __init__(self, engine: EmbeddedEngine, oracle: Oracle, seed: int) -> None:
        self.engine, self.oracle, self.rng = engine, oracle, random.Random(seed)
        self.branches = [Prefix((1 + seed % 5,))]
        self.usages: list[Usage] = []
        self.unpaid = 0  # requests that were given up without an account

    async def run(self, requests: int) -> None:
        for _ in range(requests):
            ask = self.rng.choices((self.sample, self.label, self.read, self.vanish), (8, 4, 1, 1))[0]
            await ask()

    def prefix(self) -> Prefix:
        rng = self.rng
        if rng.random() < 0.15:
            self.branches = self.branches[-1:]
            length, root = rng.randrange(1, 60), rng.randrange(6)
            self.branches.append(Prefix(tuple(random.Random(root).randrange(759) for _ in range(length))))
        found = rng.choice(self.branches)
        return found if len(found) < 120 else Prefix(found.ids[: rng.randrange(1, 60)])

    def sampling(self) -> Sampling:
        rng = self.rng
        plain = Sampling(max_tokens=rng.randrange(1, 14), stop_ids=STOPS)
        temperature = rng.choice((0.0, 0.6, 1.0, 1.4))
        cuts = rng.choice(({}, {}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.1}, {"frequency_penalty": 0.8}))
        return replace(plain, temperature=temperature, **cuts)

    async def sample(self) -> None:
        rng, prefix, sampling = self.rng, self.prefix(), self.sampling()
        seeds = [rng.getrandbits(64) for _ in range(rng.choice((1, 1, 2, 4, 12)))]
        stream = self.engine.sample(prefix, sampling, seeds=seeds)
        stop_after = rng.choice((1, 99, 99, 99))
        told = 0
        async for completion in stream:
            self.oracle.check(prefix, completion, seeds[completion.index], sampling)
            self.usages.append(completion.usage)
            self.branches.append(prefix.extend(completion.ids))
            told += 1
            if told == stop_after:
                break
        rest = await stream.abort()
        assert rest is not None
        self.usages.append(rest)
        self.branches = self.branches[-8:]

    async def label(self) -> None:
        rng = self.rng
        prefixes = [self.prefix() for _ in range(rng.randrange(1, 4))]
        suffix = tuple(rng.randrange(759) for _ in range(rng.randrange(5)))
        labels = tuple(tuple(rng.randrange(4) for _ in range(rng.randrange(1, 4))) for _ in range(3))
        for prefix, score in zip(prefixes, await self.engine.label_logprobs(prefixes, suffix, labels), strict=True):
            expected = [self.oracle.label(prefix.ids + suffix, label) for label in labels]
            assert list(score.logprobs) == pytest.approx(expected, abs=3e-4)
            self.usages.append(score.usage)

    async def read(self) -> None:
        prefix = self.prefix()
        (state,) = await self.engine.hidden_states([prefix])
        assert list(state.values) == pytest.approx(self.oracle.hidden(prefix.ids), abs=1e-3)
        self.usages.append(state.usage)

    async def vanish(self) -> None:
        """Be cancelled while waiting, or drop a stream; what was used is not told then."""
        rng, prefix = self.rng, self.prefix()
        self.unpaid += 1
        if rng.random() < 0.5:
            self.engine.sample(prefix, self.sampling(), seeds=range(3))
            return
        waiting = asyncio.ensure_future(self.engine.label_logprobs([prefix] * 3, (5,), (7, 8)))
        await asyncio.sleep(rng.choice((0, 0, 0.001)))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def alive() -> int:
    """Objects that requests are made of."""
    gc.collect()
    return sum(type(thing) in (Node, Branch, Sample, Question) for thing in gc.get_objects())


async def soak(requests: int) -> EmbeddedEngine:
    before = alive()
    engine = EmbeddedEngine(models.llama(), cache_tokens=CAP, max_branches=20, step_tokens=48)
    oracle = Oracle.of(models.llama())
    clients = [Client(engine, oracle, seed) for seed in range(CLIENTS)]
    try:
        await asyncio.gather(*(client.run(requests // CLIENTS + 1) for client in clients))
        gc.collect()  # streams that were dropped
        await engine.flush()
        counters = engine.counters
        assert (counters.in_use, counters.resident) == (0, 0)
        assert counters.evicted > requests
        scheduler = engine._scheduler
        assert scheduler.pool.free == CAP and sorted(scheduler.pool.take(CAP).tolist()) == list(range(1, CAP + 1))
        assert scheduler._promised == 0 and not scheduler._computing and not scheduler.busy
        paid = total_usage(usage for client in clients for usage in client.usages)
        unpaid = sum(client.unpaid for client in clients)
        assert paid.computed <= counters.computed <= paid.computed + unpaid * (120 + 3 * 14)
        assert alive() <= before + 1, "the root of the tree is all that is left"
    finally:
        await engine.aclose()
    return engine


async def test_a_short_soak() -> None:
    await soak(200)


@pytest.mark.verify
async def test_20_000_requests_leave_nothing_behind_and_no_token_is_wrong() -> None:
    engine = await soak(20_000)
    assert engine.counters.requests > 20_000
