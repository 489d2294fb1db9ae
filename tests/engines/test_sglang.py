"""The SGLang client, against a server that answers as the real one was recorded to."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from math import exp
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines.sglang_server import END, SGLangServer
from tts_agent import Beam, Budget, Prefix, Sampling, Task, search
from tts_agent.engines import Completion
from tts_agent.engines.base import sample_bound
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.engines.sglang.diagnosis import diagnose
from tts_agent.engines.sglang.info import ServerInfo, version_key
from tts_agent.engines.sglang.memory import Memory, Trees
from tts_agent.engines.sglang.processor import OFFSET, SLOTS, raw_logprobs
from tts_agent.errors import ConfigError, EngineUnavailable, PromptError
from tts_agent.usage import ZERO, Usage, total_usage
from tts_agent.verifiers.labels import LabelVerifier

ROOT = Prefix(tuple(map(ord, "the root of a tree that branches")))

Open = Callable[..., SGLangServer]


@pytest.fixture
def serve() -> Iterator[Open]:
    servers: list[SGLangServer] = []

    def start(**info: Any) -> SGLangServer:
        servers.append(SGLangServer(**info))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@asynccontextmanager
async def engine(*servers: SGLangServer, **options: Any) -> AsyncIterator[SGLangEngine]:
    found = SGLangEngine(*(server.address for server in servers), **options)
    for server in servers:
        server.model.computed = 0
        server.model.bodies.clear()
        server.model.headers.clear()
    try:
        yield found
    finally:
        await found.aclose()


async def sampled(
    found: SGLangEngine, prefix: Prefix = ROOT, n: int = 3, *, first: int = 0, **sampling: Any
) -> list[Completion]:
    settings = Sampling(**{"max_tokens": 6, **sampling})
    completions = [c async for c in found.sample(prefix, settings, seeds=range(first, first + n))]
    return sorted(completions, key=lambda completion: completion.index)


# What is sent


async def test_siblings_are_one_request_after_their_prefix_was_computed(serve: Open) -> None:
    server = serve()
    async with engine(server) as found:
        children = await sampled(found)
        warm, batch = server.model.bodies
        assert warm["input_ids"] == [list(ROOT.ids)] and warm["sampling_params"][0]["max_new_tokens"] == 0
        assert batch["input_ids"] == [list(ROOT.ids)] * 3
        assert len(set(batch["rid"])) == 3 and len(set(map(len, batch["rid"]))) == 1
        usage = total_usage(child.usage for child in children)
        assert usage.computed == server.model.computed == len(ROOT) + 3 + 3 * 5
        assert (usage.calls, usage.prompt) == (1, 3 * len(ROOT))
        server.model.bodies.clear()
        await sampled(found, ROOT.extend(children[0].ids))
        assert len(server.model.bodies) == 1, "what a branch has computed is warm"


async def test_equal_requests_at_the_same_time_compute_their_prompt_once(serve: Open) -> None:
    server = serve()
    server.model.pace = 0.005
    async with engine(server) as found:
        await asyncio.gather(*(sampled(found, n=1, first=seed) for seed in range(6)))
        assert server.model.computed == len(ROOT) + 5 + 6 * 5


@pytest.mark.parametrize("options", [{}, {"seeds": False}])
async def test_the_end_of_the_models_answer_is_no_end_unless_asked(serve: Open, options: dict[str, bool]) -> None:
    server = serve()
    async with engine(server, **options) as found:
        assert found.capabilities.seeds is not bool(options)
        completions = await sampled(found, n=40, max_tokens=30, stop_ids=(ord("\n"),))
        assert any(END in completion.ids for completion in completions)
        for completion in completions:
            stopped = completion.ids[-1] == ord("\n")
            assert completion.finish == ("stop" if stopped else "length")
            assert stopped or len(completion.ids) == 30
            assert completion.usage.decoded == len(completion.ids) - 1
        usage = total_usage(completion.usage for completion in completions)
        assert usage.computed == server.model.computed
        if not options:
            alone = await sampled(found, n=1, first=17, max_tokens=30, stop_ids=(ord("\n"),))
            assert alone[0].ids == completions[17].ids


async def test_a_stop_text_ends_with_its_last_token(serve: Open) -> None:
    async with engine(serve()) as found:
        for completion in await sampled(found, n=20, max_tokens=30, stop_texts=("ab", "c")):
            text = found.decode(completion.ids)
            assert (completion.finish == "stop") == ("ab" in text or "c" in text)
            assert "ab" not in text[:-1] and "c" not in text[:-1]


async def test_what_the_engine_was_told_goes_with_every_request(serve: Open) -> None:
    server = serve(enable_priority_scheduling=True, enable_strict_thinking=True)
    options = {"cache_salt": "tenant", "priority": 3, "max_thinking_tokens": 64}
    async with engine(server, api_key="secret", **options) as found:
        await sampled(found)
        await found.label_logprobs([ROOT], (5,), [1, 2])
        for body, headers in zip(server.model.bodies, server.model.headers, strict=True):
            assert {key: body[key] for key in options} == options
            assert headers["Authorization"] == "Bearer secret"
        assert len({headers["x-smg-routing-key"] for headers in server.model.headers}) == 1


async def test_penalties_constraints_and_cuts_are_the_servers(serve: Open) -> None:
    server = serve()
    async with engine(server, seeds=False) as found:
        await sampled(found, presence_penalty=0.5, frequency_penalty=0.25, top_p=0.9, top_k=7, min_p=0.1)
        await sampled(found, regex="a+")
        penalised, constrained = (server.model.bodies[place]["sampling_params"][0] for place in (1, 2))
        expected = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "top_p": 0.9, "top_k": 7, "min_p": 0.1}
        assert {key: penalised[key] for key in expected} == expected
        assert constrained["regex"] == "a+"


# Questions


async def test_labels_of_several_tokens_are_asked_level_by_level(serve: Open) -> None:
    server = serve()
    async with engine(server) as found:
        prefixes = [ROOT, ROOT.extend((97, 98))]
        scores = await found.label_logprobs(prefixes, (50, 51), [7, (8, 9), (8, 10)])
        assert [body["token_ids_logprob"] for body in server.model.bodies] == [[[7, 8]] * 2, [[9, 10]] * 2]
        assert scores[0].logprobs == pytest.approx((-1.007, -1.008 - 1.009, -1.008 - 1.010))
        assert sum(score.usage.computed for score in scores) == server.model.computed
        assert scores[0].usage.prompt == len(ROOT) + 2 + 1


@given(st.lists(st.tuples(st.integers(5, 999), st.floats(-30, 0)), min_size=1, max_size=8))
def test_raw_logprobs_come_back_from_their_slot(steps: list[tuple[int, float]]) -> None:
    ids = [token for token, _ in steps]
    slots = [[[value - OFFSET, SLOTS[0], None], [-3e38, SLOTS[1], None]] for _, value in steps]
    assert raw_logprobs(ids, slots) == pytest.approx([value for _, value in steps])
    (moved,) = raw_logprobs([SLOTS[0]], [[[0.0, SLOTS[0], None], [-1.5 - OFFSET, SLOTS[1], None]]])
    assert moved == -1.5


# The end before the end


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.2])
async def test_an_abort_is_confirmed_by_the_samples_themselves(serve: Open, seconds: float) -> None:
    server = serve()
    server.model.pace = 0.01
    async with engine(server) as found:
        stream = found.sample(ROOT, Sampling(max_tokens=1000), seeds=range(4))
        await asyncio.sleep(seconds)
        usage = await stream.abort()
        assert usage is not None
        assert usage.computed == server.model.computed
        assert await stream.abort() == ZERO
        assert [completion async for completion in stream] == []


async def test_what_ends_while_it_is_aborted_is_charged_once(serve: Open) -> None:
    server = serve()
    server.model.pace = 0.01
    async with engine(server) as found:
        for _ in range(5):
            server.model.computed = 0
            stream = found.sample(ROOT, Sampling(max_tokens=12, stop_ids=(10, 97, 98)), seeds=range(8))
            reader = asyncio.ensure_future(anext(stream))
            first = await reader
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            rest = await stream.abort()
            (last,) = await asyncio.gather(waiting, return_exceptions=True)
            assert rest is not None
            used = first.usage + rest + (last.usage if isinstance(last, Completion) else ZERO)
            assert used.computed == server.model.computed
            await found.flush()


async def test_a_dropped_stream_is_stopped(serve: Open) -> None:
    server = serve()
    server.model.pace = 0.01
    async with engine(server) as found:
        stream = found.sample(ROOT, Sampling(max_tokens=1000), seeds=range(3))
        while len(server.model.bodies) < 2:  # the prefix, and its children
            await asyncio.sleep(0.01)
        del stream
        gc.collect()
        for _ in range(100):
            if len(server.model.aborted) == 3:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("its samples were not stopped")


# Faults


async def test_what_was_refused_is_tried_again(serve: Open) -> None:
    server = serve()
    async with engine(server) as found:
        server.model.faults.refused = 2
        assert len(await sampled(found)) == 3
        server.model.faults.queue_full = 1
        assert len(await sampled(found)) == 3
        server.model.faults.refused = 1
        assert len(await found.label_logprobs([ROOT], (5,), [1, 2])) == 1
        assert found.refused == 4


async def test_refusals_have_an_end(serve: Open) -> None:
    server = serve()
    async with engine(server, attempts=2) as found:
        server.model.faults.refused = 9
        with pytest.raises(EngineUnavailable, match=r"refused a request 2 times.*overloaded"):
            await sampled(found)
        assert server.model.faults.refused == 7


@pytest.mark.parametrize("fault", ["torn", "fewer", "silent", "garbled"])
async def test_what_a_server_has_begun_is_never_sent_again(serve: Open, fault: str) -> None:
    server = serve()
    async with engine(server, timeout=0.3) as found:
        await sampled(found, n=1)
        server.model.bodies.clear()
        setattr(server.model.faults, fault, 1)
        stream = found.sample(ROOT, Sampling(max_tokens=6), seeds=range(3))
        with pytest.raises(EngineUnavailable, match=r"http://127.0.0.1|fewer samples"):
            [c async for c in stream]
        assert len(server.model.bodies) == 1


async def test_a_complaint_is_an_error_of_what_was_asked(serve: Open) -> None:
    server = serve(max_req_input_len=4000)
    async with engine(server) as found:
        with pytest.raises(PromptError, match="context length"):
            await sampled(found, Prefix((97,) * 3000))
        assert found.refused == 0


# Several servers


async def test_a_tree_stays_with_one_server_and_trees_spread(serve: Open) -> None:
    servers = [serve() for _ in range(3)]
    async with engine(*servers) as found:
        for tree in range(40):  # ports are new each time: of fewer one server may get none
            prefix = Prefix(tuple(map(ord, f"the root of tree {tree} and more")))
            for server in servers:
                server.model.bodies.clear()
            for level in range(3):
                children = await sampled(found, prefix)
                await found.label_logprobs([prefix.extend(child.ids) for child in children], (50, 51), [1, 2])
                prefix = prefix.extend(children[level].ids[:-1] if level else children[level].ids)
            assert [bool(server.model.bodies) for server in servers].count(True) == 1
        assert all(server.model.computed for server in servers)


async def test_a_tree_goes_on_at_another_server(serve: Open) -> None:
    servers = [serve(), serve()]
    async with engine(*servers) as found:
        (child, *_) = await sampled(found)
        home = next(server for server in servers if server.model.computed)
        (other,) = [server for server in servers if server is not home]
        home.close()
        prefix, usage = ROOT.extend(child.ids), ZERO
        for _ in range(3):
            # A connection that was open may break: then nobody knows what the server had begun.
            with suppress(EngineUnavailable):
                usage += total_usage(child.usage for child in await sampled(found, prefix))
        assert usage.computed == other.model.computed >= len(prefix) + 3


async def test_a_search_survives_outages(serve: Open) -> None:
    servers = [serve(), serve()]
    async with engine(*servers, timeout=0.5) as found:
        for server in servers:
            server.model.faults.torn = 1
        task = Task(root=ROOT, thought=Sampling(max_tokens=6), answer=Sampling(max_tokens=24), max_depth=3)
        limit = 4000
        outcome = await search(
            found,
            task,
            strategy=Beam(k=4, keep=2, depth=3),
            verifier=LabelVerifier(found, question="?", good="y", bad="n"),
            budget=Budget(computed_tokens=limit),
        )
        assert outcome.path
        assert sum(server.model.computed for server in servers) <= limit


async def test_a_server_that_was_away_at_first_is_used_later(serve: Open) -> None:
    away, there = serve(), serve()
    away.close()
    found = SGLangEngine(away.address, there.address)
    assert len(await sampled(found)) == 3
    await found.aclose()


# What cannot be


def test_nobody_answers() -> None:
    with pytest.raises(EngineUnavailable, match=r"'http://127.0.0.1:9'.*launch_server"):
        SGLangEngine("127.0.0.1:9")
    with pytest.raises(ConfigError, match="address"):
        SGLangEngine()


@pytest.mark.parametrize(
    ("info", "options", "message"),
    [
        ({"version": "0.4.9.post2"}, {}, "at least"),
        ({"version": None, "max_req_input_len": None}, {}, "at least|tell"),
        ({}, {"priority": 1}, "--enable-priority-scheduling"),
        ({}, {"max_thinking_tokens": 1}, "--enable-strict-thinking"),
        ({"enable_custom_logit_processor": False}, {"seeds": True}, "--enable-custom-logit-processor"),
        ({}, {"timeout": 0}, "timeout"),
        ({}, {"attempts": 0}, "attempts"),
        ({}, {"tokenizer": "nowhere"}, "tokenizer.json"),
    ],
)
def test_what_a_server_cannot_do_is_said_at_once(
    serve: Open, info: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    server = serve(**info)
    with pytest.raises(ConfigError, match=message):
        SGLangEngine(server.address, **options)


def test_a_server_of_another_kind(serve: Open) -> None:
    server = serve()
    server.model.info.clear()
    with pytest.raises(ConfigError, match="not as an SGLang server"):
        SGLangEngine(server.address)


async def test_a_server_without_a_radix_cache_is_warned_of_once(serve: Open) -> None:
    server = serve(disable_radix_cache=True)
    with pytest.warns(UserWarning, match="no radix cache"):
        found = SGLangEngine(server.address)
    assert len(await sampled(found)) == 3
    await found.aclose()


async def test_servers_of_different_models(serve: Open) -> None:
    one, other = serve(), serve(model_path="another")
    with pytest.raises(ConfigError, match="different models"):
        SGLangEngine(one.address, other.address)


async def test_requests_that_no_server_should_see(serve: Open) -> None:
    server = serve()
    async with engine(server) as found:
        for prefix, sampling, message in [
            (Prefix(), Sampling(max_tokens=1), "empty"),
            (Prefix((97,) * 2041), Sampling(max_tokens=2), "context of 2042"),
            (Prefix((97, 10**6)), Sampling(max_tokens=2), "token id 1000000 is not in the vocabulary"),
            (ROOT, Sampling(max_tokens=2, repetition_penalty=1.1), "repetition_penalty"),
            (ROOT, Sampling(max_tokens=2, presence_penalty=1, stop_ids=(5,)), "end tokens"),
            (ROOT, Sampling(max_tokens=2, json_schema="{"), "not JSON"),
        ]:
            with pytest.raises(ConfigError, match=message):
                found.sample(prefix, sampling, seeds=[1])
        with pytest.raises(ConfigError, match="without a token"):
            await found.label_logprobs([ROOT], (), [()])
        with pytest.raises(PromptError, match="vocabulary"):
            await found.label_logprobs([ROOT], (), [10**6])
        assert server.model.bodies == []


# What is said about a server


async def test_a_diagnosis_names_the_flags_that_mend_it(serve: Open) -> None:
    server = serve(enable_custom_logit_processor=False, page_size=16, version="0.5.24")
    diagnosis = await diagnose(server.address)
    assert diagnosis.supported and diagnosis.first is not None and diagnosis.second is not None
    assert diagnosis.first.computed == 256 and diagnosis.second.cached == 256 + 7
    text = "\n".join(diagnosis.lines())
    for said in ("--enable-custom-logit-processor", "--page-size 1", "tested with 0.5.23", "'<end>'", "none: prompts"):
        assert said in text
    assert json.loads(json.dumps(diagnosis.to_json()))["supported"]


async def test_a_diagnosis_of_nothing() -> None:
    diagnosis = await diagnose("127.0.0.1:9")
    assert not diagnosis.supported and "launch_server" in diagnosis.problem
    assert len(diagnosis.lines()) == 2


# Text


async def test_the_server_encodes_and_decodes(serve: Open) -> None:
    async with engine(serve()) as found:
        assert found.capabilities.end_ids == (END,)
        assert found.encode("ab") == (97, 98)
        assert found.encode("a<end>b<end>") == tuple(map(ord, "a<end>b<end>")), "special tokens in text stay text"
        assert found.decode((97, END)) == "a<end>"


# What is remembered


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60))
def test_a_sequence_makes_its_beginnings_known(ids: list[int]) -> None:
    memory, whole = Memory(), tuple(ids)
    memory.learn(whole)
    assert not memory.cold(whole), "it is asked for again"
    assert not memory.cold((*whole, 9)), "it is continued"
    memory.forget()
    assert memory.cold(whole)


@given(st.lists(st.integers(0, 3), min_size=3, max_size=60), st.lists(st.integers(0, 3), max_size=20))
def test_what_extends_a_root_belongs_to_its_tree(root: list[int], more: list[int]) -> None:
    trees = Trees()
    tree = trees.name(tuple(root))
    assert trees.name((*root, *more)) == tree
    assert trees.name((*root[:-1], 9)) != tree, "it only begins alike"
    trees.join((*root, *more, 5), "another")
    assert trees.name((*root, *more, 5)) == "another"


def test_versions() -> None:
    assert version_key("0.5.23.post1") < version_key("0.5.24") < version_key("0.10")
    assert version_key("") == ()


def test_settings_are_read(serve: Open) -> None:
    server = serve()
    info = ServerInfo.from_json(server.address, server.model.info)
    assert (info.version, info.context, info.capacity, info.page) == ("0.5.23", 2042, 16384, 1)
    assert info.radix_cache and info.cache_report and info.metrics and info.processors and info.hidden_states


async def test_usage_stays_below_what_was_reserved(serve: Open) -> None:
    server = serve()
    async with engine(server) as found:
        for n in (1, 2, 5):
            await found.flush()
            children = await sampled(found, n=n, max_tokens=20, stop_ids=(10, 97))
            bound = sample_bound(found.capabilities, len(ROOT), n, 20)
            usage: Usage = total_usage(child.usage for child in children)
            assert usage.computed <= bound.computed and usage.total <= bound.total
            assert all(0 < exp(value) <= 1 for child in children for value in child.logprobs)


async def test_decoding_does_not_hold_up_the_loop(serve: Open) -> None:
    server = serve()
    async with engine(server) as found:
        children = await sampled(found, n=2)
        server.close()
        begun = time.monotonic()
        for child in children:
            assert len(found.decode(child.ids)) == 6
        assert time.monotonic() - begun < 5
