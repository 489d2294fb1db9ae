"""How tokens are drawn, constrained and stopped by the embedded engine; who gets how much of it."""

import asyncio
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import models
from tests.engines.oracle import Oracle
from tests.engines.test_contract import sampled, serving
from tts_agent import Prefix, Sampling
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.engines.embedded import engine as engine_module
from tts_agent.engines.embedded.sampler import Wish, draw, uniforms
from tts_agent.errors import ConfigError, EngineUnavailable
from tts_agent.pocket import model_folder
from tts_agent.usage import total_usage

PROMPT = Prefix(tuple(range(40, 70)))
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Zürich", "Paris", "東京"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 30},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"top_k": 5, "top_p": 0.8, "min_p": 0.05},
        {"presence_penalty": 2.0},
        {"frequency_penalty": -1.5},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.7, "presence_penalty": 1.0, "frequency_penalty": 0.5, "top_k": 20},
        {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 1.0},
    ],
    ids=str,
)
async def test_every_option_draws_what_it_says(options: dict[str, float]) -> None:
    oracle = Oracle.of(models.qwen())
    async with serving(EmbeddedEngine(models.qwen())) as engine:
        sampling = Sampling(**{"max_tokens": 12, "temperature": 0.8, **options})  # type: ignore[arg-type]
        plain = Sampling(max_tokens=12)
        samples, beside = await asyncio.gather(
            sampled(engine, PROMPT, sampling, range(6)), sampled(engine, PROMPT, plain, range(3))
        )
        for seed, sample in enumerate(samples):
            oracle.check(PROMPT, sample, seed, sampling)
        for seed, sample in enumerate(beside):
            oracle.check(PROMPT, sample, seed, plain)


async def test_a_penalty_for_repeating_keeps_greedy_from_a_loop() -> None:
    async with serving(EmbeddedEngine(models.qwen())) as engine:
        greedy = Sampling(max_tokens=40, temperature=0)
        never = Sampling(max_tokens=40, temperature=0, frequency_penalty=2.0, presence_penalty=2.0)
        (loops,), (varies,) = [await sampled(engine, PROMPT, s, [0]) for s in (greedy, never)]
        most = [Counter(sample.ids).most_common(1)[0][1] for sample in (loops, varies)]
        assert most[1] < most[0]


@settings(max_examples=200, deadline=None)
@given(vocab=st.integers(1, 700), seed=st.integers(0, 2**32), sparse=st.sampled_from((0.0, 0.5, 0.99)))
def test_a_number_falls_on_the_token_whose_share_holds_it(vocab: int, seed: int, sparse: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=4, size=(3, vocab)).astype(np.float32)
    logits[rng.random((3, vocab)) < sparse] = -np.inf
    logits[:, rng.integers(vocab)] = 1.0
    edges = np.exp(logits.astype(np.float64) - logits.max()).cumsum(axis=1)
    edges /= edges[:, -1:]
    uniform = np.concatenate((rng.random(1), [0.0, 1 - 2**-53]))
    wishes = [Wish(Sampling(max_tokens=1), (0,), ())] * 3
    tokens, logprobs = draw(torch.from_numpy(logits), wishes, uniform)
    for row, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        below = edges[row, token - 1] if token else 0.0
        assert np.isfinite(logits[row, token]), "a token without a share was drawn"
        assert below - 1e-6 <= uniform[row] <= edges[row, token] + 1e-6
        assert logprob == pytest.approx(float(torch.log_softmax(torch.from_numpy(logits[row]), -1)[token]), abs=1e-5)


def test_a_draw_does_not_depend_on_its_siblings_in_a_vocabulary_of_many_blocks() -> None:
    rows = torch.randn(64, 5000, generator=torch.Generator().manual_seed(1)) * 3
    wishes = [Wish(Sampling(max_tokens=1), (0,), ())] * 64
    uniform = uniforms(np.arange(64, dtype=np.uint64), np.zeros(64, dtype=np.uint64))
    together, _ = draw(rows, wishes, uniform)
    alone = [draw(rows[i : i + 1], wishes[:1], uniform[i : i + 1])[0][0] for i in range(64)]
    assert together == alone


# Stop texts


@pytest.mark.parametrize("folder", [models.qwen, models.llama], ids=["qwen", "llama"])
async def test_a_stop_text_ends_with_the_token_that_completes_it(folder: models.Folder) -> None:
    async with serving(EmbeddedEngine(folder())) as engine:
        free = await sampled(engine, PROMPT, Sampling(max_tokens=20), range(12))
        texts = [engine.decode(sample.ids) for sample in free]
        # Two characters that some samples say, most of them in the middle of a token or across two.
        stops = tuple({text[place : place + 2] for text in texts for place in (3, 7, 12)} - {"\ufffd\ufffd", ""})
        stopped = await sampled(engine, PROMPT, Sampling(max_tokens=20, stop_texts=stops), range(12))
        for whole, cut in zip(free, stopped, strict=True):
            assert whole.ids[: len(cut.ids)] == cut.ids, "the token is kept whole, and nothing else changes"
            said = [any(stop in engine.decode(cut.ids[:end]) for stop in stops) for end in range(1, len(cut.ids) + 1)]
            assert said[-1] == (cut.finish == "stop") and not any(said[:-1])
        assert {cut.finish for cut in stopped} >= {"stop"}
        assert total_usage(cut.usage for cut in stopped).generated == sum(len(cut.ids) for cut in stopped)


# Constraints


@pytest.mark.parametrize("folder", [models.qwen, models.llama], ids=["qwen", "llama"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
async def test_a_schema_is_obeyed(folder: models.Folder, temperature: float) -> None:
    async with serving(EmbeddedEngine(folder())) as engine:
        assert engine.capabilities.constrains
        sampling = Sampling(
            max_tokens=120,
            temperature=temperature,
            json_schema=json.dumps(SCHEMA),
            stop_ids=engine.capabilities.end_ids,
            min_p=0.02,
        )
        free = Sampling(max_tokens=10)
        samples, beside = await asyncio.gather(
            sampled(engine, PROMPT, sampling, range(8)), sampled(engine, PROMPT, free, [1, 2])
        )
        done = [sample for sample in samples if sample.finish == "stop"]
        assert len(done) >= 4
        for sample in done:
            ids = sample.ids[:-1] if sample.ids[-1] in engine.capabilities.end_ids else sample.ids
            said = json.loads(engine.decode(ids))
            assert said["city"] in SCHEMA["properties"]["city"]["enum"] and 1 <= said["days"] <= 30  # type: ignore[index]
        assert [b.ids for b in beside] == [b.ids for b in await sampled(engine, PROMPT, free, [1, 2])]


async def test_a_regular_expression_is_obeyed_and_ends_when_nothing_may_follow() -> None:
    async with serving(EmbeddedEngine(models.qwen())) as engine:
        for pattern in (r"(yes|no|maybe)!", r"[0-9]{3}-[a-f]{2}", r"[\u4e00-\u9fff]{2,4}\."):
            samples = await sampled(engine, PROMPT, Sampling(max_tokens=30, regex=pattern, temperature=1.5), range(10))
            for sample in samples:
                assert sample.finish == "stop"
                assert re.fullmatch(pattern, engine.decode(sample.ids))
            assert len({sample.ids for sample in samples}) > 1
        (cut,) = await sampled(engine, PROMPT, Sampling(max_tokens=4, regex="[0-9]{50}"), [1])
        assert (cut.finish, len(cut.ids)) == ("length", 4)


async def test_constraints_that_cannot_be_kept_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(EmbeddedEngine(models.qwen())) as engine:
        for options in ({"regex": "a(b"}, {"json_schema": "{"}, {"json_schema": '{"type": "nonsense"}'}):
            with pytest.raises(ConfigError, match="is wrong"):
                engine.sample(PROMPT, Sampling(max_tokens=5, **options), seeds=[1])  # type: ignore[arg-type]
        monkeypatch.setattr(engine_module, "available", lambda: False)
        with pytest.raises(ConfigError, match=r'pip install "tts-agent\[constraints\]"'):
            engine.sample(PROMPT, Sampling(max_tokens=5, regex="a"), seeds=[1])
        monkeypatch.undo()
    async with serving(EmbeddedEngine(model_folder())) as engine:
        with pytest.raises(ConfigError, match="cannot be constrained"):
            engine.sample(PROMPT, Sampling(max_tokens=5, regex="a"), seeds=[1])


# Hidden states


async def test_the_hidden_state_of_a_branch_is_read_not_computed_again() -> None:
    oracle = Oracle.of(models.llama())
    async with serving(EmbeddedEngine(models.llama())) as engine:
        assert engine.capabilities.hidden_states
        (sample,) = await sampled(engine, PROMPT, Sampling(max_tokens=9), [3])
        branch = PROMPT.extend(sample.ids)
        first, again = [(await engine.hidden_states([PROMPT, branch])) for _ in range(2)]
        for prefix, state in zip((PROMPT, branch), first, strict=True):
            assert state.values == pytest.approx(oracle.hidden(prefix.ids), abs=1e-4)
            assert state.usage.prompt == len(prefix)
        # The branch's last token was sampled and not run yet; then it is there.
        assert [state.usage.prompt_computed for state in first] == [0, 1]
        assert [state.usage.prompt_computed for state in again] == [0, 0]
        assert [state.values for state in again] == [state.values for state in first]


# Fairness


async def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    async with serving(EmbeddedEngine(models.llama(), max_branches=8)) as engine:
        many = asyncio.ensure_future(sampled(engine, PROMPT, Sampling(max_tokens=20), range(60)))
        await asyncio.sleep(0.02)
        before = engine.counters.generated
        await sampled(engine, PROMPT.extend((3,)), Sampling(max_tokens=20), range(3))
        assert not many.done()
        assert engine.counters.generated - before < 60 * 20 / 2
        assert len(await many) == 60


async def test_prompts_share_the_steps() -> None:
    async with serving(EmbeddedEngine(models.llama(), step_tokens=64)) as engine:
        long = Prefix(tuple(i % 700 for i in range(3000)))
        waiting = asyncio.ensure_future(sampled(engine, long, Sampling(max_tokens=2), [1]))
        await asyncio.sleep(0)
        await sampled(engine, PROMPT, Sampling(max_tokens=5), range(2))
        assert not waiting.done()
        assert engine.counters.computed < 1500
        await waiting


async def test_without_room_a_request_waits_and_then_names_the_cap() -> None:
    async with serving(EmbeddedEngine(models.llama(), cache_tokens=400, wait_seconds=0.01)) as engine:
        first = engine.sample(PROMPT, Sampling(max_tokens=360), seeds=[1])
        second = engine.sample(Prefix((5, 6, 7)), Sampling(max_tokens=100), seeds=[1])
        asked = asyncio.ensure_future(engine.label_logprobs([Prefix(tuple(range(90)))], (1,), (2,)))
        with pytest.raises(EngineUnavailable, match=r"wait_seconds=0\.01.*cache_tokens=400.*max_branches=256"):
            await anext(second)
        with pytest.raises(EngineUnavailable, match="cache_tokens=400"):
            await asked
        assert len((await anext(first)).ids) == 360
        assert len(await sampled(engine, Prefix((5, 6, 7)), Sampling(max_tokens=100), [1])) == 1


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="wait_seconds=0"):
        EmbeddedEngine(models.llama(), wait_seconds=0)
