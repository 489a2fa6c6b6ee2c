"""Checkpoints in Hugging Face format: a folder or a hub id in, configuration and tensors out.

Only safetensors are read; pickled weights run code when they are opened.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from doublespec.errors import ModelError, reason

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk. `tensor` reads one weight; nothing is kept in memory."""

    folder: Path
    config: PreTrainedConfig
    files: Mapping[str, str] = field(repr=False)  # weight name -> file name

    def has(self, name: str) -> bool:
        return name in self.files

    def tensor(self, name: str) -> Tensor:
        if name not in self.files:
            raise missing_weight(self.folder, name)
        with _opened(self.folder / self.files[name]) as file:
            weight: Tensor = file.get_tensor(name)
            return weight

    def part(self, name: str, dim: int, index: int, count: int) -> Tensor:
        """The index-th of `count` equal parts of a weight along a dimension; the rest of it is not
        read."""
        if name not in self.files:
            raise missing_weight(self.folder, name)
        with _opened(self.folder / self.files[name]) as file:
            weight = file.get_slice(name)
            size, rest = divmod(weight.get_shape()[dim], count)
            if rest:
                raise ModelError(f"{name} in {self.folder} is not to be had in {count} equal parts")
            where = slice(index * size, (index + 1) * size)
            part: Tensor = weight[where] if dim == 0 else weight[:, where]
            return part

    def num_parameters(self) -> int:
        """How many numbers its files hold, by their headers."""
        count = 0
        for file_name in sorted(set(self.files.values())):
            with _opened(self.folder / file_name) as file:
                names = file.keys()
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        return count


def missing_weight(folder: Path, name: str) -> ModelError:
    return ModelError(f"{folder} has no weight {name!r}; is the checkpoint complete?")


def open_checkpoint(name: str) -> Checkpoint:
    """The checkpoint in a local folder or on the Hugging Face hub; raises ModelError."""
    folder = find_folder(name)
    return Checkpoint(folder, _read_config(folder), _weight_files(folder))


def find_folder(name: str) -> Path:
    """The local folder of a model, downloaded from the hub if `name` is a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(f"there is no folder {name!r}, and it is not a hub id like 'org/model'")
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(
            f"{name!r} is neither a folder nor a model that the Hugging Face hub gives: "
            f"{reason(error)}"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name!r} is no folder here, and the Hugging Face hub cannot be reached: give a local "
            "folder, or download the model once while online"
        ) from error


def _read_config(folder: Path) -> PreTrainedConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; a Hugging Face model folder is expected")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ModelError(
            f"{path} is no configuration that transformers reads: {reason(error)}"
        ) from error
    return config


def _weight_files(folder: Path) -> dict[str, str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_files(index)
    single = folder / "model.safetensors"
    if not single.is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        hint = "; pickled weights are not read, convert them to safetensors" if pickled else ""
        raise ModelError(f"{folder} has no weights (model.safetensors){hint}")
    with _opened(single) as file:
        return dict.fromkeys(file.keys(), single.name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path}: {reason(error)}; download it again") from error


def _indexed_files(index: Path) -> dict[str, str]:
    try:
        files = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{index} is not an index of safetensors files") from error
    missing = sorted(name for name in set(files.values()) if not (index.parent / name).is_file())
    if missing:
        raise ModelError(f"{index.parent} lacks {missing[0]}, which its index names")
    return files


def rotary_frequencies(config: PreTrainedConfig, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies (head_dim / 2,) of rotary embeddings and the factor on cos and sin
    (arXiv 2104.09864; scaled as the checkpoint says: linear, llama3 or yarn)."""
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / parameters["rope_theta"] ** exponents, 1.0
    if kind not in ("linear", "llama3", "yarn"):
        raise ModelError(f"rope type {kind!r} is not supported; default, linear, llama3 or yarn is")
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies, float(factor)
