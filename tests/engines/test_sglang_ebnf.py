"""Grammars are the server's: whoever else is asked for one refuses."""

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage

from tests import models
from tests.engines.sglang_server import SGLangServer
from tts_agent.engines import Engine, Sampling, ScriptedEngine
from tts_agent.engines.chat import ChatEngine
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.errors import ConfigError
from tts_agent.prefix import Prefix

GRAMMAR = 'root ::= "yes" | "no"'


@pytest.mark.parametrize("backend, obeys", [("xgrammar", True), ("outlines", False), ("none", False)])
async def test_a_grammar_goes_to_servers_that_read_it(backend: str, obeys: bool) -> None:
    server = SGLangServer(grammar_backend=backend)
    engine = SGLangEngine(server.address, end_ids=[1], seeds=False)
    try:
        assert engine.capabilities.grammars is obeys
        sampling = Sampling(max_tokens=3, ebnf=GRAMMAR)
        if obeys:
            assert [c async for c in engine.sample(Prefix((5, 6)), sampling, seeds=[1])]
            assert server.model.bodies[-1]["sampling_params"][0]["ebnf"] == GRAMMAR
        else:
            with pytest.raises(ConfigError, match="obeys no grammar|cannot constrain"):
                engine.sample(Prefix((5, 6)), sampling, seeds=[1])
    finally:
        await engine.aclose()
        server.close()


async def test_other_engines_refuse_it() -> None:
    chat = ChatEngine(FakeListChatModel(responses=["yes"]))
    asked: list[tuple[Engine, Prefix]] = [
        (EmbeddedEngine(models.qwen()), Prefix((5, 6))),
        (ScriptedEngine(lambda prefix, seed: "yes"), Prefix((5, 6))),
        (chat, chat.prompt([HumanMessage("Yes?")])),
    ]
    for engine, prefix in asked:
        assert not engine.capabilities.grammars
        with pytest.raises(ConfigError, match="ebnf|cannot constrain"):
            engine.sample(prefix, Sampling(max_tokens=3, ebnf=GRAMMAR), seeds=[1])
        await engine.aclose()


def test_two_constraints_are_refused() -> None:
    with pytest.raises(ConfigError, match="regex and ebnf each constrain"):
        Sampling(max_tokens=3, regex="a", ebnf=GRAMMAR)
