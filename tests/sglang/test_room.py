"""A server with little room: what is asked waits for room, what was evicted is computed again and counted."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.engines.test_contract import Case, check_score, sampled
from tests.sglang.conftest import Serve
from tests.sglang.server import Server
from tests.sglang.test_contract import describe
from tts_agent import BestFirst, Budget, Prefix, Sampling, search
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.pocket import countdown_task, countdown_verifier, model_folder
from tts_agent.pocket.puzzles import Puzzle
from tts_agent.usage import Usage, total_usage

ROOM = 320
"""Tokens in its cache; six trees of the first test take some 700."""


@pytest.fixture(scope="module")
def small(serve: Serve) -> Iterator[Server]:
    server = serve(model_folder(), "--max-total-tokens", str(ROOM), "--context-length", "300").wait()
    yield server
    server.kill()


@pytest.fixture
def case(small: Server) -> Case:
    return describe("pocket", model_folder(), lambda: SGLangEngine(small.address))


async def counted(server: Server, before: int) -> int:
    await asyncio.sleep(0.5)  # the scheduler counts after it has answered
    return server.computed() - before


async def test_answers_and_account_stay_right_under_eviction(case: Case, small: Server) -> None:
    engine = case.open()
    assert isinstance(engine, SGLangEngine) and int(engine.capabilities.info["cache_tokens"]) <= ROOM
    sampling, before, usages = Sampling(max_tokens=6, stop_ids=case.stops), small.computed(), list[Usage]()
    evicted = small.metric("evicted_tokens_total")

    async def grow(seed: int) -> None:
        prefix = case.prompt(30, seed)
        for level in range(4):
            children = await sampled(engine, prefix, sampling, range(3))
            branches = [prefix.extend(child.ids) for child in children]
            labels = (case.letters[1], (case.letters[2], case.letters[3]))
            scores = await engine.label_logprobs(branches, tuple(case.letters[:2]), labels)
            for branch, score in zip(branches, scores, strict=True):
                check_score(case, branch, tuple(case.letters[:2]), labels, score)
            for place, child in enumerate(children):
                assert case.oracle is not None
                case.oracle().check(prefix, child, place, sampling)
            usages.extend((*(child.usage for child in children), *(score.usage for score in scores)))
            prefix = branches[level % 3]

    await asyncio.gather(*(grow(seed) for seed in range(6)))
    assert small.metric("evicted_tokens_total") > evicted, "there was not room for all"
    assert total_usage(usages).computed == await counted(small, before)
    await engine.aclose()


async def test_requests_wait_for_room(case: Case, small: Server) -> None:
    engine = case.open()
    before = small.computed()
    prompts = [case.prompt(20, 50 + seed) for seed in range(8)]  # each takes 20 + 2 x 60, together 3.5 times the room

    async def grow(prompt: Prefix) -> list[Usage]:
        return [child.usage for child in await sampled(engine, prompt, Sampling(max_tokens=60), range(2))]

    usages = [usage for tree in await asyncio.gather(*map(grow, prompts)) for usage in tree]
    # One that the server throws out for want of room would be charged twice.
    assert total_usage(usages).computed == await counted(small, before)
    await engine.aclose()


async def test_a_search_keeps_its_budget(small: Server) -> None:
    engine = SGLangEngine(small.address)
    before = small.computed()
    outcome = await search(
        engine,
        countdown_task(engine, Puzzle((3, 7, 9, 13), 101)),
        strategy=BestFirst(k=4),
        verifier=countdown_verifier(engine),
        budget=Budget(computed_tokens=3000),
    )
    assert outcome.usage.computed == await counted(small, before) <= 3000
    await engine.aclose()
