"""Whether a model folder can be served here, and what to know before using it."""

import asyncio
import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from tts_agent.dialects import Finding, TemplateDialect
from tts_agent.dialects.renderer import read_json, read_templates
from tts_agent.dialects.template import HELLO
from tts_agent.engines.base import Sampling
from tts_agent.engines.embedded import EmbeddedEngine
from tts_agent.errors import ConfigError, ModelError, PromptError
from tts_agent.prefix import Prefix

PROMPT_TOKENS = 256
"""Least length of the prompt of the sharing probe, where the context allows it."""

SAMPLED, ADDED = 8, 16

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "What the weather is like.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True, slots=True)
class Served:
    """A request of the sharing probe: tokens of its prompt, and what became of them."""

    prompt: int
    computed: int
    cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found out about `folder`. `problem` is empty if it can be served.

    `tools` says that its chat template takes tools; where it does not, or where there is no template, `note` says why.
    Bytes are of the engine's cache for 1,000 tokens. `first` and `second` are two requests of which the second begins
    with the first.
    """

    folder: str
    problem: str = ""
    architecture: str = ""
    context: int | None = None
    bytes_per_1000_tokens: int = 0
    end_tokens: tuple[str, ...] = ()
    tools: bool = False
    note: str = ""
    findings: tuple[Finding, ...] = ()
    first: Served | None = None
    second: Served | None = None

    @property
    def supported(self) -> bool:
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        return {"supported": self.supported, **asdict(self)}

    def lines(self) -> list[str]:
        """The diagnosis for people."""
        if not self.supported:
            return [f"{self.folder}: cannot be served", f"  {self.problem}"]
        size = self.bytes_per_1000_tokens / 2**20
        lines = [
            f"{self.folder}: served ({self.architecture})",
            f"  context      {self.context} tokens",
            f"  memory       {size:.2f} MiB for 1,000 cached tokens",
            f"  end tokens   {', '.join(map(repr, self.end_tokens)) or 'none'}",
        ]
        lines += [] if self.tools else ["  tools        no"]
        lines += [f"  note         {self.note}"] if self.note else []
        lines += [f"  {finding.subject:<12} {finding.text}" for finding in self.findings]
        for name, served in (("first", self.first), ("second", self.second)):
            if served is not None:
                account = f"{served.computed} computed, {served.cached} cached, {served.seconds * 1000:.0f} ms"
                lines.append(f"  {name:<12} prompt of {served.prompt} tokens: {account}")
        return lines


async def diagnose(folder: str | Path) -> Diagnosis:
    """Load the model in `folder`, read its template, and serve two requests. Raises `ConfigError` for an empty name."""
    if not str(folder):
        raise ConfigError("the model's name '' is empty; pass a Hugging Face model folder")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        return Diagnosis(str(folder), "a model is a folder, and this is none; pass the folder that the file lies in")
    try:
        engine = EmbeddedEngine(path)
    except ModelError as error:
        return Diagnosis(str(folder), str(error))
    try:
        return await _examine(engine, path)
    except PromptError as error:
        return Diagnosis(str(folder), f"the model cannot read what its chat template writes: {error}")
    except ModelError as error:
        return Diagnosis(str(folder), str(error))
    finally:
        await engine.aclose()


async def _examine(engine: EmbeddedEngine, folder: Path) -> Diagnosis:
    capabilities = engine.capabilities
    dialect, note = _dialect(engine, folder)
    ends = capabilities.end_ids if dialect is None else dialect.end_ids
    hello = () if dialect is None else dialect.template.prompt([HELLO])
    first, second = await _probe(engine, hello)
    problem = ""
    if second.cached < first.prompt:
        problem = (
            f"only {second.cached} of {first.prompt} tokens were shared between two requests, where all should be; "
            "report this as a defect of the engine"
        )
    return Diagnosis(
        folder=str(folder),
        problem=problem,
        architecture=", ".join(map(str, read_json(folder / "config.json").get("architectures") or ["unnamed"])),
        context=capabilities.context,
        bytes_per_1000_tokens=1000 * int(capabilities.info["token_bytes"]),
        end_tokens=tuple(engine.decode([token]) or str(token) for token in ends),
        tools=dialect is not None and bool(dialect.template.tools),
        note=note,
        findings=() if dialect is None else dialect.findings,
        first=first,
        second=second,
    )


def _dialect(engine: EmbeddedEngine, folder: Path) -> tuple[TemplateDialect | None, str]:
    """The folder's dialect, with tools if it takes them, and what there is to say if not. Raises `ModelError`."""
    if not (folder / "tokenizer_config.json").is_file() or not read_templates(folder):
        return None, "no chat template: for search() with prompts of your own, or with a Dialect of your own"
    today = datetime.date.today()
    try:
        return TemplateDialect(engine, folder, tools=[TOOL], today=today), ""
    except ModelError:
        raise
    except ConfigError as error:
        return TemplateDialect(engine, folder, today=today), str(error)


async def _probe(engine: EmbeddedEngine, hello: Sequence[int]) -> tuple[Served, Served]:
    """Serve a prompt that begins with `hello`, and then a longer one that begins with it and with what was said."""
    capabilities = engine.capabilities
    assert capabilities.context is not None
    room = min(capabilities.context, int(capabilities.info["cache_tokens"])) - 2 * SAMPLED - ADDED
    if room < 1:
        raise ModelError(f"a context of {capabilities.context} tokens is too short for any use")
    words = engine.encode("The planner thinks before it acts. ") or (0,)
    size = min(max(PROMPT_TOKENS, len(hello)), room)
    prompt = Prefix(tuple(islice(chain(hello, cycle(words)), size)))
    first, said = await _serve(engine, prompt)
    second, _ = await _serve(engine, prompt.extend(said).extend(islice(cycle(words), ADDED)))
    return first, second


async def _serve(engine: EmbeddedEngine, prompt: Prefix) -> tuple[Served, Sequence[int]]:
    begun = time.perf_counter()
    stream = engine.sample(prompt, Sampling(max_tokens=SAMPLED, temperature=0.0), seeds=[0])
    completion = await anext(stream)
    usage = completion.usage
    seconds = time.perf_counter() - begun
    return Served(len(prompt), usage.prompt_computed, usage.prompt_cached, round(seconds, 4)), completion.ids


def run(folder: str | Path) -> Diagnosis:
    """`diagnose`, for callers without an event loop."""
    return asyncio.run(diagnose(folder))
