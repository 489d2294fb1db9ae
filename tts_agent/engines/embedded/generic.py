"""Any causal language model of `transformers` whose attention can be plugged.

The model's own modules run over packed tokens; only attention is ours. What a model needs beyond that (normalised
keys, experts, caps and scales of its logits) is its own code and needs none here. What could not be computed exactly
is refused when the model is loaded: by what its config and its calls of attention say, and by computing a small tree
of branches beside the model's own eager attention.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from tts_agent.engines.embedded.model import Attend, Shape
from tts_agent.engines.embedded.probe import Probe, Tree
from tts_agent.errors import ModelError

NAME = "tts_agent"
"""Under this name `transformers` finds our attention."""

EXACT_LAYERS = frozenset({"attention", "chunked_attention", "full_attention", "sliding_attention"})
"""Kinds of layers that are plain attention up to their window or chunk."""

TOLERANCE = 1e-4
"""How far a log-probability may lie from the model's own."""

_attend: ContextVar[Attend] = ContextVar("attend")


class Generic:
    """The model of `transformers` in `folder`, in fp32.

    Raises `ModelError` if it cannot be loaded or would not be computed exactly.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self.device = device
        config = self._read_config()
        self._whole = self._load()
        self._base = self._whole.base_model
        if self._base is self._whole:
            raise self._error("its output matrix cannot be told from the rest")
        tree = Tree(min(config.vocab_size, 10_000), device)
        probe = Probe(tree.seen)
        try:
            with torch.inference_mode():
                hidden = self.forward(tree.ids, tree.positions, probe)
                truth = self._eager(tree)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise self._error(probe.problem or f"it does not run over packed tokens: {_line(error)}") from error
        self.shape = self._shape(config, probe, hidden.shape[-1])
        # What is left without the base is the head, with all that the model does to its logits.
        setattr(self._whole, self._whole.base_model_prefix, _Given())
        try:
            with torch.inference_mode():
                ours = tree.rows(self.logits(hidden))
        except (TypeError, AttributeError) as error:
            raise self._error(f"its output matrix cannot be used alone: {_line(error)}") from error
        self._compare(ours, truth)

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        with _attending(attend):
            out = self._base(input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._whole(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits[0]
        return logits

    def _error(self, problem: str, remedy: str = "serve another model here") -> ModelError:
        return ModelError(f"model folder {str(self._folder)!r}: {problem}; {remedy}")

    def _read_config(self) -> Any:
        try:
            config = AutoConfig.from_pretrained(self._folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._error(
                f"transformers cannot read config.json: {_line(error)}", "pass a complete folder"
            ) from error
        if config.is_encoder_decoder:
            raise self._error("it is an encoder and a decoder", "serve a model that only decodes")
        if getattr(config, "quantization_config", None) is not None:
            raise self._error("its weights are quantized", "the embedded engine serves plain weights")
        config = config.get_text_config()  # of models that see or hear, the part that reads
        if getattr(config, "alibi", False):
            raise self._error("its attention fades with distance (ALiBi), which shared attention does not compute")
        kinds = set(getattr(config, "layer_types", None) or ()) - EXACT_LAYERS
        if kinds:
            raise self._error(f"it has layers of type {sorted(kinds)!r}, whose memory is not one key and value a token")
        return config

    def _load(self) -> Any:
        AttentionInterface.register(NAME, _attention)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                self._folder,
                dtype=torch.float32,
                attn_implementation=NAME,
                output_loading_info=True,
                use_safetensors=True,
            )
        except KeyError as error:
            if error.args == (NAME,):
                raise self._error("its attention is written in a way of its own and cannot be plugged") from error
            raise self._error(f"transformers cannot load it: {_line(error)}", "pass a complete folder") from error
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            raise self._error(f"transformers cannot load it: {_line(error)}", "pass a complete folder") from error
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[problem]:
                names = sorted(map(str, info[problem]))[:3]
                raise self._error(
                    f"weights do not fit config.json: {problem} {names!r}",
                    "the folder is incomplete or of another architecture",
                )
        return model.to(self.device).eval().requires_grad_(False)

    def _shape(self, config: Any, probe: Probe, hidden: int) -> Shape:
        """The shape that the model's calls of attention show; refuses calls that would be answered wrongly."""
        if probe.problem:
            raise self._error(probe.problem)
        layers = config.num_hidden_layers
        if probe.layers != list(range(layers)):
            raise self._error(
                f"of its {layers} layers, those that call pluggable attention are {probe.layers!r}; the others have "
                "attention of their own, keys of other layers, or no attention (linear or state-space layers)"
            )
        if len(probe.sizes) != 1:
            raise self._error(f"its layers have heads of different sizes {sorted(probe.sizes)!r}")
        heads, kv_heads, head_dim = probe.sizes.pop()
        return Shape(
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            vocab=config.vocab_size,
            context=self._context(config, probe.windows),
        )

    def _context(self, config: Any, windows: set[int]) -> int:
        """The longest sequence within every window, and within which rotary positions have one scale."""
        limits = [getattr(config, "max_position_embeddings", None), *windows]
        limits.append(getattr(config, "attention_chunk_size", None))
        kinds = getattr(config, "layer_types", None)
        if kinds is None or "sliding_attention" in kinds:
            limits.append(getattr(config, "sliding_window", None))
        for rope in _rope_parameters(config):
            # Beyond its original length longrope changes scale for a whole batch, whoever else is in it.
            if rope.get("rope_type") == "longrope":
                limits.append(rope.get("original_max_position_embeddings"))
        known = [int(limit) for limit in limits if limit]
        if not known:
            raise self._error("config.json names no max_position_embeddings", "add it")
        return min(known)

    def _eager(self, tree: Tree) -> Tensor:
        """Logits of the tree's branches, each computed alone with the model's own attention."""
        self._whole.set_attn_implementation("eager")
        logits = [self._whole(input_ids=ids.unsqueeze(0), use_cache=False).logits[0] for ids in tree.branches]
        self._whole.set_attn_implementation(NAME)
        return torch.cat(logits)

    def _compare(self, ours: Tensor, truth: Tensor) -> None:
        if ours.shape != truth.shape or ours.shape[-1] != self.shape.vocab:
            raise self._error(f"its logits have the shape {tuple(truth.shape)!r}, its head gives {tuple(ours.shape)!r}")
        difference = float((torch.log_softmax(ours, -1) - torch.log_softmax(truth, -1)).abs().max())
        if not difference < TOLERANCE:
            raise self._error(
                f"over shared keys its log-probabilities are off by {difference:.2g} from its own eager attention "
                "(position biases, sinks or memory beyond one key and value a token)"
            )


@contextmanager
def _attending(attend: Attend) -> Iterator[None]:
    token = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls in every layer, with `[1, heads, tokens, head_dim]`."""
    attend = _attend.get()
    if isinstance(attend, Probe):
        attend.look(key, value, attention_mask, extra)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    out = attend(module.layer_idx, q, k, v, scale=scaling, softcap=softcap)  # type: ignore[arg-type]
    return out.view(1, len(q), query.shape[1], -1), None


def _line(error: Exception) -> str:
    """The first line of a message, which may go on for pages."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _rope_parameters(config: Any) -> list[Mapping[str, Any]]:
    """Rotary settings: one for all layers, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return nested or [rope]


class _Given(nn.Module):
    """Stands where the base was: its output is the hidden states it is given."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> "_Output":
        return _Output((inputs_embeds,))


class _Output(tuple[Tensor, ...]):
    """A model's output that has its hidden states and nothing else."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None
