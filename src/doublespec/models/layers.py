"""The weights of a decoder, read from a checkpoint into the form its forward pass uses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from doublespec.errors import ModelError
from doublespec.models.weights import Checkpoint

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")

Linear = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # layers read, layers in all


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
    max_length: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "DecoderConfig":
        """Reads a transformers configuration; raises ModelError on what is not supported."""
        if config.model_type not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise ModelError(f"model type must be one of {known}, got {config.model_type!r}")
        if config.hidden_act not in ("silu", "swish"):
            raise ModelError(f"the activation must be silu, got {config.hidden_act!r}")
        head_dim = getattr(config, "head_dim", None)
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            norm_eps=config.rms_norm_eps,
            max_length=_max_length(config),
        )

    def layer_sizes(self) -> set[tuple[int, int]]:
        """(outputs, inputs) of the products of a layer."""
        mixed = self.num_heads * self.head_dim
        return {
            (mixed + 2 * self.num_kv_heads * self.head_dim, self.hidden_size),
            (self.hidden_size, mixed),
            (self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        }

    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def _max_length(config: PreTrainedConfig) -> int:
    """The context; where layers slide a window, only texts that fit in it are exact."""
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", config.model_type == "mistral")
    length: int = config.max_position_embeddings
    return min(length, window) if window and slides else length


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer; query, key and value are one product, since they share their input."""

    attention_norm: Tensor
    qkv: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a decoder."""

    embedding: Tensor  # (V, D)
    layers: tuple[Layer, ...]
    norm: Tensor
    vocabulary: Linear


def read_weights(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Weights:
    """Reads layer by layer, so that no second copy of the model is ever in memory."""
    reader = _Reader(checkpoint, device, dtype)
    layers = []
    for i in range(config.num_layers):
        layers.append(reader.layer(f"model.layers.{i}."))
        if progress is not None:
            progress(i + 1, config.num_layers)
    embedding = reader.tensor("model.embed_tokens.weight")
    if embedding.shape != (config.vocab_size, config.hidden_size):
        raise ModelError(
            f"{checkpoint.folder}: the embedding has shape {tuple(embedding.shape)}, config.json "
            f"says {(config.vocab_size, config.hidden_size)}"
        )
    tied = not checkpoint.has("lm_head.weight")
    head = embedding if tied else reader.tensor("lm_head.weight")
    return Weights(embedding, tuple(layers), reader.tensor("model.norm.weight"), linear(head))


@dataclass(frozen=True, slots=True)
class _Reader:
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype

    def tensor(self, name: str) -> Tensor:
        return self.checkpoint.tensor(name).to(device=self.device, dtype=self.dtype)

    def maybe(self, name: str) -> Tensor | None:
        return self.tensor(name) if self.checkpoint.has(name) else None

    def linear(self, *names: str) -> Linear:
        """The product with the weights of those names, one below the other."""
        weight = torch.cat([self.tensor(f"{name}.weight") for name in names])
        if not self.checkpoint.has(f"{names[0]}.bias"):
            return linear(weight)
        return linear(weight, torch.cat([self.tensor(f"{name}.bias") for name in names]))

    def layer(self, prefix: str) -> Layer:
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        return Layer(
            attention_norm=self.tensor(prefix + "input_layernorm.weight"),
            qkv=self.linear(*(f"{attention}{name}_proj" for name in "qkv")),
            query_norm=self.maybe(attention + "q_norm.weight"),
            key_norm=self.maybe(attention + "k_norm.weight"),
            output=self.linear(attention + "o_proj"),
            mlp_norm=self.tensor(prefix + "post_attention_layernorm.weight"),
            gate=self.linear(mlp + "gate_proj"),
            up=self.linear(mlp + "up_proj"),
            down=self.linear(mlp + "down_proj"),
        )


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest product with `weight` (out, in) that this device has.

    On a CPU, oneDNN with the weight laid out beforehand: 1.5 to 2 times as fast as F.linear for few
    rows in bfloat16, and a row's bits do not depend on the number of rows, in bfloat16 and in
    float32 alike (Xeon with AMX, torch 2.13, 2026-11-23; tested anew by `find_shapes`).
    """
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        product = torch.ops.mkldnn._linear_pointwise
        return lambda x: product(x, packed, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)
