"""The controllers of other libraries under the same conditions: a model that answers at once, no duties.

Used by `benchmarks.overhead`; needs the extra `bench` (`pip install "tts-agent[bench]"`).
"""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, KEPT = 32, 4
"""Samples a level, and how many of them the beam keeps."""


def has_its_hub() -> bool:
    """Whether its_hub is installed; imports it, so that the import is not measured."""
    if importlib.util.find_spec("its_hub") is None:
        return False
    importlib.import_module("its_hub.core.algorithms.beam_search")
    return True


def has_treequest() -> bool:
    """Whether treequest is installed; imports it, so that the import is not measured."""
    if importlib.util.find_spec("treequest") is None:
        return False
    importlib.import_module("treequest")
    return True


class _Instant:
    """A language model for its_hub that answers at once."""

    def __init__(self) -> None:
        self.sampled = 0

    async def agenerate(self, messages: Any, stop: Any = None, **_: Any) -> Any:
        if not messages or not isinstance(messages[0], list):
            return self._one()
        return [self._one() for _ in messages]

    def _one(self) -> dict[str, str]:
        self.sampled += 1
        return {"role": "assistant", "content": f"{self.sampled:07x}\n"}


class _Scores:
    """A reward model for its_hub that scores at once."""

    async def ascore(self, prompt: Any, steps: Sequence[str]) -> list[float]:
        return [int(step[-5:-1] or "0", 16) / 0x10000 for step in steps]


async def its_hub_beam(thoughts: int, folder: Path) -> int:
    """One beam search of its_hub, width 32 (8 for each of 4 beams), as deep as it takes to sample `thoughts`."""
    from its_hub.core.algorithms.beam_search import BeamSearch
    from its_hub.core.lms.step_generation import StepGeneration

    logging.getLogger().setLevel(logging.WARNING)
    model = _Instant()
    beam = BeamSearch(
        StepGeneration(max_steps=thoughts // WIDTH - 1, step_token="\n", include_stop_str_in_output=True),
        _Scores(),
        beam_width=KEPT,
    )
    await beam.ainfer(model, "a" * 64, budget=WIDTH)
    return model.sampled


async def treequest_mcts(thoughts: int, folder: Path) -> int:
    """One tree of treequest's StandardMCTS, 32 samples an expansion, until it holds `thoughts`."""
    from treequest import StandardMCTS

    search: Any = StandardMCTS(samples_per_action=WIDTH)
    state = search.init_tree()
    done = 0
    while done < thoughts:
        state, trials = search.ask_batch(state, WIDTH, ["grow"])
        for trial in trials:
            text = f"{done:07x}\n"
            state = search.tell(state, trial.trial_id, (text, int(text[-5:-1], 16) / 0x10000))
            done += 1
    return done
