"""Models served through `transformers`: each family against its own eager attention, and what is refused."""

import asyncio
import json
import random
from pathlib import Path

import pytest
import torch
import transformers as hf

from tests.engines.conftest import Reference
from tests.engines.families import REFUSED, SERVED, VOCABULARY, WINDOW, WINDOWS, write
from tts_agent.engines import Sampling
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.engines.embedded.loading import load_model
from tts_agent.errors import ModelError, PromptError
from tts_agent.prefix import Prefix

hf.logging.disable_progress_bar()


async def check_branches(engine: EmbeddedEngine, truth: Reference, *, trees: int, seed: int) -> int:
    """Grow random trees, compare every branch and answer with a plain forward; returns how many were compared."""
    rng, checked = random.Random(seed), 0
    context = engine.capabilities.context or 256

    async def grow(root: Prefix) -> None:
        nonlocal checked
        live = [root]
        for _ in range(rng.randrange(1, 4)):
            grown: list[Prefix] = []
            sampling = Sampling(max_tokens=rng.randrange(1, 12), stop_ids=(3, 4), temperature=rng.choice((0.0, 1.0)))
            for prefix in live:
                if len(prefix) + sampling.max_tokens + 4 > context:
                    continue
                async for child in engine.sample(prefix, sampling, seeds=range(rng.randrange(1, 5))):
                    whole = prefix.extend(child.ids)
                    rows = truth.logprobs(whole.ids)[len(prefix) - 1 : -1]
                    expected = rows.gather(1, torch.tensor(child.ids).unsqueeze(1)).squeeze(1)
                    assert child.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
                    checked += 1
                    grown.append(whole)
            suffix = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(4)))
            for prefix, score in zip(grown, await engine.label_logprobs(grown, suffix, (5, 9)), strict=True):
                expected = truth.logprobs(prefix.ids + suffix)[-1, [5, 9]]
                assert score.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
            live = rng.sample(grown, min(3, len(grown)))

    roots = [Prefix(tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 60)))) for _ in range(trees)]
    roots += [Prefix(root.ids[: len(root) // 2 + 1]) for root in roots]
    await asyncio.gather(*map(grow, roots))
    return checked


@pytest.mark.parametrize("name", SERVED)
async def test_a_family_computes_what_its_own_attention_does(name: str, tmp_path: Path) -> None:
    truth = Reference(tmp_path, write(SERVED[name](), tmp_path))
    engine = EmbeddedEngine(tmp_path, cache_tokens=600, step_tokens=40)
    try:
        assert engine.capabilities.context == (WINDOW if name in WINDOWS else 256)
        assert await check_branches(engine, truth, trees=4, seed=1) > 20
    finally:
        await engine.aclose()


@pytest.mark.verify
@pytest.mark.parametrize("name", SERVED)
async def test_a_family_over_2000_random_branches(name: str, tmp_path: Path) -> None:
    truth = Reference(tmp_path, write(SERVED[name](), tmp_path))
    engine = EmbeddedEngine(tmp_path, cache_tokens=900, step_tokens=40)
    try:
        checked = 0
        for seed in range(1000):
            checked += await check_branches(engine, truth, trees=6, seed=seed)
            if checked >= 2000:
                break
        assert checked >= 2000
    finally:
        await engine.aclose()


async def test_beyond_its_window_a_model_is_not_served(tmp_path: Path) -> None:
    write(SERVED["gemma3"](), tmp_path)
    engine = EmbeddedEngine(tmp_path)
    prefix = Prefix(tuple(range(60)))
    with pytest.raises(PromptError, match=f"context of {WINDOW}"):
        engine.sample(prefix, Sampling(max_tokens=WINDOW - 59), seeds=[1])
    await engine.aclose()


def test_positions_with_a_second_scale_are_served_up_to_the_first(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = hf.Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=128,
        rope_parameters=rope,
        pad_token_id=0,
    )
    write(config, tmp_path)
    assert load_model(tmp_path).shape.context == 128


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_exact_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    write(config(), tmp_path)
    with pytest.raises(ModelError, match=reason):
        load_model(tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = hf.T5Config(vocab_size=61, d_model=32, num_layers=2, num_heads=4, d_ff=48)
    hf.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder"):
        load_model(tmp_path)


def test_broken_folders_say_why(tmp_path: Path) -> None:
    write(SERVED["qwen3"](), tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    for damaged in (whole[:-100], whole[:20], b""):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match="cannot load"):
            load_model(tmp_path)
    weights.write_bytes(whole)
    for change, reason in (
        ({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, "missing_keys"),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, "unexpected_keys"),
        ({"intermediate_size": 50}, "intermediate_size|size mismatch|mismatched|cannot load"),
        ({"model_type": "of-tomorrow"}, "of-tomorrow"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=reason):
            load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights.unlink()
    with pytest.raises(ModelError, match="cannot load"):
        load_model(tmp_path)


def test_without_transformers_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(SERVED["qwen2"](), tmp_path)
    monkeypatch.setattr("tts_agent.engines.embedded.loading.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'Qwen2ForCausalLM.*pip install "tts-agent\[models\]"'):
        load_model(tmp_path)
