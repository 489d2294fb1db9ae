"""The server and the embedded engine say the same: greedily, and drawn by the same seeds."""

from collections.abc import AsyncIterator

import pytest

from tests.sglang.server import Server
from tts_agent import Prefix, Sampling
from tts_agent.engines import Completion, Engine
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.pocket import countdown_task, model_folder
from tts_agent.pocket.puzzles import Puzzle

PUZZLES = [
    Puzzle((a, b, c, d), 24) for a in range(1, 6) for b in (2, 7) for c, d in ((3, 8), (4, 4), (5, 9), (6, 6), (1, 10))
]


@pytest.fixture
async def engines(pocket: Server) -> AsyncIterator[tuple[Engine, Engine]]:
    pair = SGLangEngine(pocket.address), EmbeddedEngine(model_folder())
    yield pair
    for engine in pair:
        await engine.aclose()


async def say(engine: Engine, prefix: Prefix, sampling: Sampling, n: int) -> list[Completion]:
    found = [completion async for completion in engine.sample(prefix, sampling, seeds=range(n))]
    return sorted(found, key=lambda completion: completion.index)


async def test_50_prompts_greedily(engines: tuple[Engine, Engine]) -> None:
    served, embedded = engines
    assert len(PUZZLES) == 50
    for puzzle in PUZZLES:
        task = countdown_task(embedded, puzzle)
        sampling = Sampling(max_tokens=40, temperature=0, stop_ids=embedded.capabilities.end_ids)
        (theirs,), (ours,) = [await say(engine, task.root, sampling, 1) for engine in (served, embedded)]
        assert (theirs.ids, theirs.finish) == (ours.ids, ours.finish)
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-3)


@pytest.mark.parametrize(
    "cuts", [{}, {"temperature": 0.7}, {"temperature": 1.4, "top_p": 0.9}, {"top_k": 5}, {"min_p": 0.2, "top_k": 9}]
)
async def test_drawn_by_the_same_seeds(engines: tuple[Engine, Engine], cuts: dict[str, float]) -> None:
    served, embedded = engines
    sampling = Sampling(max_tokens=16, **cuts)
    for puzzle in PUZZLES[::10]:
        task = countdown_task(embedded, puzzle)
        theirs, ours = [await say(engine, task.root, sampling, 8) for engine in (served, embedded)]
        assert [one.ids for one in theirs] == [one.ids for one in ours]
        for one, other in zip(theirs, ours, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


async def test_labels(engines: tuple[Engine, Engine]) -> None:
    served, embedded = engines
    prefixes = [countdown_task(embedded, puzzle).root for puzzle in PUZZLES[::5]]
    theirs, ours = [await engine.label_logprobs(prefixes, (20, 21), [5, (6, 7)]) for engine in (served, embedded)]
    for one, other in zip(theirs, ours, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
