"""Random weights of a given shape, where a checkpoint's would have been read.

For measuring shapes whose checkpoint is not at hand: a forward takes as long as with real weights,
and says nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from doublespec.errors import ModelError
from doublespec.models.configs import CONFIGS, built_in_config
from doublespec.models.layers import DecoderConfig
from doublespec.models.weights import (
    WHOLE,
    Cut,
    Placement,
    Size,
    Source,
    open_checkpoint,
    read_config,
)

RANDOM = "random:"  # such a name is of random weights, of the shape that follows

_QKV = ("q_proj", "k_proj", "v_proj")
_WRITERS = ("o_proj", "down_proj")  # products that add to the hidden state


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """Weights by name and seed alone, each made on the device that wants it, when it is read."""

    name: str
    config: PreTrainedConfig = field(repr=False)
    seed: int = 0

    def has(self, name: str) -> bool:
        parts = name.split(".")
        if parts[-2] in ("q_norm", "k_norm"):
            return bool(self.config.model_type == "qwen3")
        return parts[-1] != "bias" or self._has_bias(parts[-2])

    def _has_bias(self, part: str) -> bool:
        if part in _QKV and self.config.model_type == "qwen2":
            return True
        setting = "attention_bias" if part in (*_QKV, "o_proj") else "mlp_bias"
        return bool(getattr(self.config, setting, False))

    def read(self, name: str, shape: Size, where: Placement, cut: Cut = WHOLE) -> Tensor:
        """The same values for the same name, seed, shape, precision and kind of device."""
        device, dtype = where
        if name.endswith("bias"):
            return torch.zeros(shape, device=device, dtype=dtype)
        if len(shape) == 1:
            return torch.ones(shape, device=device, dtype=dtype)
        generator = torch.Generator(device).manual_seed(crc32(f"{self.seed} {name}".encode()))
        weight = torch.empty(cut.whole(shape), device=device, dtype=dtype)
        weight.normal_(0.0, self._deviation(name, weight.shape[1]), generator=generator)
        return weight if cut.count == 1 else weight.chunk(cut.count, cut.dim)[cut.index].clone()

    def _deviation(self, name: str, inputs: int) -> float:
        """Products keep the size of what they are given, and all layers together add about as
        much to the hidden state as was there: it stays finite, however many they are."""
        writes = any(part in name for part in _WRITERS)
        layers: int = self.config.num_hidden_layers
        return float((inputs * (2 * layers if writes else 1)) ** -0.5)

    def num_parameters(self) -> int:
        """How many numbers it stands for, but for biases and the norms of heads."""
        return DecoderConfig.of(self.config).num_parameters()


def open_source(name: str) -> Source:
    """What a model's weights are read from: the checkpoint of that name, or for "random:SHAPE"
    random ones, SHAPE being one of CONFIGS or a config.json. Raises ModelError."""
    if not name.startswith(RANDOM):
        return open_checkpoint(name)
    return RandomWeights(name, _find_config(name.removeprefix(RANDOM)))


def _find_config(shape: str) -> PreTrainedConfig:
    if shape in CONFIGS:
        return built_in_config(shape)
    path = Path(shape).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(CONFIGS)
        raise ModelError(
            f"the shape of random weights must be one of {known}, or the path of a config.json, "
            f"got {shape!r}"
        )
    return read_config(path)
