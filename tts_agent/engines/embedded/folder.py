"""Reading a Hugging Face model folder; whatever is wrong with it becomes a `ModelError` with the remedy."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from tts_agent.errors import ModelError


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of the folder."""
    if folder.is_file():
        raise ModelError(f"{str(folder)!r} is a file; give the model folder around it, {str(folder.parent)!r}")
    if not folder.is_dir():
        raise ModelError(f"model folder {str(folder)!r} does not exist; pass a Hugging Face model folder")
    return _read_json(folder, "config.json")


class Weights(Mapping[str, Tensor]):
    """The tensors named in `expected`, read from the folder's safetensors files one at a time, in fp32, on `device`.

    A missing, unexpected or misshapen tensor is an error from the start: such a model would be served wrongly.
    """

    def __init__(self, folder: Path, expected: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in _weight_files(folder):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118  # a file is no mapping
                    files[name] = path
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        # Old versions stored rotary frequencies, which follow from the config; a tied head may be stored twice.
        known = {*expected, "lm_head.weight"}
        extra = [name for name in shapes if name not in known and "rotary_emb" not in name]
        missing = [name for name in expected if name not in shapes]
        if missing or extra:
            raise ModelError(
                f"model folder {str(folder)!r}: weights do not fit config.json: missing {missing[:3]!r}, "
                f"unexpected {extra[:3]!r}; the folder is incomplete or of another architecture"
            )
        for name, size in expected.items():
            if shapes[name] != size:
                raise ModelError(
                    f"model folder {str(folder)!r}: {name!r} has shape {shapes[name]!r}, config.json says {size!r}"
                )
        self._device = device
        self._files = {name: files[name] for name in expected}

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, name: str) -> Tensor:
        """A copy of the tensor, read anew each time."""
        # NOTE: the file is opened again for each tensor: while it is open, all that was read of it stays in memory.
        with _opened(self._files[name]) as file:
            stored: Tensor = file.get_tensor(name)
            return torch.empty(stored.shape, dtype=torch.float32, device=self._device).copy_(stored)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights {str(path)!r} cannot be read: {error}; copy the file again") from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """`tokenizer.json` of the folder; special tokens in encoded text stay plain text."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"model folder {str(folder)!r} has no tokenizer.json; save its fast tokenizer there")
    _read_json(folder, path.name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has no error of its own
        raise ModelError(f"{str(path)!r} cannot be read: {error}; copy the file again") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_end_ids(folder: Path) -> tuple[int, ...]:
    """The ids with which the model ends its answer, as the folder's generation settings or its config say."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file() and (ids := _read_json(folder, name).get("eos_token_id")) is not None:
            found = tuple(ids) if isinstance(ids, list) else (ids,)
            if not all(isinstance(token, int) for token in found):
                raise ModelError(f"{str(folder / name)!r}: eos_token_id={ids!r} is no token id; copy the file again")
            return found
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
