"""The weights of a decoder, read from their source into the form its forward pass uses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from doublespec.models.sizes import DecoderConfig, Rotary
from doublespec.models.weights import Source

_UNDIVIDED = 32767  # elementwise operations on more values are divided among threads

# Half the time of `to`, which first finds out what it was given.
_CASTS: dict[torch.dtype, Callable[[Tensor], Tensor]] = {
    torch.float32: Tensor.float,
    torch.bfloat16: Tensor.bfloat16,
    torch.float16: Tensor.half,
}

Linear = Callable[[Tensor], Tensor]
MakeLinear = Callable[[Tensor, Tensor | None], Linear]  # from weight and bias
Norm = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # layers read, layers in all

ProductT = TypeVar("ProductT")  # what a decoder makes of the weights of a product,
NormT = TypeVar("NormT")  # and of a norm


@dataclass(frozen=True, slots=True)
class Layer(Generic[ProductT, NormT]):
    """One layer. Products that share their input are one: query, key and value; gate and up."""

    attention_norm: NormT
    qkv: ProductT
    query_norm: NormT | None
    key_norm: NormT | None
    output: ProductT
    mlp_norm: NormT
    gate_up: ProductT
    down: ProductT


@dataclass(frozen=True, slots=True)
class Weights(Generic[ProductT, NormT]):
    """All weights of a decoder."""

    embedding: Tensor  # (V, D)
    layers: tuple[Layer[ProductT, NormT], ...]
    norm: NormT
    vocabulary: ProductT


@dataclass(frozen=True, slots=True)
class Make(Generic[ProductT, NormT]):
    """How a decoder makes the products of its layers, from weight and bias; that with the
    vocabulary, from what reads its weight; and norms, from weight and epsilon."""

    product: Callable[[Tensor, Tensor | None], ProductT]
    vocabulary: Callable[[Callable[[], Tensor]], ProductT]
    norm: Callable[[Tensor, float], NormT]


def read_weights(
    source: Source,
    config: DecoderConfig,
    device: torch.device,
    dtype: torch.dtype,
    make: Make[ProductT, NormT],
    progress: Progress | None = None,
) -> Weights[ProductT, NormT]:
    """Reads layer by layer, so that no second copy of the model is ever in memory."""
    reader = _Reader(source, config, device, dtype, make)
    layers = []
    for i in range(config.num_layers):
        layers.append(reader.layer(f"model.layers.{i}."))
        if progress is not None:
            progress(i + 1, config.num_layers)
    embedding = reader.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    norm = reader.norm("model.norm.weight", config.hidden_size)
    vocabulary = make.vocabulary(lambda: reader.head(embedding))
    return Weights(embedding, tuple(layers), norm, vocabulary)


def with_torch(product: MakeLinear, *, has_vocabulary: bool = True) -> Make[Linear, Norm]:
    """PyTorch's kernels, `product` for the layers. Without the vocabulary's product, logits are
    rows of no values."""

    def vocabulary(read: Callable[[], Tensor]) -> Linear:
        return linear(read()) if has_vocabulary else lambda x: x[:, :0]

    return Make(product, vocabulary, rms_norm)


@dataclass(frozen=True, slots=True)
class _Reader(Generic[ProductT, NormT]):
    source: Source
    config: DecoderConfig
    device: torch.device
    dtype: torch.dtype
    make: Make[ProductT, NormT]

    def tensor(self, name: str, *shape: int) -> Tensor:
        return self.source.read(name, shape, (self.device, self.dtype))

    def norm(self, name: str, size: int) -> NormT:
        return self.make.norm(self.tensor(name, size), self.config.norm_eps)

    def maybe_norm(self, name: str, size: int) -> NormT | None:
        return self.norm(name, size) if self.source.has(name) else None

    def linear(self, inputs: int, outputs: Mapping[str, int]) -> ProductT:
        """The product with weights of those names and numbers of outputs, one below the other."""
        weights = [self.tensor(f"{name}.weight", size, inputs) for name, size in outputs.items()]
        first = next(iter(outputs))
        has_bias = first.rpartition(".")[2] in self.config.biases
        if not has_bias or not self.source.has(f"{first}.bias"):
            return self.make.product(torch.cat(weights), None)
        biases = [self.tensor(f"{name}.bias", size) for name, size in outputs.items()]
        return self.make.product(torch.cat(weights), torch.cat(biases))

    def head(self, embedding: Tensor) -> Tensor:
        """What turns states into logits. A checkpoint may say that this is the embedding and hold
        a table of its own all the same, which counts then, as in transformers."""
        name = "lm_head.weight"
        if self.config.tied and not self.source.has(name):
            return embedding
        own = self.tensor(name, *embedding.shape)
        return embedding if self.config.tied and torch.equal(own, embedding) else own

    def layer(self, prefix: str) -> Layer[ProductT, NormT]:
        c, attention, mlp = self.config, prefix + "self_attn.", prefix + "mlp."
        sizes = {"q_proj": c.query_size, "k_proj": c.kv_size, "v_proj": c.kv_size}
        qkv = {attention + name: size for name, size in sizes.items()}
        gate_up = {mlp + name: c.intermediate_size for name in ("gate_proj", "up_proj")}
        return Layer(
            attention_norm=self.norm(prefix + "input_layernorm.weight", c.hidden_size),
            qkv=self.linear(c.hidden_size, qkv),
            query_norm=self.maybe_norm(attention + "q_norm.weight", c.head_dim),
            key_norm=self.maybe_norm(attention + "k_norm.weight", c.head_dim),
            output=self.linear(c.query_size, {attention + "o_proj": c.hidden_size}),
            mlp_norm=self.norm(prefix + "post_attention_layernorm.weight", c.hidden_size),
            gate_up=self.linear(c.hidden_size, gate_up),
            down=self.linear(c.intermediate_size, {mlp + "down_proj": c.hidden_size}),
        )


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest product with `weight` (out, in) that this device has.

    On a CPU, oneDNN with the weight laid out beforehand: 1.5 to 2 times as fast as F.linear for few
    rows in bfloat16 (Xeon with AMX, torch 2.13, 2026-11-23).
    """
    if is_packed(weight.device, weight.dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        product = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: product(x, packed, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)


def is_packed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products there lay their weight out anew, as a copy of their own."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def rms_norm(weight: Tensor, eps: float) -> Norm:
    """Root mean square norm over the last dimension (arXiv 1910.07467, eq. 4).

    On a CPU written out with a third fewer operations than F.rms_norm is made of (6.6 against 9.9
    microseconds for 256 bfloat16 values), and the same bits in bfloat16.
    """
    if weight.device.type != "cpu":
        return lambda x: F.rms_norm(x, weight.shape, weight, eps)
    size, cast = len(weight), _CASTS[weight.dtype]
    scaled, term = weight.float() * size**0.5, torch.tensor(size * eps)

    def norm(x: Tensor) -> Tensor:
        x = x.float()
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return cast((x * torch.addcmul(term, length, length).rsqrt_()).mul_(scaled))

    return norm


def rotary_table(rotary: Rotary, capacity: int) -> tuple[Tensor, Tensor]:
    """cos and sin (capacity, head_dim) of rotary embeddings (arXiv 2104.09864, eq. 34), the sign of
    the turned half folded into sin."""
    angles = torch.arange(capacity).float()[:, None] * torch.tensor(rotary.frequencies)
    cos, sin = angles.cos() * rotary.factor, angles.sin() * rotary.factor
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `query` (heads, rows, head_dim) over `keys` and `values` (1, kv heads, keys,
    head_dim), under a mask (heads / kv heads x rows, keys); as `query`.

    The heads of a group share their keys, so their rows are laid one below the other: half the
    time of PyTorch's grouped attention.
    """
    heads, rows, dim = query.shape
    folded = query.reshape(1, keys.shape[1], -1, dim)
    mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
    return mixed.reshape(heads, rows, dim)  # some kernels leave the rows of a head apart


def lone_attention(
    turned: Tensor, rows: int, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of one row, computed as `rows` rows are; (1, heads x head_dim). `turned` are its
    queries and then its keys (heads + kv heads, 1, head_dim).

    A row's bits depend on how many are computed beside it, not on what is in them. So whatever
    follows a group's heads, the next ones or keys, stands for the other rows and is not copied.
    """
    count, _, dim = turned.shape
    kv_heads = keys.shape[1]
    group = count // kv_heads - 1
    shape = (1, kv_heads, group * rows, dim)
    if (kv_heads - 1) * group + group * rows <= count:
        folded = turned.as_strided(shape, (0, group * dim, dim, 1))
    else:
        folded = turned[:-kv_heads].view(1, kv_heads, group, dim).repeat(1, 1, rows, 1)
    mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
    first = mixed.as_strided((1, kv_heads, group, dim), mixed.stride())  # faster than a slice
    return first.reshape(1, -1)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) x up of (n, 2 x size) (arXiv 2002.05202, eq. 5).

    ATen divides 32,768 values or more among threads wherever they fall, and its loop rounds the end
    of each part differently; so on a CPU silu is handed fewer at a time, by whole rows.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    rows = max(1, _UNDIVIDED // gate.shape[-1])
    if gate.is_cuda or len(gate) <= rows:
        return F.silu(gate).mul_(up)
    parts = [F.silu(part) for part in torch.split(gate, rows)]
    return torch.cat(parts).mul_(up)
