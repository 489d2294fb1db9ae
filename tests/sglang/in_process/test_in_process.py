"""The contract of every engine, kept by `sglang.Engine` in this process, and what only this engine has."""

import asyncio
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from tests.engines import test_contract as contract
from tests.engines.test_contract import Case, sampled, serving
from tests.sglang.in_process.conftest import NAME
from tests.sglang.test_contract import (
    OTHERWISE,
    describe,
    test_a_question_asked_again_is_mostly_in_the_cache,
    test_each_child_computes_the_last_token_of_its_prompt,
)
from tests.sglang.test_qwen import TOOL
from tts_agent import Sampling
from tts_agent.engines.sglang.local import LocalServer
from tts_agent.engines.sglang_local import SGLangLocalEngine
from tts_agent.errors import ConfigError
from tts_agent.usage import total_usage

__all__ = (
    "test_a_question_asked_again_is_mostly_in_the_cache",
    "test_each_child_computes_the_last_token_of_its_prompt",
)

globals().update(
    {name: test for name, test in vars(contract).items() if name.startswith("test_") and name not in OTHERWISE}
)


@pytest.fixture(scope="module")
def case(local: LocalServer, folder: Path) -> Case:
    return describe(NAME, folder, lambda: SGLangLocalEngine(local))


def counted() -> int:
    """Tokens that SGLang has run through its model, by its own count."""
    registry = prometheus_client.CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return int(
        sum(
            sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "sglang:realtime_tokens_total" and sample.labels["mode"] in ("prefill_compute", "decode")
        )
    )


async def test_what_is_reported_is_what_sglang_counts(case: Case) -> None:
    async with serving(case.open()) as engine:
        assert isinstance(engine, SGLangLocalEngine)
        await engine.flush()
        before = counted()
        stops = engine.capabilities.end_ids
        children = await sampled(engine, case.prompt(30), Sampling(max_tokens=9, stop_ids=stops), range(4))
        branches = [case.prompt(30).extend(child.ids) for child in children]
        scores = await engine.label_logprobs(branches, case.prompt(3, seed=2).ids, case.letters[:2])
        await asyncio.sleep(0.5)
        usage = total_usage([*(c.usage for c in children), *(s.usage for s in scores)])
        assert usage.computed == counted() - before


async def test_errors_are_those_of_a_server(case: Case) -> None:
    async with serving(case.open()) as engine:
        with pytest.raises(ConfigError, match="the server refuses the request"):
            await sampled(engine, case.prompt(5), Sampling(max_tokens=3, regex="a("), [1])
        if NAME == "pocket":
            assert isinstance(engine, SGLangLocalEngine)
            with pytest.raises(ConfigError, match="template"):
                engine.render([{"role": "user", "content": "Hello"}])


@pytest.mark.skipif(NAME != "qwen", reason="needs a template with tools")
async def test_conversations_and_turns(local: LocalServer) -> None:
    engine = SGLangLocalEngine(local)
    prefix = engine.render([{"role": "user", "content": "What is it like in Zürich?"}], tools=[TOOL])
    text = engine.decode(prefix.ids)
    assert "look_up" in text and text.endswith("<|im_start|>assistant\n")
    call = '{"name": "look_up", "arguments": {"city": "Zürich"}}'
    turn = engine.read_turn(f"<think>\nI must look.\n</think>\n<tool_call>\n{call}\n</tool_call>", tools=[TOOL])
    assert turn.calls == (("look_up", {"city": "Zürich"}),)
    assert turn.reasoning.strip() == "I must look."
    loads = await local.aask("/v1/loads", None)
    assert loads["loads"][0]["num_running_reqs"] == 0
    await engine.aclose()


async def test_an_engine_leaves_a_server_to_the_others(local: LocalServer, case: Case) -> None:
    first, second = SGLangLocalEngine(local), SGLangLocalEngine(local)
    await first.aclose()
    assert await sampled(second, case.prompt(6), Sampling(max_tokens=2), [1])
    await second.aclose()
