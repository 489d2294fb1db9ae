"""What `transformers` offers for the workload: `generate` without sharing, with a cache carried along, and its
continuous batching.

All sample at temperature 1 from the whole vocabulary, as our engine does in this workload.
"""

import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    logging,
)

from benchmarks.arms import Arm, Unavailable
from benchmarks.workload import BRANCH_TOKENS, KEEP, LABELS, LEVELS, QUESTION, WIDTH, Size, prompt

BLOCK = 8  # tokens of a cache block: a branch fills three, so all of it can be shared


class Clock(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Never stops; notes the CPU time after each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        self.times.append(time.process_time())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Generate:
    """Batched `generate`; without `carry` every branch and every question is computed from its first token.

    With `carry` the cache of the kept branches is selected, repeated and continued: what a careful user can do where
    all branches have the same length, as here.
    """

    def __init__(self, folder: Path, *, carry: bool) -> None:
        self._model = load(folder)
        self._carry = carry

    @torch.inference_mode()
    def tree(self) -> int:
        rows, cache, sampled = torch.tensor([prompt(1)]), None, 0
        if self._carry:
            cache = self._model(rows[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        for _ in range(LEVELS):
            rows = rows.repeat_interleave(WIDTH, dim=0)
            if cache is not None:
                cache.batch_repeat_interleave(WIDTH)
            rows, cache = self._generate(rows, cache, BRANCH_TOKENS)
            sampled += len(rows) * BRANCH_TOKENS
            kept = self._judge(rows, cache).topk(KEEP).indices
            rows = rows[kept]
            if cache is not None:
                cache.batch_select_indices(kept)
        return sampled

    @torch.inference_mode()
    def step(self, branches: int) -> float | None:
        if not self._carry:
            return None  # once the prompts are computed both decode alike
        rows = torch.tensor([prompt(2)])
        cache = self._model(rows[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(branches)
        clock = Clock()
        self._generate(rows.expand(branches, -1), cache, BRANCH_TOKENS + 1, clock)
        steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
        return statistics.fmean(steps)

    def close(self) -> None:
        """Nothing runs on."""

    def _generate(
        self, rows: Tensor, cache: DynamicCache | None, tokens: int, *criteria: StoppingCriteria
    ) -> tuple[Tensor, DynamicCache | None]:
        out = self._model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            past_key_values=cache,
            max_new_tokens=tokens,
            stopping_criteria=StoppingCriteriaList(criteria),
        )
        return out, cache

    def _judge(self, rows: Tensor, cache: DynamicCache | None) -> Tensor:
        """Log-odds of the two labels after the question, for each row."""
        asked = torch.cat((rows, torch.tensor([QUESTION]).expand(len(rows), -1)), dim=1)
        if cache is None:
            logits = self._model(asked, use_cache=False, logits_to_keep=1).logits
        else:
            # The last token that was sampled is not in the cache yet; it goes with the question.
            new = 1 + len(QUESTION)
            logits = self._model(asked[:, -new:], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            cache.crop(-new)  # a negative number is taken away by every release, before 5.18 a positive one is kept
        scores = torch.log_softmax(logits[:, -1], dim=-1)
        return scores[:, LABELS[0]] - scores[:, LABELS[1]]


class Continuous:
    """Continuous batching over a paged cache, prefix blocks shared; every branch and question is a request."""

    def __init__(self, folder: Path) -> None:
        if find_spec("psutil") is None:
            raise Unavailable("on the CPU continuous batching needs psutil; run pip install psutil")
        model = load(folder)
        settings = ContinuousBatchingConfig(
            block_size=BLOCK, num_blocks=4096 // BLOCK, max_batch_tokens=512, return_logprobs=True, seed=1
        )
        self._manager: Any = model.init_continuous_batching(model.generation_config, settings)
        self._manager.start()
        self._runs = 0

    def tree(self) -> int:
        # Its cache cannot be emptied: a prompt of its own for each run.
        self._runs += 1
        parents, sampled = [prompt(100 + self._runs)], 0
        for _ in range(LEVELS):
            rows = [parent + ids for parent in parents for ids in self._run([parent] * WIDTH, BRANCH_TOKENS)]
            sampled += len(rows) * BRANCH_TOKENS
            # It scores no labels: one token with its log-probability stands for the answer, which costs the same.
            answers = self._run([row + list(QUESTION) for row in rows], 1)
            order = sorted(range(len(rows)), key=lambda i: answers[i], reverse=True)
            parents = [rows[i] for i in order[:KEEP]]
        return sampled

    def step(self, branches: int) -> float:
        # Two lengths, whose difference is decoding alone.
        times = []
        for tokens in (1, BRANCH_TOKENS + 1):
            begun = time.process_time()
            self._run([prompt(2)] * branches, tokens)
            times.append(time.process_time() - begun)
        return (times[1] - times[0]) / BRANCH_TOKENS

    def close(self) -> None:
        self._manager.stop(block=True)

    def _run(self, rows: list[list[int]], tokens: int) -> list[list[int]]:
        """The tokens sampled after each of `rows`."""
        names = self._manager.add_requests(rows, max_new_tokens=tokens)
        found: dict[str, list[int]] = {}
        while len(found) < len(rows):
            result = self._manager.get_result(timeout=60)
            if result is None or result.error:
                raise Unavailable(f"continuous batching failed: {result.error if result else 'no answer'}")
            found[result.request_id] = list(result.generated_tokens)
        return [found[name] for name in names]


def load(folder: Path) -> Any:
    """The model, sampling from its plain distribution without an end token."""
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0
    )
    return model


def unshared(folder: Path, size: Size) -> Arm:
    return Generate(folder, carry=False)


def carried(folder: Path, size: Size) -> Arm:
    return Generate(folder, carry=True)


def continuous(folder: Path, size: Size) -> Arm:
    return Continuous(folder)
