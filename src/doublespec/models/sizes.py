"""What our decoder has to know of a model: plain numbers, which any process can be handed."""

from dataclasses import dataclass, replace
from math import gcd

import torch

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary embeddings (arXiv 2104.09864): the inverse frequencies of half a head, in float32, and
    the factor on their cosines and sines."""

    frequencies: tuple[float, ...]
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes of a decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    tied: bool  # the vocabulary's product is with the embedding
    max_length: int
    rotary: Rotary
    biases: frozenset[str] = frozenset()  # the products of a layer that have one

    @property
    def biased(self) -> bool:
        return bool(self.biases)

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def layer_sizes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the products of a layer."""
        return [
            (self.query_size + 2 * self.kv_size, self.hidden_size),
            (self.hidden_size, self.query_size),
            (2 * self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        ]

    def num_layer_weights(self) -> int:
        """The numbers in the products of all layers."""
        return self.num_layers * sum(outputs * inputs for outputs, inputs in self.layer_sizes())

    def num_parameters(self) -> int:
        """All numbers, but for biases and the norms of heads."""
        tables = (1 if self.tied else 2) * self.vocab_size
        norms = 2 * self.num_layers + 1
        return self.num_layer_weights() + (tables + norms) * self.hidden_size

    def most_ranks(self) -> int:
        """The largest number of equal parts; every other number of them divides it."""
        return gcd(self.num_heads, self.num_kv_heads, self.intermediate_size)

    def divided(self, count: int) -> "DecoderConfig":
        """The sizes of one of `count` equal parts (`parallel.py`)."""
        return replace(
            self,
            num_heads=self.num_heads // count,
            num_kv_heads=self.num_kv_heads // count,
            intermediate_size=self.intermediate_size // count,
        )

    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_layers * self.kv_size * dtype.itemsize
