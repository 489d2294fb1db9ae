"""The planner's network in plain torch: the same function as Hugging Face's Llama, written for short sequences.

Training needs one thing Llama's own class makes slow: a fixed attention mask and positions that are no plain count.
`save_folder` writes the weights under Llama's names; a test checks that both give equal logits.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from training.vocabulary import EOS, NUMBER, PAD, TOKENS, save_tokenizer
from tts_agent.pocket.countdown import LARGEST

ROPE_THETA = 10_000.0
EPSILON = 1e-6
POSITIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the network. `width` must be divisible by twice the number of heads."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 352

    @property
    def head(self) -> int:
        return self.width // self.heads


class Block(nn.Module):
    """One Llama layer: attention with rotary positions, then a gated feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, inner = shape.width, shape.inner
        self.shape = shape
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.inner_norm = nn.Parameter(torch.ones(width))
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor, past: Tensor | None) -> Tensor:
        """`past` is this layer's part of the planner's."""
        batch, length, width = x.shape
        normed = F.rms_norm(x, (width,), self.attention_norm, EPSILON)
        q, k, v = (
            part(normed).view(batch, length, self.shape.heads, self.shape.head).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        q, k = _rotated(q, rotation), _rotated(k, rotation)
        if past is None:
            # Written out: the fused kernel's backward pass is several times slower in bf16 on CPUs.
            scores = (q @ k.transpose(-1, -2)).float() * self.shape.head**-0.5 + mask
            mixed = scores.softmax(-1).to(v.dtype) @ v
        else:
            stop = mask.shape[-1]
            past[0][:, :, stop - length : stop], past[1][:, :, stop - length : stop] = k, v
            q, k, v = q.to(past.dtype), past[0][:, :, :stop], past[1][:, :, :stop]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(past.dtype))
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, width))
        normed = F.rms_norm(x, (width,), self.inner_norm, EPSILON)
        added: Tensor = self.down(F.silu(self.gate(normed)) * self.up(normed))
        return x + added


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * rotation[0] + torch.cat((-high, low), -1) * rotation[1]


class Planner(nn.Module):
    """Token ids in, logits over the vocabulary out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(_first_embedding(shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.width))
        for name, weight in self.named_parameters():
            if name.endswith(".weight"):
                scale = (2 * shape.layers) ** -0.5 if ".o." in name or ".down." in name else 1.0
                nn.init.normal_(weight, std=0.7 * scale * weight.shape[1] ** -0.5)

    def forward(self, ids: Tensor, rotation: Tensor, mask: Tensor, past: Tensor | None = None) -> Tensor:
        """Logits ``[batch, length, vocabulary]``.

        Args:
            ids: ``[batch, length]``.
            rotation: from `rotation` for the positions of these tokens.
            mask: additive attention mask, broadcast to ``[batch, heads, length, past + length]``.
            past: room for keys and values, from `room_for`. They are written behind those that the mask shows before.
        """
        x = F.embedding(ids, self.embedding)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, mask, None if past is None else past[index])
        return F.linear(F.rms_norm(x, (self.shape.width,), self.norm, EPSILON), self.embedding)


def room_for(planner: Planner, batch: int, length: int, dtype: torch.dtype) -> Tensor:
    """An empty cache ``[layers, 2, batch, heads, length, head]`` for keys and values."""
    shape = planner.shape
    sizes = (shape.layers, 2, batch, shape.heads, length, shape.head)
    return torch.zeros(sizes, dtype=dtype, device=planner.embedding.device)


def rotation(shape: Shape, positions: Tensor) -> Tensor:
    """Cosines and sines ``[2, length, head]`` of the rotary embedding at `positions`."""
    rates = ROPE_THETA ** (-torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head)
    angles = (positions.float()[:, None] * rates).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def _first_embedding(width: int) -> Tensor:
    """Small noise; numbers also get waves of several periods and their logarithm, so that near numbers look alike."""
    table = torch.randn(len(TOKENS), width) * 0.04
    numbers = torch.arange(LARGEST + 1, dtype=torch.float32)
    features = [numbers / LARGEST, (numbers + 1).log() / 6]
    for period in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 50, 100, 200):
        features += [(2 * torch.pi * numbers / period).sin(), (2 * torch.pi * numbers / period).cos()]
    structured = torch.stack(features, 1) * 0.08
    table[NUMBER:, : structured.shape[1]] += structured[:, :width]
    return table


def llama_config(shape: Shape) -> LlamaConfig:
    """The Hugging Face configuration of the same network."""
    return LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=EPSILON,
        rope_theta=ROPE_THETA,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype="float32",
    )


_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "inner_norm": "post_attention_layernorm.weight",
    **{f"{part}.weight": f"self_attn.{part}_proj.weight" for part in "qkvo"},
    **{f"{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
}


def llama(planner: Planner) -> LlamaForCausalLM:
    """The same weights in Hugging Face's class."""
    weights = {"model.embed_tokens.weight": planner.embedding, "model.norm.weight": planner.norm}
    for index, block in enumerate(planner.blocks):
        for name, weight in block.named_parameters():
            weights[f"model.layers.{index}.{_NAMES[name]}"] = weight
    weights["lm_head.weight"] = planner.embedding
    made = LlamaForCausalLM(llama_config(planner.shape))
    made.load_state_dict({name: weight.detach().clone() for name, weight in weights.items()})
    return made


def save_folder(planner: Planner, folder: Path) -> None:
    """Write a complete Hugging Face model folder: weights, configurations, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    made = llama(planner)
    made.generation_config = GenerationConfig(bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD)
    made.save_pretrained(folder)
    save_tokenizer(folder)


def load_folder(folder: Path) -> Planner:
    """Read a folder written by `save_folder` back into the training network."""
    made = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = made.config
    shape = Shape(
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        inner=config.intermediate_size,
    )
    planner = Planner(shape)
    weights = made.state_dict()
    with torch.no_grad():
        planner.embedding.copy_(weights["model.embed_tokens.weight"])
        planner.norm.copy_(weights["model.norm.weight"])
        for index, block in enumerate(planner.blocks):
            for name, weight in block.named_parameters():
                weight.copy_(weights[f"model.layers.{index}.{_NAMES[name]}"])
    return planner
