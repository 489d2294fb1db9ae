"""openvino-genai's continuous batching with its prefix cache, in fp32, where it is installed.

It serves models in its own format only. `python -m benchmarks.workload FOLDER` saves the benchmark's models, which
`optimum-cli export openvino --weight-format fp32` converts (in an environment of its own: it pins other versions).
"""

import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms import Arm, Unavailable
from benchmarks.workload import BRANCH_TOKENS, KEEP, LEVELS, QUESTION, WIDTH, Size, prompt

BLOCKS = 512  # of 32 tokens


class Paged:
    """A pipeline; every branch and question is a request, branches of one parent are one with several sequences."""

    def __init__(self, folder: Path) -> None:
        openvino: Any = import_module("openvino")
        openvino_genai: Any = import_module("openvino_genai")
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = BLOCKS
        scheduler.enable_prefix_caching = True
        precision = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
        settings = precision | {"INFERENCE_NUM_THREADS": 1}
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", settings)
        self._config: Any = openvino_genai.GenerationConfig
        self._tensor: Any = openvino.Tensor
        self._requests = self._runs = 0

    def tree(self) -> int:
        # Its cache cannot be emptied: a prompt of its own for each run.
        self._runs += 1
        parents, sampled = [prompt(100 + self._runs)], 0
        for _ in range(LEVELS):
            grown = self._run(parents, BRANCH_TOKENS, WIDTH)
            rows = [parent + ids for parent, many in zip(parents, grown, strict=True) for ids in many]
            sampled += len(rows) * BRANCH_TOKENS
            # It scores no labels: one token with its log-probability stands for the answer, which costs the same.
            answers = self._run([row + list(QUESTION) for row in rows], 1, 1)
            order = sorted(range(len(rows)), key=lambda i: answers[i][0], reverse=True)
            parents = [rows[i] for i in order[:KEEP]]
        return sampled

    def step(self, branches: int) -> float:
        # Two lengths, whose difference is decoding alone.
        times = []
        for tokens in (1, BRANCH_TOKENS + 1):
            begun = time.process_time()
            self._run([prompt(2)], tokens, branches)
            times.append(time.process_time() - begun)
        return (times[1] - times[0]) / BRANCH_TOKENS

    def close(self) -> None:
        """Nothing runs on."""

    def _run(self, rows: list[list[int]], tokens: int, samples: int) -> list[list[list[int]]]:
        """The tokens of `samples` samples after each of `rows`."""
        config = self._config()
        config.max_new_tokens = tokens
        config.num_return_sequences = samples
        config.do_sample = True
        config.ignore_eos = True
        config.eos_token_id, config.stop_token_ids = 0, {0}  # it insists on one
        handles = []
        for row in rows:
            self._requests += 1
            ids = self._tensor(np.array([row], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._requests, ids, config))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [[list(output.generated_ids) for output in handle.read_all()] for handle in handles]


def paged(models: Path | None, folder: Path, size: Size) -> Arm:
    """The arm on the converted model of `size` below `models`."""
    if find_spec("openvino_genai") is None:
        raise Unavailable("not installed; run pip install openvino-genai")
    if models is None or not (models / size.name / "openvino_model.xml").is_file():
        raise Unavailable(f"no converted model {size.name}; see benchmarks/arms_openvino.py and --openvino")
    return Paged(models / size.name)
