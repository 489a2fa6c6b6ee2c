"""Random weights of a given shape, where a checkpoint's would have been read.

For measuring shapes whose checkpoint is not at hand: a forward takes as long as with real weights,
and says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from zlib import crc32

import torch
from torch import Tensor

from doublespec.models.sizes import DecoderConfig
from doublespec.models.weights import WHOLE, Cut, Placement, Size

RANDOM = "random:"  # such a name is of random weights, of the shape that follows

_QKV = ("q_proj", "k_proj", "v_proj")
_WRITERS = ("o_proj", "down_proj")  # products that add to the hidden state


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """Weights by name and seed alone, each made on the device that wants it, when it is read."""

    name: str
    model_type: str
    config: DecoderConfig = field(repr=False)
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def has(self, name: str) -> bool:
        parts = name.split(".")
        if parts[-2] in ("q_norm", "k_norm"):
            return self.model_type == "qwen3"
        if name == "lm_head.weight":
            return not self.config.tied
        return parts[-1] != "bias" or parts[-2] in self.config.biases

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
        layers = self.config.num_layers
        return float((inputs * (2 * layers if writes else 1)) ** -0.5)

    def num_parameters(self) -> int:
        """How many numbers it stands for, but for biases and the norms of heads."""
        return self.config.num_parameters()


def biased_parts(model_type: str, settings: Mapping[str, object]) -> frozenset[str]:
    """The products of a layer that have a bias, by the settings of a configuration."""
    parts: set[str] = set(_QKV) if model_type == "qwen2" else set()
    if settings.get("attention_bias"):
        parts |= {*_QKV, "o_proj"}
    if settings.get("mlp_bias"):
        parts |= {"gate_proj", "up_proj", "down_proj"}
    return frozenset(parts)
