"""The contract of every engine, kept by real servers.

Two of its tests ask for what SGLang does not do: it computes the last prompt token of each sample again, and keeps what
was computed for a question. In their place stand two that say exactly what it does instead.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import models
from tests.engines import test_contract as contract
from tests.engines.oracle import Oracle
from tests.engines.test_contract import Case, sampled, serving
from tests.sglang.server import Server
from tts_agent import Sampling
from tts_agent.engines import Engine
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.engines.sglang.served import ServedEngine
from tts_agent.pocket import model_folder
from tts_agent.usage import total_usage

OTHERWISE = (
    "test_a_childs_prompt_extends_its_parents_to_the_token",
    "test_a_question_leaves_the_branch_as_it_was",
)

globals().update(
    {name: test for name, test in vars(contract).items() if name.startswith("test_") and name not in OTHERWISE}
)


FOLDERS = {"pocket": model_folder, "qwen": models.qwen, "llama": models.llama}


def describe(name: str, folder: Path, open_engine: Callable[[], Engine]) -> Case:
    """The model `name` in `folder`, served by what `open_engine` opens."""
    vocabulary, specials = {
        "pocket": (100, ("<eos>",)),
        "qwen": (700, ("<|im_start|>", "<|im_end|>", "<|endoftext|>")),
        "llama": (750, ("<s>", "</s>")),
    }[name]
    oracle = Oracle.of(folder)
    return Case(
        name,
        open=open_engine,
        letters=range(vocabulary),
        stops=tuple(range(5, vocabulary, 17)),
        oracle=lambda: oracle,
        any_text=name != "pocket",
        specials=specials,
    )


@pytest.fixture(scope="module", params=["pocket", "qwen", "llama"])
def case(request: pytest.FixtureRequest) -> Case:
    server: Server = request.getfixturevalue(request.param)
    return describe(request.param, FOLDERS[request.param](), lambda: SGLangEngine(server.address))


async def test_each_child_computes_the_last_token_of_its_prompt(case: Case) -> None:
    async with serving(case.open()) as engine:
        assert isinstance(engine, ServedEngine)
        await engine.flush()
        prefix = case.prompt(30)
        for depth in range(4):
            children = await sampled(engine, prefix, Sampling(max_tokens=9), range(3))
            for child in children:
                assert child.usage.prompt == len(prefix)
            computed = total_usage(c.usage for c in children).prompt_computed
            assert computed == (30 + 3 if depth == 0 else 3)
            prefix = prefix.extend(children[depth % 3].ids)


async def test_a_question_asked_again_is_mostly_in_the_cache(case: Case) -> None:
    async with serving(case.open()) as engine:
        assert isinstance(engine, ServedEngine)
        await engine.flush()
        (branch,) = await sampled(engine, case.prompt(20), Sampling(max_tokens=6), [1])
        prefix, suffix = case.prompt(20).extend(branch.ids), case.prompt(4, seed=3).ids
        labels = (case.letters[0], (case.letters[1], case.letters[2]))
        first, again, last = [(await engine.label_logprobs([prefix], suffix, labels))[0] for _ in range(3)]
        assert first.logprobs == pytest.approx(again.logprobs, abs=1e-4)
        # The branch's last token, the question, and the first token of the label that has two.
        assert first.usage.prompt_computed == 1 + len(suffix) + 1
        assert again.usage == last.usage
        assert again.usage.prompt_computed == 2
        (child,) = await sampled(engine, prefix, Sampling(max_tokens=2), [1])
        assert child.usage.prompt_computed == 1
