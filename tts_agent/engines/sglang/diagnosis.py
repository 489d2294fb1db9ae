"""Whether a server can be searched on, and with which launch flags it would do better."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from random import SystemRandom
from typing import Any

from tts_agent.engines.base import Sampling
from tts_agent.engines.sglang.engine import SGLangEngine
from tts_agent.engines.sglang.info import TESTED_VERSION, ServerInfo
from tts_agent.errors import ConfigError, TTSError
from tts_agent.prefix import Prefix

PROMPT_TOKENS, SAMPLED, ADDED = 256, 8, 16


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that the server does not do. `matters` says for what, `flag` is the launch flag that mends it."""

    subject: str
    matters: str
    flag: str


@dataclass(frozen=True, slots=True)
class Served:
    """A request of the sharing probe: tokens of its prompt, and what became of them."""

    prompt: int
    computed: int
    cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ServerDiagnosis:
    """What was found out about the server at `address`. `problem` is empty if a search can run on it.

    `first` and `second` are two requests of which the second begins with the first and what was said.
    """

    address: str
    problem: str = ""
    info: ServerInfo | None = None
    end_tokens: tuple[str, ...] = ()
    chat_template: bool = False
    advice: tuple[Advice, ...] = ()
    first: Served | None = None
    second: Served | None = None

    @property
    def supported(self) -> bool:
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        return {"supported": self.supported, **asdict(self)}

    def lines(self) -> list[str]:
        """The diagnosis for people."""
        info = self.info
        if info is None:
            return [f"{self.address}: cannot be used", f"  {self.problem}"]
        usable = "can be used" if self.supported else "cannot be used"
        lines = [f"{self.address}: {usable} (SGLang {info.version})"]
        if info.version != TESTED_VERSION:
            lines.append(f"  version      this package is tested with {TESTED_VERSION}")
        lines += [f"  problem      {self.problem}"] if self.problem else []
        lines += [f"  router       {info.workers} workers behind it; it passes on no seeds"] if info.workers else []
        lines += [
            f"  model        {info.model}",
            f"  context      {info.context} tokens",
            f"  cache        {info.capacity} tokens, in pages of {info.page}",
            f"  samples      {info.running or 'any number'} at once",
            f"  end tokens   {', '.join(map(repr, self.end_tokens)) or 'none'}",
            f"  template     {'yes' if self.chat_template else 'none: prompts are given as ids or plain text'}",
            f"  parsers      tools: {info.tool_parser or 'none'}, reasoning: {info.reasoning_parser or 'none'}",
            f"  constraints  {info.grammar or 'none'}",
            f"  seeds        {'repeat a sample' if info.processors else 'not obeyed'}",
            f"  scheduler    {'runs ahead: a sample that stops computes one token more' if info.ahead else 'in step'}",
        ]
        lines += [f"  {one.subject:<12} {one.matters}; launch with {one.flag}" for one in self.advice]
        for name, served in (("first", self.first), ("second", self.second)):
            if served is not None:
                account = f"{served.computed} computed, {served.cached} cached, {served.seconds * 1000:.0f} ms"
                lines.append(f"  {name:<12} prompt of {served.prompt} tokens: {account}")
        return lines


def advise(info: ServerInfo) -> tuple[Advice, ...]:
    """What the server's settings leave to be desired, the weightiest first."""
    asked = [
        (
            not info.radix_cache,
            Advice("radix cache", "off: every branch computes its whole prompt again", "no --disable-radix-cache"),
        ),
        (
            not info.processors and not info.workers,
            Advice(
                "seeds",
                "samples cannot be repeated, and have log-probabilities at temperature 0 and 1 alone",
                "--enable-custom-logit-processor",
            ),
        ),
        (
            info.page > 1,
            Advice("page size", f"each child computes up to {info.page} tokens of its prefix again", "--page-size 1"),
        ),
        (not info.metrics, Advice("metrics", "its own count of tokens cannot be compared", "--enable-metrics")),
        (
            not info.cache_report,
            Advice("cache report", "the OpenAI API does not tell cached tokens", "--enable-cache-report"),
        ),
        (
            not info.hidden_states,
            Advice("hidden states", "verifiers cannot read them", "--enable-return-hidden-states"),
        ),
        (
            not info.strict_thinking and not info.workers,
            Advice("thinking", "max_thinking_tokens is not enforced", "--enable-strict-thinking and a parser"),
        ),
        (not info.priority, Advice("priority", "requests cannot overtake each other", "--enable-priority-scheduling")),
        (info.grammar is None, Advice("constraints", "JSON schemas are not obeyed", "--grammar-backend xgrammar")),
    ]
    return tuple(advice for wanted, advice in asked if wanted)


async def diagnose(address: str, **options: Any) -> ServerDiagnosis:
    """Ask the server at `address` what it is, and have it serve two requests. `options` are those of `SGLangEngine`."""
    try:
        engine = SGLangEngine(address, **options)
    except TTSError as error:
        return ServerDiagnosis(address, str(error))
    try:
        return await _examine(engine, address)
    except TTSError as error:
        return ServerDiagnosis(address, str(error), engine.info, advice=advise(engine.info))
    finally:
        await engine.aclose()


async def _examine(engine: SGLangEngine, address: str) -> ServerDiagnosis:
    info = engine.info
    first, said, prompt = await _serve(engine, _prompt(engine))
    more = islice(cycle(prompt.ids), ADDED)
    second, _, _ = await _serve(engine, prompt.extend(said).extend(more))
    problem = ""
    if info.radix_cache and second.cached < first.prompt - info.page:
        problem = (
            f"only {second.cached} of {first.prompt} tokens were shared between two requests; is the cache too small, "
            "or does a router send them to different servers? Route by prefix, or raise --mem-fraction-static"
        )
    return ServerDiagnosis(
        address=address,
        problem=problem,
        info=info,
        end_tokens=tuple(engine.decode([token]) for token in engine.capabilities.end_ids),
        chat_template=_has_template(engine),
        advice=advise(info),
        first=first,
        second=second,
    )


def _has_template(engine: SGLangEngine) -> bool:
    try:
        return bool(engine.render([{"role": "user", "content": "Hello"}]))
    except ConfigError:
        return False


def _prompt(engine: SGLangEngine) -> Prefix:
    """Tokens that nobody can have asked for before, so that the first request is cold."""
    size = min(PROMPT_TOKENS, (engine.capabilities.context or PROMPT_TOKENS * 2) // 2)
    words = sorted(set(engine.encode("The planner thinks before it acts, and 0 1 2 3 4 5 6 7 8 9.")))
    rng = SystemRandom()
    return Prefix(tuple(rng.choice(words) for _ in range(size)))


async def _serve(engine: SGLangEngine, prompt: Prefix) -> tuple[Served, Sequence[int], Prefix]:
    begun = time.perf_counter()
    stream = engine.sample(prompt, Sampling(max_tokens=SAMPLED, temperature=0.0), seeds=[0])
    completion = await anext(stream)
    usage, seconds = completion.usage, time.perf_counter() - begun
    return (
        Served(len(prompt), usage.prompt_computed, usage.prompt_cached, round(seconds, 4)),
        completion.ids,
        prompt,
    )


def run(address: str, **options: Any) -> ServerDiagnosis:
    """`diagnose`, for callers without an event loop."""
    return asyncio.run(diagnose(address, **options))
