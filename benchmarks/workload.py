"""The workload of the engine benchmarks: models of two sizes with random weights, and a tree of branches.

The tree: a prompt of 256 random tokens; the root grows 8 children of 24 sampled tokens, the best 4 grow 8 each, the
best 4 of those grow 8 each (8 + 32 + 32 branches). Each branch is asked one verifier's question (4 tokens, two
labels), and its answer decides which are kept.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

PROMPT_TOKENS, BRANCH_TOKENS, WIDTH, KEEP, LEVELS = 256, 24, 8, 4, 3
QUESTION, LABELS = (3, 5, 7, 11), (13, 17)
IDS = 512
"""Prompts are made of ids below this, which every model has."""

SAMPLED_TOKENS = BRANCH_TOKENS * WIDTH * (1 + KEEP * (LEVELS - 1))


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama; all fields but `name` are sizes, in `transformers`' sense."""

    name: str
    hidden: int
    layers: int
    heads: int
    middle: int
    vocab: int
    tied: bool

    @property
    def streamed(self) -> int:
        """Parameters that a decode step reads: all but the input embeddings."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.middle) + self.hidden * self.vocab

    @property
    def parameters(self) -> int:
        return self.streamed + (0 if self.tied else self.hidden * self.vocab)


TINY = Size("tiny", hidden=192, layers=6, heads=6, middle=512, vocab=512, tied=True)
M150 = Size("m150", hidden=768, layers=12, heads=12, middle=2560, vocab=32_000, tied=False)
SIZES = {size.name: size for size in (TINY, M150)}


def make_model(folder: Path, size: Size = TINY) -> None:
    """Save the model with random weights; it has no end token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.middle,
        vocab_size=size.vocab,
        max_position_embeddings=1024,
        tie_word_embeddings=size.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def prompt(seed: int) -> list[int]:
    """Random ids, other ones for each seed."""
    rng = random.Random(seed)
    return [rng.randrange(IDS) for _ in range(PROMPT_TOKENS)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workload", description="Save the models of the engine benchmarks."
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for size in SIZES.values():
        make_model(folder / size.name, size)


if __name__ == "__main__":
    main()
