"""Reading a Hugging Face model folder; whatever is wrong with it becomes a `ModelError` with the remedy."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from tts_agent.errors import ModelError


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of the folder."""
    if not folder.is_dir():
        raise ModelError(f"model folder {str(folder)!r} does not exist; pass a Hugging Face model folder")
    return _read_json(folder, "config.json")


def read_weights(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors named in `expected`, in fp32, from the folder's safetensors files.

    A missing, unexpected or misshapen tensor is an error: such a model would be served wrongly.
    """
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                weights.update((name, file.get_tensor(name).to(torch.float32)) for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"weights {str(path)!r} cannot be read: {error}; copy the file again") from error
    # Old versions stored rotary frequencies, which follow from the config; a tied head may be stored twice.
    known = {*expected, "lm_head.weight"}
    extra = [name for name in weights if name not in known and "rotary_emb" not in name]
    missing = [name for name in expected if name not in weights]
    if missing or extra:
        raise ModelError(
            f"model folder {str(folder)!r}: weights do not fit config.json: missing {missing[:3]!r}, "
            f"unexpected {extra[:3]!r}; the folder is incomplete or of another architecture"
        )
    for name, size in expected.items():
        if tuple(weights[name].shape) != size:
            raise ModelError(
                f"model folder {str(folder)!r}: {name!r} has shape {tuple(weights[name].shape)!r}, "
                f"config.json says {size!r}"
            )
    return {name: weights[name] for name in expected}


def read_tokenizer(folder: Path) -> Tokenizer:
    """`tokenizer.json` of the folder; special tokens in encoded text stay plain text."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"model folder {str(folder)!r} has no tokenizer.json; save its fast tokenizer there")
    # NOTE: tokenizers reports a broken file as a bare Exception, so it is checked to be JSON first.
    _read_json(folder, path.name)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_end_ids(folder: Path) -> tuple[int, ...]:
    """The ids with which the model ends its answer, as the folder's generation settings or its config say."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file() and (ids := _read_json(folder, name).get("eos_token_id")) is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors.index.json").is_file():
        index = _read_json(folder, "model.safetensors.index.json")
        return [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise ModelError(f"model folder {str(folder)!r} has no model.safetensors; save the model with save_pretrained()")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ModelError(f"model folder {str(folder)!r} has no {name}; pass a complete model folder")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is not valid JSON: {error}; copy the file again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{str(path)!r} is not a JSON object; copy the file again")
    return data
