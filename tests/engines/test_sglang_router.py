"""Servers behind sglang-router, against one that answers as the real router was seen to."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.engines.sglang_server import SGLangServer
from tts_agent.engines import Completion, Sampling
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.engines.sglang.diagnosis import diagnose
from tts_agent.engines.sglang.processor import OFFSET, SLOTS, raw_logprobs
from tts_agent.errors import ConfigError, EngineUnavailable
from tts_agent.prefix import Prefix
from tts_agent.usage import total_usage

ROOT = Prefix(tuple(map(ord, "the root of a tree that branches")))


@pytest.fixture
def servers() -> Iterator[tuple[SGLangServer, SGLangServer, SGLangServer]]:
    """A router and two workers. What the router passes on is computed by itself here."""
    router, one, two = SGLangServer(), SGLangServer(), SGLangServer()
    router.model.behind = [one.address, two.address]
    yield router, one, two
    for server in (router, one, two):
        server.close()


Servers = tuple[SGLangServer, SGLangServer, SGLangServer]


async def sampled(engine: SGLangEngine, n: int = 3) -> list[Completion]:
    return [c async for c in engine.sample(ROOT, Sampling(max_tokens=6), seeds=range(n))]


async def test_samples_go_singly_through_the_router_under_their_trees_key(servers: Servers) -> None:
    router, one, two = servers
    engine = SGLangEngine(router.address, end_ids=[1], cache_salt="ours")
    assert engine.info.workers == 2 and not engine.capabilities.seeds
    children = await sampled(engine)
    assert sorted(child.index for child in children) == [0, 1, 2]
    assert total_usage(child.usage for child in children).computed == router.model.computed
    bodies = router.model.bodies
    assert len(bodies) == 1 + 3 and all(isinstance(body["rid"], str) for body in bodies)
    assert all(body["extra_key"] == "ours" and "cache_salt" not in body for body in bodies)
    assert len({headers["x-smg-routing-key"] for headers in router.model.headers}) == 1
    branches = [ROOT.extend(child.ids) for child in children]
    scores = await engine.label_logprobs(branches, (5,), [7, (8, 9)])
    assert len(scores) == 3 and not one.model.bodies and not two.model.bodies
    await engine.aclose()


async def test_every_worker_is_asked_to_stop_what_the_router_runs(servers: Servers) -> None:
    router, one, two = servers
    router.model.pace = 0.01
    engine = SGLangEngine(router.address, end_ids=[1])
    await sampled(engine, 1)
    stream = engine.sample(ROOT, Sampling(max_tokens=60), seeds=range(2))
    while len(router.model.bodies) < 3:  # one before, and these two
        await asyncio.sleep(0.01)
    await stream.abort()
    ids = {body["rid"] for body in router.model.bodies[-2:]}
    assert ids <= set(one.model.aborted) and ids <= set(two.model.aborted)
    await engine.aclose()


async def test_a_sample_that_is_refused_alone_is_asked_for_again(servers: Servers) -> None:
    router, *_ = servers
    engine = SGLangEngine(router.address, end_ids=[1])
    await sampled(engine, 1)
    router.model.faults.refused = 1
    assert len(await sampled(engine)) == 3
    assert engine.refused == 1
    await engine.aclose()


async def test_a_router_whose_workers_are_out_of_reach_says_so(servers: Servers) -> None:
    router, one, two = servers
    one.model.info["max_total_num_tokens"] = 500
    engine = SGLangEngine(router.address, end_ids=[1])
    assert engine.info.capacity == 500
    await engine.aclose()
    router.model.behind = ["http://127.0.0.1:9"]
    with pytest.raises(EngineUnavailable, match="a router whose workers cannot be reached"):
        SGLangEngine(router.address, end_ids=[1])


async def test_the_doctor_knows_a_router(servers: Servers) -> None:
    router, *_ = servers
    diagnosis = await diagnose(router.address, end_ids=[1])
    assert diagnosis.supported and diagnosis.second is not None and diagnosis.second.cached > 200
    said = "\n".join(diagnosis.lines())
    assert "2 workers behind it" in said and "--enable-custom-logit-processor" not in said


def test_seeds_that_were_dropped_on_the_way_are_noticed() -> None:
    assert raw_logprobs([4], [[[-2.0 - OFFSET, SLOTS[0], None], [-99.0, SLOTS[1], None]]]) == (-2.0,)
    with pytest.raises(ConfigError, match="drops custom_params"):
        raw_logprobs([4], [[[-7.0, SLOTS[0], None], [-9.0, SLOTS[1], None]]])
