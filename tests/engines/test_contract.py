"""What every engine must do, each for what it declares.

A new engine joins by a `Case`: how to open it, which prompts it understands and, where there is one, the plain forward
of its model. Tests ask for nothing but the protocol of `tts_agent.engines.base`.
"""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from tests import models
from tests.engines.oracle import Oracle
from tts_agent import Prefix, Sampling, ScriptedEngine
from tts_agent.engines import Completion, Engine, Label, LabelScores
from tts_agent.engines.base import Stream, question_bound, sample_bound
from tts_agent.engines.chat import ChatEngine
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.engines.records import encode_text
from tts_agent.errors import PromptError
from tts_agent.pocket import model_folder
from tts_agent.usage import ZERO, Usage, total_usage


@dataclass(frozen=True, slots=True)
class Case:
    """An engine under test."""

    name: str
    open: Callable[[], Engine]
    open_small: Callable[[int], Engine] | None = None  # with a cache of so many tokens
    letters: Sequence[int] = ()  # ids that prompts are made of
    stops: tuple[int, ...] = ()  # ids of which it says one now and then
    oracle: Callable[[], Oracle] | None = None  # the plain forward of its model
    any_text: bool = False  # its tokenizer knows every character
    specials: tuple[str, ...] = ()  # texts of its special tokens

    def prompt(self, length: int, seed: int = 0) -> Prefix:
        rng = random.Random(seed)
        return Prefix(tuple(rng.choice(self.letters) for _ in range(length)))


def say(prefix: str, seed: int) -> str:
    """Letters of which each depends on all before it; a line ends now and then."""
    said = ""
    for _ in range(40):
        said += random.Random(f"{prefix}{said}|{seed}").choice("abcdefgh\n")
    return said


def scripted() -> ScriptedEngine:
    return ScriptedEngine(say, judge=lambda text: random.Random(text).random(), cache=True, context=4096)


class Talker(BaseChatModel):
    """Says what messages and seed draw, and how long both were."""

    @property
    def _llm_type(self) -> str:
        return "talker"

    def _generate(self, *args: object, **kwargs: object) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        seed: int,
        max_tokens: int,
        **kwargs: object,
    ) -> ChatResult:
        heard = "".join(message.text for message in messages)
        text = say(heard, seed)[: 3 * max_tokens]
        size, length = len(heard) // 3, -(-len(text) // 3)
        usage = {"input_tokens": size, "output_tokens": length, "total_tokens": size + length}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage))])


def chat() -> ChatEngine:
    return ChatEngine(Talker(), arguments={"max_tokens": "max_tokens", "temperature": "temperature", "seed": "seed"})


def embedded(name: str, folder: Callable[[], Path], vocabulary: int, specials: tuple[str, ...], any_text: bool) -> Case:
    # Ids that no text encodes to are hard cases as good as others.
    return Case(
        name,
        open=lambda: EmbeddedEngine(folder()),
        open_small=lambda tokens: EmbeddedEngine(folder(), cache_tokens=tokens, max_branches=9, step_tokens=13),
        letters=range(vocabulary),
        stops=tuple(range(5, vocabulary, 17)),
        oracle=cache(lambda: Oracle.of(folder())),
        any_text=any_text,
        specials=specials,
    )


CASES = [
    Case("scripted", scripted, letters=tuple(map(ord, "abcdefgh\n")), stops=(ord("\n"),), any_text=True),
    Case("chat", chat, letters=encode_text("abcdefghi"), any_text=True),
    embedded("pocket", model_folder, 100, ("<eos>",), any_text=False),
    embedded("qwen", models.qwen, 700, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), any_text=True),
    embedded("llama", models.llama, 750, ("<s>", "</s>"), any_text=True),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[Engine]:
    try:
        yield engine
        if isinstance(engine, EmbeddedEngine):
            assert engine.counters.in_use == 0
    finally:
        await engine.aclose()


async def sampled(engine: Engine, prefix: Prefix, sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
    """All samples of one request, in the order of their seeds."""
    found = [completion async for completion in engine.sample(prefix, sampling, seeds=seeds)]
    return sorted(found, key=lambda completion: completion.index)


def require(declared: object, what: str) -> None:
    if not declared:
        pytest.skip(f"the engine does not declare {what}")


# Tokens


async def test_a_childs_prompt_extends_its_parents_to_the_token(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.continues, "that it continues")
        prefix = case.prompt(30)
        for depth in range(4):
            children = await sampled(engine, prefix, Sampling(max_tokens=9, stop_ids=case.stops), range(3))
            for child in children:
                assert child.usage.prompt == len(prefix)
            computed = total_usage(c.usage for c in children).prompt_computed
            # All that a child adds to its parent is its last token, which nobody ran yet.
            assert computed == 30 if depth == 0 else computed <= 1
            prefix = prefix.extend(children[depth % 3].ids)


async def test_a_branch_is_the_same_in_one_go_and_in_pieces(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.continues, "that it continues")
        start = case.prompt(12)
        (whole,) = await sampled(engine, start, Sampling(max_tokens=24, temperature=0), [0])
        prefix = start
        for size in (1, 2, 5, 16):
            (piece,) = await sampled(engine, prefix, Sampling(max_tokens=size, temperature=0), [0])
            prefix = prefix.extend(piece.ids)
        assert prefix.ids == start.ids + whole.ids


async def test_logprobs_are_those_of_a_plain_forward(case: Case) -> None:
    require(case.oracle, "a model")
    assert case.oracle is not None
    async with serving(case.open()) as engine:
        parents, seeds = [case.prompt(40), case.prompt(1, seed=1)], range(4)
        for temperature in (1.0, 0.7, 0.0):
            sampling = Sampling(max_tokens=10, stop_ids=case.stops, temperature=temperature)
            grown = await asyncio.gather(*(sampled(engine, parent, sampling, seeds) for parent in parents))
            for parent, children in zip(parents, grown, strict=True):
                for seed, child in zip(seeds, children, strict=True):
                    case.oracle().check(parent, child, seed, sampling)
            parents = [p.extend(c.ids) for p, children in zip(parents, grown, strict=True) for c in children[:2]]


async def test_stop_ids_end_a_sample_and_are_kept(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.ids, "ids")
        samples = await sampled(engine, case.prompt(10), Sampling(max_tokens=12, stop_ids=case.stops), range(30))
        assert {completion.finish for completion in samples} == {"stop", "length"}
        for completion in samples:
            stopped = completion.finish == "stop"
            assert (completion.ids[-1] in case.stops) == stopped
            assert not set(completion.ids[:-1]) & set(case.stops)
            assert stopped or len(completion.ids) == 12
        (one,) = await sampled(engine, case.prompt(10), Sampling(max_tokens=1), [3])
        assert (len(one.ids), one.finish) == (1, "length")


async def test_who_listens_hears_each_sample_grow_and_changes_nothing(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.tells, "that it tells")
        prompt, sampling = case.prompt(10), Sampling(max_tokens=12, stop_ids=case.stops)
        unheard = await sampled(engine, prompt, sampling, range(5))
        told: dict[int, list[tuple[int, ...]]] = {index: [] for index in range(5)}
        running = engine.sample(prompt, sampling, seeds=range(5), tell=lambda index, ids: told[index].append(ids))
        heard = sorted([completion async for completion in running], key=lambda completion: completion.index)
        assert [(c.ids, c.finish, len(c.logprobs)) for c in heard] == [
            (c.ids, c.finish, len(c.logprobs)) for c in unheard
        ]
        for completion in heard:
            said = told[completion.index]
            assert all(before == after[: len(before)] for before, after in zip(said, said[1:], strict=False))
            if engine.capabilities.ids:
                assert all(ids == completion.ids[: len(ids)] for ids in said)
            else:  # the text so far
                assert all(engine.decode(completion.ids).startswith(engine.decode(ids)) for ids in said)
        if engine.capabilities.ids:
            assert sum(map(len, told.values())) >= sum(len(completion.ids) - 1 for completion in heard) // 2


async def test_a_stop_text_ends_a_sample_with_the_token_in_which_it_ends(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.continues, "that it continues")
        rng, spilt = random.Random(7), 0
        for seed in range(6):
            (full,) = await sampled(engine, case.prompt(14, seed), Sampling(max_tokens=16), [seed])
            said = engine.decode(full.ids)
            starts = [rng.randrange(len(said)) for _ in range(4)]
            texts = [said[start : start + rng.randint(1, 5)] for start in starts]
            for stops in ((texts[0],), (texts[1],), tuple(texts[2:])):
                if "\ufffd" in "".join(stops):
                    continue  # what is no character yet is no text to stop at
                sampling = Sampling(max_tokens=16, stop_texts=stops)
                (found,) = await sampled(engine, case.prompt(14, seed), sampling, [seed])
                ends = (k for k in range(1, 17) if any(stop in engine.decode(full.ids[:k]) for stop in stops))
                assert found.ids == full.ids[: next(ends)], (stops, said)
                assert found.finish == "stop"
                spilt += not engine.decode(found.ids).endswith(stops)
            absent = Sampling(max_tokens=16, stop_texts=("\u2603\u2603",))
            (whole,) = await sampled(engine, case.prompt(14, seed), absent, [seed])
            assert (whole.ids, whole.finish) == (full.ids, "length")
        assert spilt or case.name in ("scripted", "pocket"), "no stop text ended in the middle of a token"


async def test_a_sample_depends_on_its_seed_alone(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.seeds, "seeds")
        prefix, sampling = case.prompt(15), Sampling(max_tokens=8, temperature=0.9, stop_ids=case.stops)
        many = await sampled(engine, prefix, sampling, range(100, 116))
        few, reverse, noise = await asyncio.gather(
            sampled(engine, prefix, sampling, [103, 110]),
            sampled(engine, prefix, sampling, range(115, 99, -1)),
            sampled(engine, case.prompt(22, seed=4), sampling, range(9)),
        )
        assert [c.ids for c in few] == [many[3].ids, many[10].ids]
        assert [c.ids for c in reverse[::-1]] == [c.ids for c in many]
        assert len({c.ids for c in many}) > 8
        assert len(noise) == 9


# Questions


async def test_a_label_is_scored_like_a_plain_forward(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.label_logprobs, "label log-probabilities")
        suffix, (a, b, c, d) = case.prompt(5, seed=9).ids, case.letters[1:5]
        asked: list[tuple[Label, ...]] = [
            (a, b),  # single tokens
            ((a, c), (b,)),  # a label of several
            ((a, b), (a, c)),  # labels with the same first token
            ((a, b, c, d), (a, b, d)),  # and with more in common
            ((a, b, c), (d, c)),  # and with nothing
            ((a, b), (a, b, c)),  # one is the beginning of the other
        ]
        prefixes = [case.prompt(20), case.prompt(20).extend((a, b)), case.prompt(3, seed=2)]
        for labels in asked:
            for question in (suffix, ()):
                scores = await engine.label_logprobs(prefixes, question, labels)
                for prefix, score in zip(prefixes, scores, strict=True):
                    check_score(case, prefix, question, labels, score)


def check_score(
    case: Case, prefix: Prefix, question: Sequence[int], labels: Sequence[Label], score: LabelScores
) -> None:
    bound = question_bound(len(prefix), len(question), labels)
    assert score.usage.calls == 1 and score.usage.generated == 0
    assert len(prefix) + len(question) <= score.usage.prompt <= bound.prompt
    continued = any(not isinstance(label, int) and len(label) > 1 for label in labels)
    assert (score.usage.prompt > len(prefix) + len(question)) == continued, "its tokens are charged"
    assert len(score.logprobs) == len(labels) and all(value <= 0 for value in score.logprobs)
    if case.oracle is not None:
        expected = [case.oracle().label((*prefix.ids, *question), label) for label in labels]
        assert list(score.logprobs) == pytest.approx(expected, abs=2e-4)


async def test_a_question_leaves_the_branch_as_it_was(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.label_logprobs, "label log-probabilities")
        (branch,) = await sampled(engine, case.prompt(20), Sampling(max_tokens=6), [1])
        prefix, suffix = case.prompt(20).extend(branch.ids), case.prompt(4, seed=3).ids
        labels = (case.letters[0], (case.letters[1], case.letters[2]))
        await engine.label_logprobs([prefix], suffix, labels)
        first, again = [(await engine.label_logprobs([prefix], suffix, labels))[0] for _ in range(2)]
        assert first.logprobs == pytest.approx(again.logprobs, abs=1e-5)
        assert first.usage == again.usage
        assert first.usage.prompt_computed >= len(suffix) + 1, "what was computed for the question is not kept"
        (child,) = await sampled(engine, prefix, Sampling(max_tokens=2), [1])
        assert child.usage.prompt_computed <= 1


# Usage


async def test_usages_add_up(case: Case) -> None:
    async with serving(case.open()) as engine:
        prefix, sampling = case.prompt(25), Sampling(max_tokens=7, stop_ids=case.stops)
        for n in (1, 5):
            samples = await sampled(engine, prefix, sampling, range(n))
            for sample in samples:
                assert sample.usage.prompt == len(prefix)
                assert sample.usage.decoded == sample.usage.generated - 1
                # Engines without ids say what the provider counted.
                assert sample.usage.generated == len(sample.ids) or not engine.capabilities.ids
            total, bound = total_usage(s.usage for s in samples), sample_bound(engine.capabilities, len(prefix), n, 7)
            assert total.calls == bound.calls
            assert total.computed <= bound.computed and total.total <= bound.total
            assert total.prompt == n * len(prefix)


async def test_64_branches_at_once(case: Case) -> None:
    async with serving(case.open()) as engine:
        parents = [case.prompt(20 + i % 5, seed=i % 4) for i in range(16)]
        sampling = Sampling(max_tokens=10, stop_ids=case.stops)
        grown = await asyncio.gather(*(sampled(engine, p, sampling, range(4)) for p in parents))
        assert sum(map(len, grown)) == 64
        for parent, children in zip(parents, grown, strict=True):
            for seed, child in enumerate(children):
                assert child.usage.prompt == len(parent)
                if case.oracle is not None:
                    case.oracle().check(parent, child, seed, sampling)


# The end before the end


async def test_an_abort_frees_and_tells_what_was_used(case: Case) -> None:
    async with serving(case.open()) as engine:
        require(engine.capabilities.aborts, "aborts")
        prefix, n = case.prompt(20), 4
        stream = engine.sample(prefix, Sampling(max_tokens=40, stop_ids=case.stops[:1]), seeds=range(n))
        first = await anext(stream)
        rest = await stream.abort()
        assert rest is not None
        bound = sample_bound(engine.capabilities, len(prefix), n, 40)
        assert (first.usage + rest).computed <= bound.computed
        assert (first.usage + rest).total <= bound.total
        assert await stream.abort() == ZERO
        assert [c async for c in stream] == []
        assert len(await sampled(engine, prefix, Sampling(max_tokens=3), range(2))) == 2


async def test_an_abort_beside_a_reader_loses_nothing_of_the_account(case: Case) -> None:
    """The search always waits for the next completion while it aborts: what ends meanwhile is told once."""
    async with serving(case.open()) as engine:
        require(isinstance(engine, EmbeddedEngine), "counters")
        assert isinstance(engine, EmbeddedEngine)
        prefix, sampling = case.prompt(20), Sampling(max_tokens=12, stop_ids=case.stops)
        usages: list[Usage] = []
        for turn in range(40):
            stream = engine.sample(prefix, sampling, seeds=range(8 * turn, 8 * turn + 8))

            async def read(stream: Stream = stream) -> None:
                usages.extend([completion.usage async for completion in stream])

            reader = asyncio.create_task(read())
            await asyncio.sleep(turn % 10 * 0.002)
            rest = await stream.abort()
            await reader
            assert rest is not None
            usages.append(rest)
        assert total_usage(usages).computed == engine.counters.computed


async def test_whoever_is_cancelled_leaves_nothing_behind(case: Case) -> None:
    async with serving(case.open()) as engine:
        stream = engine.sample(case.prompt(20), Sampling(max_tokens=200), seeds=range(4))
        tasks = [asyncio.ensure_future(anext(stream))]
        if engine.capabilities.label_logprobs:
            prefixes = [case.prompt(60, seed=s) for s in range(9)]
            tasks.append(asyncio.ensure_future(engine.label_logprobs(prefixes, (), case.letters[:2])))
        await asyncio.sleep(0.003)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        del stream, tasks
        gc.collect()
        assert len(await sampled(engine, case.prompt(5), Sampling(max_tokens=3), range(3))) == 3


async def test_answers_stay_right_under_eviction(case: Case) -> None:
    require(case.open_small and case.oracle, "a cache of its own")
    assert case.open_small is not None and case.oracle is not None
    async with serving(case.open_small(110)) as engine:
        sampling = Sampling(max_tokens=6, stop_ids=case.stops)
        usages: list[Usage] = []

        async def search(seed: int) -> None:
            prefix = case.prompt(20, seed % 3)
            for level in range(4):
                children = await sampled(engine, prefix, sampling, range(3))
                prefixes = [prefix.extend(c.ids) for c in children]
                labels = (case.letters[1], (case.letters[2], case.letters[3]))
                scores = await engine.label_logprobs(prefixes, tuple(case.letters[:2]), labels)
                for branch, score in zip(prefixes, scores, strict=True):
                    check_score(case, branch, tuple(case.letters[:2]), labels, score)
                for s, child in enumerate(children):
                    case.oracle().check(prefix, child, s, sampling)
                usages.extend((*(c.usage for c in children), *(score.usage for score in scores)))
                prefix = prefixes[level % 3]

        await asyncio.gather(*(search(seed) for seed in range(6)))
        assert isinstance(engine, EmbeddedEngine)
        assert engine.counters.evicted > 0
        assert total_usage(usages).computed == engine.counters.computed


# Hostile prompts


async def test_special_tokens_in_text_are_plain_text(case: Case) -> None:
    require(case.specials, "special tokens")
    async with serving(case.open()) as engine:
        for text in case.specials:
            said = f"ignore this {text} and this{text}{text}"
            assert len(engine.encode(text)) > 1
            assert not set(engine.encode(said)) & set(engine.capabilities.end_ids)
            if case.any_text:
                assert engine.decode(engine.encode(said)) == said


async def test_every_byte_is_text(case: Case) -> None:
    require(case.any_text, "that its tokenizer knows every character")
    async with serving(case.open()) as engine:
        characters = [chr(i) for i in range(256)]
        texts = [
            "".join(characters),
            *characters,
            "\U0010ffff\ufffd\u200d\u202e",
            "🏳️‍🌈👩‍👩‍👧‍👦",
            "e\u0301",
            " \n\t ",
            "\\u0000",
        ]
        for text in texts:
            ids = engine.encode(text)
            assert ids, repr(text)
            back = engine.decode(ids)
            # Tokenizers may normalise; what is text afterwards stays as it is.
            assert engine.decode(engine.encode(back)).strip(" ") == back.strip(" ")
        prefix = Prefix(engine.encode("".join(characters)))
        (sample,) = await sampled(engine, prefix, Sampling(max_tokens=3), [1])
        assert sample.usage.prompt == len(prefix) or not engine.capabilities.ids


async def test_any_ids_may_be_a_prompt(case: Case) -> None:
    require(case.oracle, "a model")
    assert case.oracle is not None
    async with serving(case.open()) as engine:
        vocabulary = case.oracle().model.config.vocab_size
        everything = Prefix(tuple(range(vocabulary))[-200:])
        specials = Prefix(engine.capabilities.end_ids * 20)
        for prefix in (everything, specials):
            if len(prefix):
                (sample,) = await sampled(engine, prefix, Sampling(max_tokens=4), [5])
                case.oracle().check(prefix, sample, 5, Sampling(max_tokens=4))
                assert isinstance(engine.decode(prefix.ids + sample.ids), str)


async def test_what_does_not_fit_is_refused_before_it_runs(case: Case) -> None:
    async with serving(case.open()) as engine:
        context = engine.capabilities.context
        require(context, "a context")
        assert context is not None
        with pytest.raises(PromptError, match=f"context of {context}"):
            engine.sample(case.prompt(context - 2), Sampling(max_tokens=3), seeds=[1])
        (sample,) = await sampled(engine, case.prompt(context - 3), Sampling(max_tokens=3), [1])
        assert sample.usage.prompt == context - 3
