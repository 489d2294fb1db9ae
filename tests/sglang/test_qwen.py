"""What needs a tokenizer of bytes, a chat template and parsers: constraints, conversations, the server's own text."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from tests.sglang.server import Server
from tts_agent import Sampling
from tts_agent.engines import Completion
from tts_agent.engines.sglang import SGLangEngine
from tts_agent.engines.sglang.http import HttpServer
from tts_agent.engines.sglang.tokens import LocalTokens, ServerTokens
from tts_agent.errors import ConfigError
from tts_agent.prefix import Prefix
from tts_agent.usage import total_usage

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "What the weather is like.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


GRAMMAR = """
root ::= ("yes" | "no") ", " digit digit
digit ::= [0-9]
"""


async def say(engine: SGLangEngine, prefix: Prefix, sampling: Sampling, n: int = 4) -> list[Completion]:
    return [completion async for completion in engine.sample(prefix, sampling, seeds=range(n))]


@pytest.mark.parametrize("seeds", [True, False])
async def test_constraints_are_obeyed(qwen: Server, seeds: bool) -> None:
    engine = SGLangEngine(qwen.address, seeds=seeds)
    prefix, ends = Prefix(engine.encode("The answer is ")), engine.capabilities.end_ids
    pattern = r"(yes|no)[0-9]{2}"
    before = qwen.computed()
    found = await say(engine, prefix, Sampling(max_tokens=24, regex=pattern, stop_ids=ends))
    for completion in found:
        ids = completion.ids[:-1] if completion.ids[-1] in ends else completion.ids
        assert completion.finish == "stop" and re.fullmatch(pattern, engine.decode(ids))
        assert completion.logprobs == ()
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    found += await say(engine, prefix, Sampling(max_tokens=60, json_schema=json.dumps(schema), stop_ids=ends))
    for completion in found[4:]:
        ids = completion.ids[:-1] if completion.ids[-1] in ends else completion.ids
        if completion.finish == "stop":
            assert set(json.loads(engine.decode(ids))) == {"ok"}
    await asyncio.sleep(0.5)
    assert total_usage(c.usage for c in found).computed == qwen.computed() - before
    await engine.aclose()


async def test_a_grammar_is_obeyed(qwen: Server) -> None:
    engine = SGLangEngine(qwen.address)
    sampling = Sampling(max_tokens=24, ebnf=GRAMMAR, stop_ids=engine.capabilities.end_ids)
    for completion in await say(engine, Prefix(engine.encode("The answer is ")), sampling):
        ids = completion.ids[:-1] if completion.ids[-1] in sampling.stop_ids else completion.ids
        assert completion.finish == "stop" and re.fullmatch(r"(yes|no), [0-9]{2}", engine.decode(ids))
    await engine.aclose()


@pytest.mark.parametrize("wrong", [{"regex": "a("}, {"ebnf": "root ::= ("}, {"json_schema": '{"type": "nonsense"}'}])
async def test_what_cannot_be_obeyed_is_refused(qwen: Server, wrong: dict[str, str]) -> None:
    engine = SGLangEngine(qwen.address)
    with pytest.raises(ConfigError, match="the server refuses the request"):
        await say(engine, Prefix((5, 6, 7)), Sampling(max_tokens=4, **wrong))  # type: ignore[arg-type]
    assert len(await say(engine, Prefix((5, 6, 7)), Sampling(max_tokens=4))) == 4, "the server is taken to be there"
    await engine.aclose()


async def test_a_conversation_is_rendered_and_read_by_the_server(qwen: Server) -> None:
    engine = SGLangEngine(qwen.address)
    prefix = engine.render([{"role": "user", "content": "What is it like in Zürich?"}], tools=[TOOL])
    text = engine.decode(prefix.ids)
    assert "look_up" in text and text.endswith("<|im_start|>assistant\n")
    assert engine.read_turn("Hello.").content == "Hello."
    call = '{"name": "look_up", "arguments": {"city": "Zürich"}}'
    said = f"<think>\nI must look.\n</think>\n<tool_call>\n{call}\n</tool_call>"
    turn = engine.read_turn(said, tools=[TOOL])
    assert turn.calls == (("look_up", {"city": "Zürich"}),)
    assert turn.reasoning.strip() == "I must look."
    await engine.aclose()


def test_the_servers_tokenizer_is_the_folders(qwen: Server) -> None:
    server = HttpServer(qwen.address, timeout=60, headers={})
    theirs, ours = ServerTokens([server]), LocalTokens(Path(server.info().tokenizer))
    assert theirs.vocabulary == ours.vocabulary
    for text in ("Größe: 42", "<|im_end|> is said, <|im_start|>user", "\u200d🦊", ""):
        assert theirs.decode(theirs.encode(text)) == text == ours.decode(ours.encode(text))
        assert len(theirs.encode("<|im_end|>")) > 1
    server.close()
