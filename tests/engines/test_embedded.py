"""The embedded engine against plain `transformers` and against its own account."""

import asyncio
import copy
import gc
import json
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from tests.engines.conftest import VOCABULARY, Reference
from tts_agent import BestFirst, Budget, Task, search
from tts_agent.engines import Completion, Sampling, load_engine
from tts_agent.engines.base import question_bound, sample_bound
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.errors import ConfigError, EngineUnavailable, ModelError, PromptError
from tts_agent.prefix import Prefix
from tts_agent.usage import ZERO, Usage, total_usage


@asynccontextmanager
async def serving(reference: Reference, **options: int) -> AsyncIterator[EmbeddedEngine]:
    """An engine that is closed at the end and has leaked nothing by then."""
    engine = EmbeddedEngine(reference.folder, **options)
    try:
        yield engine
        assert engine.counters.in_use == 0
    finally:
        await engine.aclose()


def prompt(length: int, seed: int = 0) -> Prefix:
    rng = random.Random(seed)
    return Prefix(tuple(rng.randrange(VOCABULARY) for _ in range(length)))


async def sampled(engine: EmbeddedEngine, prefix: Prefix, sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
    """All samples of one request, in the order of their seeds."""
    found = [completion async for completion in engine.sample(prefix, sampling, seeds=seeds)]
    return sorted(found, key=lambda completion: completion.index)


def assert_scored(reference: Reference, prefix: Prefix, completion: Completion) -> None:
    """The completion's log-probabilities are those of a plain forward."""
    rows = reference.logprobs(prefix.ids + completion.ids)[len(prefix) - 1 : -1]
    expected = rows.gather(1, torch.tensor(completion.ids).unsqueeze(1)).squeeze(1)
    assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def assert_asked(reference: Reference, prefix: Prefix, suffix: Sequence[int], answer: Sequence[float]) -> None:
    """The answers are the log-probabilities of labels 5, 9 and 2."""
    expected = reference.logprobs((*prefix.ids, *suffix))[-1, [5, 9, 2]]
    assert list(answer) == pytest.approx(expected.tolist(), abs=1e-4)


# What is computed


async def test_greedy_is_what_generate_says(family: Reference) -> None:
    async with serving(family) as engine:
        prefixes = [prompt(length, seed=length) for length in (1, 2, 17, 60)]
        answers = await asyncio.gather(
            *(sampled(engine, p, Sampling(max_tokens=30, temperature=0), [7]) for p in prefixes)
        )
        for prefix, (completion,) in zip(prefixes, answers, strict=True):
            assert completion.ids == family.greedy(prefix.ids, 30)
            assert completion.finish == "length"
            assert_scored(family, prefix, completion)


async def test_branches_of_branches_are_scored_like_a_plain_forward(family: Reference) -> None:
    async with serving(family) as engine:
        parents = [prompt(20)]
        for level in range(3):
            grown = await asyncio.gather(
                *(sampled(engine, p, Sampling(max_tokens=9, stop_ids=(3, 4)), range(5)) for p in parents)
            )
            pairs = [(p, child) for p, children in zip(parents, grown, strict=True) for child in children]
            for parent, child in pairs:
                assert_scored(family, parent, child)
            parents = [parent.extend(child.ids) for parent, child in pairs][level::6]
            scores = await engine.label_logprobs(parents, (8, 30), (5, 9, 2))
            for parent, score in zip(parents, scores, strict=True):
                assert_asked(family, parent, (8, 30), score.logprobs)


async def test_in_one_go_and_in_pieces_are_the_same(plain: Reference) -> None:
    async with serving(plain) as engine:
        start = prompt(12)
        (whole,) = await sampled(engine, start, Sampling(max_tokens=24, temperature=0), [0])
        prefix = start
        for size in (1, 2, 5, 16):
            (piece,) = await sampled(engine, prefix, Sampling(max_tokens=size, temperature=0), [0])
            prefix = prefix.extend(piece.ids)
        assert prefix.ids == start.ids + whole.ids


async def test_long_prompts_are_computed_in_chunks(plain: Reference) -> None:
    async with serving(plain, step_tokens=7) as engine:
        prefix = prompt(50)
        busy = asyncio.ensure_future(sampled(engine, prompt(3, seed=9), Sampling(max_tokens=40), [1, 2]))
        (completion,) = await sampled(engine, prefix, Sampling(max_tokens=5, temperature=0), [0])
        assert completion.ids == plain.greedy(prefix.ids, 5)
        assert completion.usage.prompt_computed == 50
        question = prompt(30, seed=5)
        (score,) = await engine.label_logprobs([question], range(11), (5, 9, 2))
        assert_asked(plain, question, range(11), score.logprobs)
        await busy


async def test_stop_ids_end_a_sample_and_are_kept(plain: Reference) -> None:
    async with serving(plain) as engine:
        stops = (3, 4, 5, 6, 7, 8)
        samples = await sampled(engine, prompt(10), Sampling(max_tokens=25, stop_ids=stops), range(30))
        assert {completion.finish for completion in samples} == {"stop", "length"}
        for completion in samples:
            stopped = completion.finish == "stop"
            assert (completion.ids[-1] in stops) == stopped
            assert not set(completion.ids[:-1]) & set(stops)
            assert stopped or len(completion.ids) == 25


async def test_a_completion_arrives_when_it_ends(plain: Reference) -> None:
    async with serving(plain) as engine:
        sampling = Sampling(max_tokens=60, stop_ids=tuple(range(12)))
        order = [len(c.ids) async for c in engine.sample(prompt(5), sampling, seeds=range(20))]
        assert order == sorted(order)
        assert order[0] < order[-1]


# Sampling


async def test_a_sample_depends_on_its_seed_alone(plain: Reference) -> None:
    async with serving(plain) as engine:
        prefix, sampling = prompt(15), Sampling(max_tokens=12, temperature=0.9, stop_ids=(4,))
        many = await sampled(engine, prefix, sampling, range(100, 116))
        await engine.flush()
        alone = [(await sampled(engine, prefix, sampling, [seed]))[0] for seed in (115, 100, 107)]
        assert [c.ids for c in alone] == [many[15].ids, many[0].ids, many[7].ids]
        noise = asyncio.gather(*(sampled(engine, prompt(9, s), Sampling(max_tokens=20), range(6)) for s in (5, 6)))
        again = await sampled(engine, prefix, sampling, [107, 107, -1, 2**64 - 1])
        assert again[0].ids == again[1].ids == many[7].ids
        assert again[2].ids == again[3].ids, "seeds are taken modulo 2**64"
        assert len({c.ids for c in many}) > 10
        await noise


async def test_frequencies_follow_the_model(plain: Reference) -> None:
    async with serving(plain) as engine:
        prefix, count = prompt(8), 4000
        expected = plain.logprobs(prefix.ids)[-1].exp()
        samples = await sampled(engine, prefix, Sampling(max_tokens=1), range(count))
        seen = torch.bincount(torch.tensor([c.ids[0] for c in samples]), minlength=VOCABULARY) / count
        assert (seen - expected).abs().max() < 4 * (0.25 / count) ** 0.5
        assert total_usage(c.usage for c in samples).computed == len(prefix)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(max_tokens=1, top_k=3), 3),
        (Sampling(max_tokens=1, top_p=0.5), None),
        (Sampling(max_tokens=1, top_k=1), 1),
        (Sampling(max_tokens=1, temperature=2.0, top_p=1e-9), 1),
    ],
)
async def test_cuts_leave_the_most_likely_tokens(plain: Reference, sampling: Sampling, allowed: int | None) -> None:
    async with serving(plain) as engine:
        prefix = prompt(8)
        ranked = plain.logprobs(prefix.ids)[-1].exp().sort(descending=True)
        if allowed is None:
            allowed = int((ranked.values.cumsum(0) < sampling.top_p).sum()) + 1
        samples = await sampled(engine, prefix, sampling, range(400))
        assert {c.ids[0] for c in samples} == set(ranked.indices[:allowed].tolist())
        for completion in samples[:20]:
            assert_scored(plain, prefix, completion)


async def test_a_low_temperature_sharpens(plain: Reference) -> None:
    async with serving(plain) as engine:
        prefix = prompt(8)
        best = int(plain.logprobs(prefix.ids)[-1].argmax())
        cold = await sampled(engine, prefix, Sampling(max_tokens=1, temperature=0.02), range(50))
        assert {c.ids[0] for c in cold} == {best}


# Usage


async def test_usages_add_up_to_the_counter(plain: Reference) -> None:
    async with serving(plain) as engine:
        usages: list[Usage] = []
        prefix, sampling = prompt(20), Sampling(max_tokens=10, stop_ids=(4, 5, 6))
        first = await sampled(engine, prefix, sampling, range(6))
        usages.extend(c.usage for c in first)
        assert sorted(c.usage.prompt_computed for c in first) == [0] * 5 + [20]
        assert {c.usage.prompt for c in first} == {20}
        assert all(c.usage.decoded == len(c.ids) - 1 for c in first)
        assert total_usage(usages).calls == 1

        children = [prefix.extend(c.ids) for c in first]
        scores = await engine.label_logprobs(children, (1, 2, 3), (7, 8))
        usages.extend(score.usage for score in scores)
        for child, score in zip(children, scores, strict=True):
            assert score.usage.prompt == len(child) + 3
            assert score.usage.calls == 1
            assert score.usage.prompt_computed <= question_bound(len(child), 3).prompt_computed
        # The last sampled token of each branch and the question; a second question finds the branch complete.
        assert {score.usage.prompt_computed for score in scores} <= {3, 4}
        again = await engine.label_logprobs(children, (1, 2, 3), (7, 8))
        usages.extend(score.usage for score in again)
        assert {score.usage.prompt_computed for score in again} == {3}
        for score, other in zip(scores, again, strict=True):
            assert score.logprobs == pytest.approx(other.logprobs, abs=1e-4)

        grown = await asyncio.gather(*(sampled(engine, child, sampling, [1, 2]) for child in children))
        usages.extend(c.usage for siblings in grown for c in siblings)
        assert all(c.usage.prompt_computed == 0 for siblings in grown for c in siblings)

        counters, total = engine.counters, total_usage(usages)
        assert (total.computed, total.prompt_cached) == (counters.computed, counters.cached)
        assert (total.generated, total.calls) == (counters.generated, counters.requests)


async def test_a_question_leaves_the_cache_as_it_was(plain: Reference) -> None:
    async with serving(plain) as engine:
        prefix = prompt(14)
        await engine.label_logprobs([prefix], (), (1,))
        resident = engine.counters.resident
        assert resident == 14
        for suffix in ((), (3,), (3, 4, 5)):
            (score,) = await engine.label_logprobs([prefix], suffix, (5, 9, 2))
            assert_asked(plain, prefix, suffix, score.logprobs)
            assert score.usage == Usage(prompt_computed=len(suffix), prompt_cached=14, calls=1)
        assert engine.counters.resident == resident
        (score,) = await engine.label_logprobs([prefix.extend((3, 4, 5))], (), (5, 9, 2))
        assert score.usage.prompt_computed == 3, "the suffix was not kept"


async def test_the_same_new_prompt_is_computed_once(plain: Reference) -> None:
    async with serving(plain, step_tokens=16) as engine:
        prefix = prompt(40)
        longer = prefix.extend(prompt(10, seed=3).ids)
        sampling = Sampling(max_tokens=4)
        answers = await asyncio.gather(
            sampled(engine, prefix, sampling, [1]),
            sampled(engine, longer, sampling, [2, 3]),
            sampled(engine, prefix, sampling, [4]),
            sampled(engine, Prefix(prefix.ids[:30]), sampling, [5]),
        )
        computed = total_usage(c.usage for answer in answers for c in answer).prompt_computed
        assert computed == len(longer)
        for p, answer in zip((prefix, longer, prefix, Prefix(prefix.ids[:30])), answers, strict=True):
            for completion in answer:
                assert_scored(plain, p, completion)


async def test_equal_siblings_share_their_place(plain: Reference) -> None:
    async with serving(plain) as engine:
        samples = await sampled(engine, prompt(10), Sampling(max_tokens=8), [5] * 6)
        assert len({c.ids for c in samples}) == 1
        assert engine.counters.resident == 10 + 7


# Many at once, and too many


async def test_64_branches_of_unequal_lengths(plain: Reference) -> None:
    async with serving(plain) as engine:
        root = prompt(30)
        middle = await sampled(engine, root, Sampling(max_tokens=6, stop_ids=(3,)), range(8))
        parents = [root.extend(c.ids) for c in middle] + [prompt(n, seed=n) for n in range(1, 9)]
        sampling = Sampling(max_tokens=20, stop_ids=(3, 4))
        grown = await asyncio.gather(*(sampled(engine, p, sampling, range(4)) for p in parents))
        assert sum(map(len, grown)) == 64
        for parent, children in zip(parents, grown, strict=True):
            for child in children:
                assert_scored(plain, parent, child)
        assert engine.counters.computed < engine.counters.forwards * 64


async def test_a_wide_request_and_lone_branches_below_it(plain: Reference) -> None:
    async with serving(plain) as engine:
        root = prompt(100)
        wide = await sampled(engine, root, Sampling(max_tokens=30, stop_ids=(3,)), range(70))
        for completion in wide[::7]:
            assert_scored(plain, root, completion)
        # One sample each below different nodes, beside questions about them: what they share lies above.
        parents = [root.extend(completion.ids) for completion in wide[:20]]
        parents += [Prefix(parent.ids[:110]) for parent in parents[:6]]
        *grown, scores = await asyncio.gather(
            *(sampled(engine, parent, Sampling(max_tokens=12), [1]) for parent in parents),
            engine.label_logprobs(parents, (6,), (5, 9, 2)),
        )
        for parent, (child,), score in zip(parents, grown, scores, strict=True):
            assert_scored(plain, parent, child)
            assert_asked(plain, parent, (6,), score.logprobs)


async def test_answers_stay_right_under_eviction(plain: Reference) -> None:
    async with serving(plain, cache_tokens=90) as engine:
        usages: list[Usage] = []
        sampling = Sampling(max_tokens=8, stop_ids=(3,))

        async def search(seed: int) -> None:
            prefix = prompt(10, seed % 3)
            for level in range(4):
                children = await sampled(engine, prefix, sampling, range(seed, seed + 3))
                usages.extend(c.usage for c in children)
                for child in children:
                    assert_scored(plain, prefix, child)
                bound = sample_bound(engine.capabilities, len(prefix), 3, 8)
                spent = total_usage(c.usage for c in children)
                assert spent.computed <= bound.computed
                assert spent.total <= bound.total
                prefixes = [prefix.extend(c.ids) for c in children]
                scores = await engine.label_logprobs(prefixes, (9,), (5, 9, 2))
                usages.extend(score.usage for score in scores)
                for p, score in zip(prefixes, scores, strict=True):
                    assert_asked(plain, p, (9,), score.logprobs)
                prefix = prefixes[level % 3]

        await asyncio.gather(*(search(seed) for seed in range(6)))
        counters = engine.counters
        assert counters.evicted > 0
        assert counters.resident <= 90
        assert total_usage(usages).computed == counters.computed


async def test_more_samples_than_fit_wait_their_turn(plain: Reference) -> None:
    async with serving(plain, cache_tokens=40, max_branches=3) as engine:
        prefix = prompt(12)
        samples = await sampled(engine, prefix, Sampling(max_tokens=10), range(12))
        assert [c.index for c in samples] == list(range(12))
        for completion in samples:
            assert_scored(plain, prefix, completion)
        assert total_usage(c.usage for c in samples).prompt_computed == 12


async def test_abort_frees_slots_and_tells_the_usage(plain: Reference) -> None:
    async with serving(plain, cache_tokens=200) as engine:
        prefix = prompt(16)
        stream = engine.sample(prefix, Sampling(max_tokens=150, stop_ids=(3,)), seeds=[1, 2, 3, 4])
        first = await anext(stream)
        rest = await stream.abort()
        assert rest is not None
        assert first.usage.computed + rest.computed == engine.counters.computed
        assert first.usage.generated + rest.generated == engine.counters.generated
        assert engine.counters.in_use == 0
        assert engine.counters.resident == 16 + len(first.ids) - 1, "unfinished branches are gone"
        assert await stream.abort() == ZERO
        assert [c async for c in stream] == []
        # Nothing is in the way of a request that needs the whole cache.
        assert len(await sampled(engine, prefix, Sampling(max_tokens=184), [9])) == 1


async def test_abort_before_the_first_token(plain: Reference) -> None:
    async with serving(plain) as engine:
        stream = engine.sample(prompt(200), Sampling(max_tokens=9), seeds=[1])
        usage = await stream.abort()
        assert usage is not None
        assert usage.computed == engine.counters.computed


async def test_a_dropped_stream_stops(plain: Reference) -> None:
    async with serving(plain) as engine:
        stream = engine.sample(prompt(5), Sampling(max_tokens=250), seeds=range(8))
        del stream
        gc.collect()
        await engine.flush()
        assert engine.counters.in_use == 0
        assert engine.counters.generated < 8 * 250


async def test_cancelled_consumers_leave_nothing_behind(plain: Reference) -> None:
    async with serving(plain) as engine:
        stream = engine.sample(prompt(5), Sampling(max_tokens=200), seeds=range(4))
        waiting = asyncio.ensure_future(anext(stream))
        asking = asyncio.ensure_future(engine.label_logprobs([prompt(100, s) for s in range(20)], (1,), (2,)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        asking.cancel()
        await asyncio.gather(waiting, asking, return_exceptions=True)
        assert (await stream.abort()) is not None
        await engine.flush()
        assert (engine.counters.in_use, engine.counters.resident) == (0, 0)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_use_under_a_small_cap(plain: Reference, seed: int) -> None:
    """Requests, questions and aborts at random: answers right, usages add up, nothing leaks."""
    rng = random.Random(seed)
    usages: list[Usage] = []

    async def client(engine: EmbeddedEngine) -> None:
        prefix = prompt(rng.randrange(1, 20), rng.randrange(3))
        for _ in range(3):
            await asyncio.sleep(rng.choice((0, 0, 0.002)))
            sampling = Sampling(max_tokens=rng.randrange(1, 9), stop_ids=(3, 4))
            stream = engine.sample(prefix, sampling, seeds=range(rng.randrange(1, 6)))
            stop_after = rng.choice((1, 9, 9))
            children = []
            async for child in stream:
                children.append(child)
                if len(children) == stop_after:
                    break
            usages.extend(c.usage for c in children)
            aborted = await stream.abort()
            assert aborted is not None
            usages.append(aborted)
            for child in children:
                assert_scored(plain, prefix, child)
            suffix = range(rng.randrange(4))
            prefixes = [prefix.extend(c.ids) for c in children]
            for p, score in zip(prefixes, await engine.label_logprobs(prefixes, suffix, (5, 9, 2)), strict=True):
                assert_asked(plain, p, suffix, score.logprobs)
                usages.append(score.usage)
            prefix = rng.choice(prefixes)

    async def scenario() -> None:
        async with serving(plain, cache_tokens=70, max_branches=12, step_tokens=11) as engine:
            await asyncio.gather(*(client(engine) for _ in range(8)))
            counters = engine.counters
            assert total_usage(usages).computed == counters.computed
            assert total_usage(usages).generated == counters.generated
            assert total_usage(usages).prompt_cached == counters.cached

    asyncio.run(scenario())


def test_two_event_loops_share_an_engine(plain: Reference) -> None:
    engine = EmbeddedEngine(plain.folder)
    answers: dict[int, list[Completion]] = {}

    def client(seed: int) -> None:
        answers[seed] = asyncio.run(sampled(engine, prompt(10, seed), Sampling(max_tokens=15), range(4)))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, samples in answers.items():
        assert len(samples) == 4
        for completion in samples:
            assert_scored(plain, prompt(10, seed), completion)
    asyncio.run(engine.aclose())


async def test_closing_answers_everybody(plain: Reference) -> None:
    engine = EmbeddedEngine(plain.folder)
    stream = engine.sample(prompt(5), Sampling(max_tokens=250), seeds=range(30))
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await engine.aclose()
    with pytest.raises(EngineUnavailable):
        await waiting
    with pytest.raises(EngineUnavailable):
        engine.sample(prompt(5), Sampling(max_tokens=2), seeds=[1])
    await engine.aclose()


# What is refused


async def test_prompts_that_cannot_run_are_refused(plain: Reference) -> None:
    async with serving(plain, cache_tokens=100) as engine:
        for prefix, size, reason in (
            (prompt(250), 7, "context of 256"),
            (prompt(95), 6, "cache_tokens=100"),
            (Prefix(), 1, "empty"),
            (Prefix((1, VOCABULARY)), 1, f"token id {VOCABULARY}"),
        ):
            with pytest.raises(PromptError, match=reason):
                engine.sample(prefix, Sampling(max_tokens=size), seeds=[1])
        with pytest.raises(PromptError, match="context"):
            await engine.label_logprobs([prompt(250)], range(10), (1,))
        with pytest.raises(PromptError, match="token id -1"):
            await engine.label_logprobs([prompt(5)], (2,), (-1,))
        with pytest.raises(ConfigError, match="seed"):
            engine.sample(prompt(5), Sampling(max_tokens=1), seeds=[])
        assert (await sampled(engine, prompt(94), Sampling(max_tokens=6), [1]))[0].finish == "length"


@pytest.mark.parametrize("option", ["threads", "cache_tokens", "max_branches", "step_tokens"])
def test_settings_must_be_positive(plain: Reference, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}=0"):
        EmbeddedEngine(plain.folder, **{option: 0})


def test_a_device_or_a_cache_that_is_not_there_is_named(plain: Reference) -> None:
    for device in ("cuda:99", "tpu", "meta"):
        with pytest.raises(ConfigError, match=f"device='{device}'"):
            EmbeddedEngine(plain.folder, device=device)
    with pytest.raises(ConfigError, match="no memory for cache_tokens=10000000000000"):
        EmbeddedEngine(plain.folder, cache_tokens=10**13)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        EmbeddedEngine(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"config\.json"):
        EmbeddedEngine(tmp_path)


def test_a_file_in_the_place_of_a_model_folder_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for made in (EmbeddedEngine, lambda file: load_engine(f"embedded://{file}")):
        with pytest.raises(ModelError, match=f"is a file; give the model folder around it, '{tmp_path}'"):
            made(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_parameters": {"rope_type": "of-tomorrow", "rope_theta": 1e4}}, "of-tomorrow"),
        ({"hidden_act": "of-tomorrow"}, "of-tomorrow"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        ({"intermediate_size": 50}, "shape"),
    ],
)
def test_unsupported_folders_say_why(plain: Reference, tmp_path: Path, change: dict[str, object], reason: str) -> None:
    config = json.loads((plain.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes((plain.folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=reason):
        EmbeddedEngine(tmp_path)


def test_broken_files_say_which(plain: Reference, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((plain.folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        EmbeddedEngine(tmp_path)
    whole = (plain.folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    torn = [whole[:end] for end in (0, 5, 8, 20, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1)]
    torn += [b"\xff" * 8 + whole[8:], b"\0" * len(whole), whole[:8] + whole[9:], whole + b"more"]
    for damaged in torn:
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"model\.safetensors.*cannot be read.*copy the file again"):
            EmbeddedEngine(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        EmbeddedEngine(tmp_path)


async def test_weights_in_several_files_are_one_model_and_a_missing_file_is_named(
    plain: Reference, tmp_path: Path
) -> None:
    plain.model.save_pretrained(tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 2
    async with serving(Reference(tmp_path, plain.model)) as engine:
        (completion,) = await sampled(engine, prompt(9), Sampling(max_tokens=8, temperature=0), [0])
        assert completion.ids == plain.greedy(prompt(9).ids, 8)
    parts[1].unlink()
    with pytest.raises(ModelError, match=f"{parts[1].name}.*cannot be read"):
        EmbeddedEngine(tmp_path)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
async def test_weights_of_any_width_are_served_in_fp32(plain: Reference, tmp_path: Path, stored: torch.dtype) -> None:
    copy.deepcopy(plain.model).to(stored).save_pretrained(tmp_path)
    truth = Reference(tmp_path, LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval())
    async with serving(truth) as engine:
        for completion in await sampled(engine, prompt(12), Sampling(max_tokens=10), range(4)):
            assert_scored(truth, prompt(12), completion)


def test_a_tokenizer_and_end_ids_that_are_none_say_so(plain: Reference, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((plain.folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ModelError, match=r"tokenizer\.json.*cannot be read"):
        EmbeddedEngine(tmp_path).encode("w1")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ModelError, match="eos_token_id='x'"):
        EmbeddedEngine(tmp_path)


async def test_a_branch_that_fills_the_context_ends_as_length_and_the_search_goes_on(plain: Reference) -> None:
    async with serving(plain) as engine:
        root, stops = prompt(236), tuple(range(0, VOCABULARY, 8))
        task = Task(root, Sampling(max_tokens=12, stop_ids=stops))
        outcome = await search(engine, task, strategy=BestFirst(k=3), budget=Budget(calls=40))
        tree = outcome.tree
        lengths = {id: len(tree.prefix(id)) for id in tree.thoughts}
        full = [id for id, length in lengths.items() if length == 256]
        assert max(lengths.values()) == 256 and len(full) > 1
        assert all(tree.thoughts[id].finish == "length" or tree.thoughts[id].ids[-1] in stops for id in full)
        cut = [id for id in full if tree.thoughts[id].finish == "length" and len(tree.thoughts[id].ids) < 12]
        assert cut, "no branch was cut in the middle"
        assert max(tree.thoughts) > min(cut), "the search ended with the first branch that was cut"
        assert outcome.usage.computed == engine.counters.computed


async def test_text_and_ids(plain: Reference, tmp_path: Path) -> None:
    async with serving(plain) as engine:
        assert engine.encode("w4 w7 w60") == (4, 7, 60)
        assert engine.decode((4, 7, 60)) == "w4 w7 w60"
        assert engine.encode("w4 a\ud800b") == engine.encode("w4 a\ufffdb"), "half a surrogate pair is no character"
        assert engine.capabilities.context == 256
        assert engine.capabilities.shares_prompt
        assert engine.capabilities.end_ids == (2,), "LlamaConfig's eos_token_id"
        assert str(plain.folder) in engine.name
