"""Small random models in Hugging Face folders, and what plain `transformers` says about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel, logging

logging.disable_progress_bar()
torch.set_num_threads(1)
VOCABULARY = 61


@dataclass(frozen=True, slots=True)
class Reference:
    """A model folder and the same model in `transformers`."""

    folder: Path
    model: PreTrainedModel

    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities `[len(ids), vocabulary]` of the token after each of `ids`."""
        with torch.inference_mode():
            return torch.log_softmax(self.model(torch.tensor([list(ids)])).logits[0], dim=-1)

    def greedy(self, ids: Sequence[int], count: int) -> tuple[int, ...]:
        """What `generate` continues `ids` with."""
        with torch.inference_mode():
            out = self.model.generate(
                torch.tensor([list(ids)]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return tuple(out[0, len(ids) :].tolist())


# Weights are drawn wider than usual, so that the distributions have something to say.
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "initializer_range": 0.25}


def llama(**options: object) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes, **options}))


def mistral() -> MistralForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MistralForCausalLM(MistralConfig(**SIZES, **sizes, num_key_value_heads=2, head_dim=12, sliding_window=96))


def save(model: PreTrainedModel, folder: Path) -> Reference:
    model = model.eval()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["w1"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Reference(folder, model)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A Llama with grouped queries and an output matrix of its own."""
    torch.manual_seed(1)
    return save(llama(num_key_value_heads=2), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session", params=["plain", "tied", "biased", "llama3", "linear", "mistral"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Each variant of the architecture that is served."""
    torch.manual_seed(2)
    scaled = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"rope_theta": 10_000.0, "original_max_position_embeddings": 32}
    model = {
        "plain": lambda: llama(num_key_value_heads=2),
        "tied": lambda: llama(tie_word_embeddings=True),
        "biased": lambda: llama(attention_bias=True, mlp_bias=True),
        "llama3": lambda: llama(rope_parameters=scaled),
        "linear": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5_000.0}),
        "mistral": mistral,
    }[request.param]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return save(model, tmp_path_factory.mktemp(request.param))
