"""The scripted engine: a function of prompt and seed, a clock that is not the machine's, a count of its own."""

import json
from pathlib import Path

import pytest

from tests.scripts import make_engine
from tts_agent import Prefix, Sampling, ScriptedEngine, Usage
from tts_agent.engines import Fault, load_engine
from tts_agent.errors import ConfigError, EngineUnavailable, PromptError

PROMPT = Prefix(tuple(map(ord, "root\n")))
LINE = Sampling(max_tokens=6, stop_ids=(ord("\n"),))


async def test_a_sample_depends_on_prompt_and_seed_not_on_its_siblings() -> None:
    engine = make_engine()
    alone = [c async for c in engine.sample(PROMPT, LINE, seeds=[5])]
    among = [c async for c in engine.sample(PROMPT, LINE, seeds=[3, 5, 9])]
    assert alone[0].ids == next(c.ids for c in among if c.index == 1)


async def test_samples_end_in_the_order_of_their_virtual_time() -> None:
    engine = ScriptedEngine(lambda prefix, seed: "x\n", latency=lambda prefix, seed: seed)
    ends = [(c.index, c.at) async for c in engine.sample(PROMPT, LINE, seeds=[5, 1, 3], at=10.0)]
    assert ends == [(1, 11.0), (2, 13.0), (0, 15.0)]


async def test_completions_end_at_a_stop_id_or_at_max_tokens() -> None:
    engine = ScriptedEngine(lambda prefix, seed: "" if seed == 0 else "abcdefgh" if seed == 1 else "ab\ncd")
    by_seed = {c.index: c async for c in engine.sample(PROMPT, LINE, seeds=[0, 1, 2])}
    assert [engine.decode(by_seed[i].ids) for i in range(3)] == [" ", "abcdef", "ab\n"]
    assert [by_seed[i].finish for i in range(3)] == ["length", "length", "stop"]


async def test_with_a_cache_only_the_last_token_of_a_known_branch_is_computed() -> None:
    engine = make_engine(cache=True)
    first = [c async for c in engine.sample(PROMPT, LINE, seeds=[1, 2])]
    assert [c.usage.prompt_computed for c in sorted(first, key=lambda c: c.index)] == [5, 0]
    grown = PROMPT.extend(first[0].ids)
    child = [c async for c in engine.sample(grown, LINE, seeds=[3])][0]
    assert (child.usage.prompt_computed, child.usage.prompt_cached) == (1, len(grown) - 1)


async def test_the_record_is_written_before_the_answer_is_given(tmp_path: Path) -> None:
    record = tmp_path / "served.jsonl"
    engine = make_engine(record=record, faults={1: Fault("lost", after=1)})
    async for _ in engine.sample(PROMPT, LINE, seeds=[1, 2]):
        lines = [Usage.from_json(json.loads(line)) for line in record.read_text().splitlines()]
        assert sum(lines, Usage()) == engine.served
    with pytest.raises(EngineUnavailable):
        async for _ in engine.sample(PROMPT, LINE, seeds=[1, 2, 3]):
            pass
    lines = [Usage.from_json(json.loads(line)) for line in record.read_text().splitlines()]
    assert len(lines) == 5 and sum(lines, Usage()) == engine.served
    await engine.aclose()


async def test_faults_happen_where_they_are_asked_for() -> None:
    engine = make_engine(faults={0: Fault("refused"), 1: Fault("lost", after=1), 2: Fault("unconfirmed")})
    with pytest.raises(EngineUnavailable, match="refused"):
        await anext(engine.sample(PROMPT, LINE, seeds=[1, 2]))
    assert engine.served == Usage()
    stream = engine.sample(PROMPT, LINE, seeds=[1, 2])
    await anext(stream)
    with pytest.raises(EngineUnavailable, match="lost"):
        await anext(stream)
    stream = engine.sample(PROMPT, LINE, seeds=[1, 2])
    assert await stream.abort() is None and await stream.abort() == Usage()
    stream = engine.sample(PROMPT, LINE, seeds=[1, 2])
    used = await stream.abort()
    assert used is not None and used.generated > 0
    assert [c async for c in stream] == []


async def test_stop_texts_end_a_completion_and_constraints_are_refused() -> None:
    engine = ScriptedEngine(lambda prefix, seed: "abcdefgh")
    (sample,) = [c async for c in engine.sample(PROMPT, Sampling(max_tokens=8, stop_texts=("de", "g")), seeds=[1])]
    assert (engine.decode(sample.ids), sample.finish) == ("abcde", "stop")
    with pytest.raises(ConfigError, match="'scripted' cannot constrain"):
        engine.sample(PROMPT, Sampling(max_tokens=8, regex="a"), seeds=[1])


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(PromptError, match="a prompt of 5 tokens and max_tokens=6 do not fit the context of 10"):
        make_engine(context=10).sample(PROMPT, LINE, seeds=[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"max_tokens": 1, "temperature": -1.0}, "temperature=-1.0 must be a finite number >= 0"),
        ({"max_tokens": 1, "top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"max_tokens": 1, "top_k": -1}, "top_k=-1 must be >= 0"),
        ({"max_tokens": 1, "min_p": 1.5}, r"min_p=1.5 must lie in \[0, 1\]"),
        ({"max_tokens": 1, "presence_penalty": 3.0}, r"presence_penalty=3.0 must lie in \[-2, 2\]"),
        ({"max_tokens": 1, "frequency_penalty": -3.0}, r"frequency_penalty=-3.0 must lie in \[-2, 2\]"),
        ({"max_tokens": 1, "repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a finite number > 0"),
        ({"max_tokens": 1, "stop_texts": ("a", "")}, "has an empty text"),
        ({"max_tokens": 1, "regex": "a", "json_schema": "{}"}, "give one of them"),
    ],
)
def test_sampling_that_means_nothing_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["pocket", "vllm://x", "embedded://"])
def test_unknown_engines_are_refused_and_the_known_ones_named(url: str) -> None:
    with pytest.raises(ConfigError, match="unknown engine '.*'; known: 'embedded://pocket'"):
        load_engine(url)
