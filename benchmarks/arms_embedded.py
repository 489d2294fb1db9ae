"""Our engine: its own Llama pass, and any model's pass through `transformers`."""

import asyncio
import json
import time
from pathlib import Path

from benchmarks.arms import Arm
from benchmarks.sharing import run_tree
from benchmarks.workload import BRANCH_TOKENS, Size, prompt
from tts_agent.engines import Sampling
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.prefix import Prefix

CACHE_TOKENS = 8192


class Embedded:
    """An `EmbeddedEngine` and the loop that asks it."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self._engine = engine
        self._loop = asyncio.new_event_loop()

    def tree(self) -> int:
        self._loop.run_until_complete(self._engine.flush())
        return self._loop.run_until_complete(run_tree(self._engine, shared=True)).sampled

    def step(self, branches: int) -> float:
        return self._loop.run_until_complete(self._step(branches))

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.aclose())
        self._loop.close()

    async def _step(self, branches: int) -> float:
        prefix = Prefix(tuple(prompt(2)))
        await self._sample(prefix, branches, 1)  # puts the prompt in the cache
        begun, forwards = time.process_time(), self._engine.counters.forwards
        await self._sample(prefix, branches, BRANCH_TOKENS + 1)
        return (time.process_time() - begun) / (self._engine.counters.forwards - forwards)

    async def _sample(self, prefix: Prefix, branches: int, tokens: int) -> None:
        async for _ in self._engine.sample(prefix, Sampling(max_tokens=tokens), seeds=range(branches)):
            pass


def packed(folder: Path, size: Size) -> Arm:
    """The engine as it serves a Llama."""
    return Embedded(EmbeddedEngine(folder, cache_tokens=CACHE_TOKENS))


def generic(folder: Path, size: Size) -> Arm:
    """The engine as it serves a model that it has no pass of its own for."""
    disguised = folder / "disguised"
    disguised.mkdir()
    config = json.loads((folder / "config.json").read_text())
    # An architecture that the engine does not know; transformers goes by the model type and finds the Llama.
    (disguised / "config.json").write_text(json.dumps(config | {"architectures": ["NamelessForCausalLM"]}))
    (disguised / "model.safetensors").symlink_to(folder / "model.safetensors")
    return packed(disguised, size)
