"""A deterministic engine for tests, golden trees and measurements of the controller.

One token is one character. What is sampled comes from a script; time is virtual: a sample ends at the time its
request was made plus its latency, whatever the machine does. Faults happen where the caller says.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import IO, Literal, Self

from tts_agent.engines.base import (
    Capabilities,
    Completion,
    Label,
    LabelScores,
    Sampling,
    refuse_constraints,
)
from tts_agent.errors import ConfigError, EngineUnavailable, PromptError
from tts_agent.prefix import Prefix
from tts_agent.usage import ZERO, Usage

Script = Callable[[str, int], str]
"""`script(prefix_text, seed)`: what a sample says; cut at its first stop id and at `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request (samples and questions are counted together, from 0).

    `refused`: nothing is computed and no answer comes. `lost`: everything is computed, but after `after` samples no
    more answers come. `unconfirmed`: all is well until the request is aborted; then everything is computed all the
    same, and the abort is not confirmed.
    """

    kind: Literal["refused", "lost", "unconfirmed"]
    after: int = 0


class ScriptedEngine:
    """Says what its script says.

    `judge(prefix_text)` is the probability of the first label of a question; the second has the rest. `latency` is
    the virtual time of a sample, a number or `latency(prefix_text, seed)`. With `cache`, a prompt that was a prompt
    or a branch before costs one computed token (its last); otherwise every prompt is computed in full for every
    sample. `record` names a file to which the usage of each answer is appended before the answer is given, so that
    it survives a kill of the process. `pace` really sleeps so many seconds before each answer.
    """

    def __init__(
        self,
        script: Script,
        *,
        judge: Callable[[str], float] | None = None,
        latency: float | Callable[[str, int], float] = 0.0,
        faults: Mapping[int, Fault] | None = None,
        cache: bool = False,
        context: int | None = None,
        end_ids: tuple[int, ...] = (),
        record: str | Path | None = None,
        pace: float = 0.0,
        name: str = "scripted",
    ) -> None:
        self.name = name
        self.served = ZERO
        """Everything that was computed, answered or not."""
        self.requests: list[tuple[Prefix, int]] = []
        """The prompt and number of samples of each request, questions included (with 0 samples)."""
        self._script, self._judge = script, judge
        self._latency = latency
        self._faults = dict(faults or {})
        self._known: set[tuple[int, ...]] | None = set() if cache else None
        self._context = context
        self._end_ids = end_ids
        self._pace = pace
        self._record: IO[str] | None = open(record, "a", encoding="utf-8") if record is not None else None  # noqa: SIM115

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            label_logprobs=self._judge is not None,
            virtual_time=True,
            context=self._context,
            end_ids=self._end_ids,
        )

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def sample(self, prefix: Prefix, sampling: Sampling, *, seeds: Sequence[int], at: float = 0.0) -> "ScriptedStream":
        refuse_constraints(sampling, self.capabilities, self.name, "let its script say what fits")
        if self._context is not None and len(prefix) + sampling.max_tokens > self._context:
            raise PromptError(
                f"a prompt of {len(prefix)} tokens and max_tokens={sampling.max_tokens} do not fit the context of "
                f"{self._context}"
            )
        fault = self._faults.get(len(self.requests))
        self.requests.append((prefix, len(seeds)))
        text = self.decode(prefix.ids)
        samples = []
        for index, seed in enumerate(seeds):
            ids, stopped = self._cut(self.encode(self._script(text, seed)), sampling)
            usage = self._sample_usage(prefix, len(ids), first=index == 0)
            end = at + (self._latency if isinstance(self._latency, (int, float)) else self._latency(text, seed))
            samples.append(Completion(index, ids, "stop" if stopped else "length", usage, (-1.0,) * len(ids), end))
            if self._known is not None:
                self._known.add(prefix.ids + ids)
        samples.sort(key=lambda sample: (sample.at, sample.index))
        return ScriptedStream(self, samples, fault, self._pace)

    def _cut(self, ids: tuple[int, ...], sampling: Sampling) -> tuple[tuple[int, ...], bool]:
        """`ids` up to the first stop and to `max_tokens`, and whether a stop ended them; nothing becomes one space."""
        ids = ids[: sampling.max_tokens] or (ord(" "),)
        ends = [ids.index(stop) + 1 for stop in sampling.stop_ids if stop in ids]
        for text in sampling.stop_texts:
            said = (end for end in range(1, len(ids) + 1) if text in self.decode(ids[:end]))
            ends += [end for end in (next(said, None),) if end is not None]
        return (ids[: min(ends)], True) if ends else (ids, False)

    def _sample_usage(self, prefix: Prefix, generated: int, *, first: bool) -> Usage:
        size = len(prefix)
        computed = size
        if self._known is not None:
            computed = (1 if prefix.ids in self._known else size) if first else 0
            self._known.add(prefix.ids)
        return Usage(computed, size - computed, generated, generated - 1, calls=int(first))

    async def label_logprobs(
        self, prefixes: Sequence[Prefix], suffix: Sequence[int], labels: Sequence[Label]
    ) -> list[LabelScores]:
        if self._judge is None or len(labels) != 2:
            raise ConfigError(
                f"the scripted engine answers questions with two labels if it has a judge; got {labels!r}"
            )
        fault = self._faults.get(len(self.requests))
        self.requests.append((prefixes[0], 0))
        if fault is not None and fault.kind == "refused":
            raise EngineUnavailable("scripted: the question was refused")
        scores = []
        asked = len(suffix) + sum(len(label) - 1 for label in labels if not isinstance(label, int))
        for prefix in prefixes:
            good = min(max(self._judge(self.decode(prefix.ids)), 1e-9), 1 - 1e-9)
            size = len(prefix) + asked
            known = self._known is not None and prefix.ids in self._known
            computed = size - len(prefix) + 1 if known else size
            scores.append(LabelScores((log(good), log(1 - good)), Usage(computed, size - computed, calls=1)))
        for score in scores:
            self.serve(score.usage)
        if self._pace:
            await asyncio.sleep(self._pace)
        if fault is not None and fault.kind == "lost":
            raise EngineUnavailable("scripted: the answer was lost")
        return scores

    def serve(self, usage: Usage) -> None:
        """Count `usage` as computed, in memory and in the record."""
        self.served += usage
        if self._record is not None:
            self._record.write(json.dumps(usage.to_json()) + "\n")
            self._record.flush()

    async def aclose(self) -> None:
        if self._record is not None:
            self._record.close()


class ScriptedStream:
    """The samples of one request, in the order of their virtual ends."""

    def __init__(self, engine: ScriptedEngine, samples: list[Completion], fault: Fault | None, pace: float) -> None:
        self._engine, self._samples, self._fault, self._pace = engine, samples, fault, pace
        self._next = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Completion:
        if self._pace:
            await asyncio.sleep(self._pace)
        if self._fault is not None and self._fault.kind == "refused" and not self._ended:
            self._next = len(self._samples)
            raise EngineUnavailable("scripted: the request was refused")
        if (
            self._fault is not None
            and self._fault.kind == "lost"
            and self._next >= self._fault.after
            and not self._ended
        ):
            self._compute_rest()
            raise EngineUnavailable("scripted: the response was lost")
        if self._ended:
            raise StopAsyncIteration
        sample = self._samples[self._next]
        self._next += 1
        self._engine.serve(sample.usage)
        return sample

    @property
    def _ended(self) -> bool:
        return self._next >= len(self._samples)

    def _compute_rest(self) -> None:
        for sample in self._samples[self._next :]:
            self._engine.serve(sample.usage)
        self._next = len(self._samples)

    async def abort(self) -> Usage | None:
        if self._ended:
            return ZERO
        if self._fault is not None and self._fault.kind == "unconfirmed":
            self._compute_rest()
            return None
        # Half of each unfinished sample was decoded when the abort came.
        used = ZERO
        for sample in self._samples[self._next :]:
            half = max(sample.usage.generated // 2, 1)
            part = sample.usage
            used += Usage(part.prompt_computed, part.prompt_cached, half, half - 1, part.calls)
        self._next = len(self._samples)
        self._engine.serve(used)
        return used
