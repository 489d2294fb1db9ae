"""Small random models of many families, with the settings that make each one different."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from torch import nn

VOCABULARY = 61
WINDOW = 96

SIZES: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Weights are drawn wider than usual, so that the distributions have something to say.
    "initializer_range": 0.25,
    "pad_token_id": 0,
}
VISION: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
EXPERTS: dict[str, object] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _of(config: type[hf.PretrainedConfig], **options: object) -> Callable[[], hf.PretrainedConfig]:
    return lambda: config(**{**SIZES, **options})


def _gpt2(**options: object) -> Callable[[], hf.PretrainedConfig]:
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
    return lambda: hf.GPT2Config(**sizes, initializer_range=0.25, **options)


SERVED: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama-yarn": _of(
        hf.LlamaConfig,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 10_000.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-gelu": _of(hf.LlamaConfig, hidden_act="gelu"),
    "qwen2": _of(hf.Qwen2Config),
    "qwen2-window": _of(hf.Qwen2Config, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": _of(hf.Qwen3Config, head_dim=12),
    "qwen2-moe": _of(hf.Qwen2MoeConfig, **EXPERTS, shared_expert_intermediate_size=16),
    "qwen3-moe": _of(hf.Qwen3MoeConfig, **EXPERTS, head_dim=12),
    "mixtral": _of(hf.MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
    "ministral": _of(hf.MinistralConfig, sliding_window=WINDOW, head_dim=12),
    "phi3": _of(hf.Phi3Config, sliding_window=WINDOW, partial_rotary_factor=0.5),
    "gemma2": _of(
        hf.Gemma2Config,
        head_dim=12,
        query_pre_attn_scalar=10,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        sliding_window=WINDOW,
    ),
    "gemma3": _of(hf.Gemma3TextConfig, head_dim=12, query_pre_attn_scalar=10, sliding_window=WINDOW),
    "gemma3-vision": lambda: hf.Gemma3Config(
        text_config={**SIZES, "head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": WINDOW},
        vision_config={**VISION, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=60,
    ),
    "olmo2": _of(hf.Olmo2Config),
    "smollm3": _of(hf.SmolLM3Config, no_rope_layers=[1, 1, 0]),
    "granite": _of(
        hf.GraniteConfig,
        logits_scaling=3.0,
        attention_multiplier=0.2,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
    ),
    "gpt2": _gpt2(),
    "gpt2-scaled": _gpt2(scale_attn_by_inverse_layer_idx=True),
}

WINDOWS = {"qwen2-window", "ministral", "phi3", "gemma2", "gemma3", "gemma3-vision"}
"""Those that are served up to their window."""

REFUSED: dict[str, tuple[Callable[[], hf.PretrainedConfig], str]] = {
    "bloom": (_of(hf.BloomConfig, n_head=4, n_layer=3), "plug"),
    "mpt": (_of(hf.MptConfig, d_model=32, n_heads=4, n_layers=3), "plug"),
    "falcon": (
        lambda: hf.FalconConfig(vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, alibi=True),
        "ALiBi",
    ),
    "gptj": (lambda: hf.GPTJConfig(vocab_size=61, n_embd=32, n_layer=3, n_head=4, rotary_dim=4), "plug"),
    "gpt-oss": (_of(hf.GptOssConfig, num_local_experts=4, head_dim=8), "sinks"),
    "deepseek": (
        _of(
            hf.DeepseekV3Config,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
            num_key_value_heads=4,
        ),
        "latent",
    ),
    "qwen-vision": (
        lambda: hf.Qwen2_5_VLConfig(
            text_config={**SIZES, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32},
        ),
        "cannot load it: Unrecognized configuration class",
    ),
    "mamba": (_of(hf.MambaConfig), "linear_attention"),
    "qwen3-next": (_of(hf.Qwen3NextConfig, num_experts=4, head_dim=8), "linear_attention"),
    "lfm2": (_of(hf.Lfm2Config, layer_types=["conv", "full_attention", "conv"]), "conv"),
    "opt": (_of(hf.OPTConfig, ffn_dim=48, word_embed_proj_dim=32), "output matrix"),
    "bidirectional": (_of(hf.Gemma3TextConfig, head_dim=12, use_bidirectional_attention=True), "off by"),
}


def model(config: hf.PretrainedConfig) -> hf.PreTrainedModel:
    """A random model of `config`; its norms, biases and sinks are random, too, so that a lost one shows."""
    torch.manual_seed(3)
    kind = hf.AutoModelForImageTextToText if isinstance(config, hf.Qwen2_5_VLConfig) else hf.AutoModelForCausalLM
    made = kind.from_config(config, attn_implementation="eager").eval()
    for parameter in made.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    return made


def write(config: hf.PretrainedConfig, folder: Path) -> hf.PreTrainedModel:
    """Save such a model to `folder`; returns it, with eager attention."""
    made = model(config)
    made.save_pretrained(folder)
    return made
