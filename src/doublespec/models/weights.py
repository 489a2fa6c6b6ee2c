"""Checkpoints in Hugging Face format: a folder or a hub id in, configuration and tensors out.

Only safetensors are read; pickled weights run code when they are opened.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from doublespec.errors import ModelError, reason

# As quantisers name themselves in a config.json, and as people know them.
_FORMATS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "compressed-tensors": "compressed-tensors",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "quark": "Quark",
    "torchao": "torchao",
    "modelopt": "ModelOpt",
}
_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]

Size = tuple[int, ...]
Placement = tuple[torch.device, torch.dtype]


@dataclass(frozen=True, slots=True)
class Cut:
    """The `index`-th of `count` equal parts along a dimension."""

    dim: int
    index: int
    count: int

    def whole(self, shape: Size) -> Size:
        """The shape of what such a part is of."""
        return tuple(
            size * self.count if dim == self.dim else size for dim, size in enumerate(shape)
        )


WHOLE = Cut(0, 0, 1)


class Source(Protocol):
    """Where a model's weights come from: a checkpoint, or chance (`random_weights.py`)."""

    @property
    def name(self) -> str:
        """By which another process finds the same source."""
        ...

    @property
    def config(self) -> PreTrainedConfig: ...

    def has(self, name: str) -> bool:
        """Whether there is a weight of that name."""
        ...

    def read(self, name: str, shape: Size, where: Placement, cut: Cut = WHOLE) -> Tensor:
        """One weight, or a part of one, of that shape. Nothing is kept; raises ModelError where the
        weight is missing or of another shape."""
        ...

    def num_parameters(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk."""

    folder: Path
    config: PreTrainedConfig
    files: Mapping[str, str] = field(repr=False)  # weight name -> file name

    @property
    def name(self) -> str:
        return str(self.folder)

    def has(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str, shape: Size, where: Placement, cut: Cut = WHOLE) -> Tensor:
        """Of a part, the rest of the weight is not read."""
        with self._opened(name) as file:
            weight = file.get_slice(name)
            self._check_shape(name, tuple(weight.get_shape()), cut.whole(shape))
            if cut.count == 1:
                found: Tensor = file.get_tensor(name)
            else:
                places = slice(cut.index * shape[cut.dim], (cut.index + 1) * shape[cut.dim])
                found = weight[places] if cut.dim == 0 else weight[:, places]
        device, dtype = where
        return found.to(device=device, dtype=dtype)

    def _opened(self, name: str) -> AbstractContextManager[Any]:
        """The file that a weight is in."""
        if name not in self.files:
            raise missing_weight(self.folder, name)
        return _opened(self.folder / self.files[name])

    def _check_shape(self, name: str, found: Size, wanted: Size) -> None:
        if found != wanted:
            raise ModelError(
                f"{name} in {self.folder} has shape {found}, where config.json says {wanted}; take "
                "both from the same model"
            )

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
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; a Hugging Face model folder is expected")
    config = read_config(path)
    _check_not_quantised(config)
    return Checkpoint(folder, config, _weight_files(folder))


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


def read_config(path: Path) -> PreTrainedConfig:
    """The configuration in a config.json; raises ModelError."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ModelError(
            f"{path} is no configuration that transformers reads: {reason(error)}"
        ) from error
    return config


def _check_not_quantised(config: PreTrainedConfig) -> None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    values = found if isinstance(found, dict) else vars(found)
    method = values.get("quant_method")
    method = str(getattr(method, "value", method) or "")
    kind = f"the format {_FORMATS.get(method, method)}" if method else "a format without a name"
    raise ModelError(
        f"quantised weights are not read, and these are in {kind}; choose a checkpoint without "
        "quantisation, which --quantize int8 rounds while it is read"
    )


def _weight_files(folder: Path) -> dict[str, str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_files(index)
    single = folder / "model.safetensors"
    if not single.is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        hint = "; pickled weights are not read, convert them to safetensors" if pickled else ""
        if any(folder.glob("*.gguf")):
            hint = "; weights in the format GGUF are not read, choose the checkpoint they are from"
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
