"""8-bit weights: the products of a decoder's layers in half the memory.

Each output channel of a product has a scale, and its weights are whole numbers from -127 to 127.
That is another model, a little off the one that was read; everything that is promised about a
target is promised about the quantised one. Embedding and vocabulary stay as they are.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from doublespec.errors import ConfigError
from doublespec.models.layers import Linear, MakeLinear, linear

_ROWS = 1024  # channels that are rounded at a time: the copy in float32 is small
_LARGEST_FP8 = 448.0


def find_products(quantize: str | None, device: torch.device) -> MakeLinear:
    """What makes the products of layers; raises ConfigError on what this device has not."""
    if quantize is None:
        return linear
    if quantize == "int8":
        return int8_linear
    raise ConfigError(
        f"quantize {quantize} cannot be used on {device} with PyTorch's kernels: it needs kernels "
        "native, on a GPU no older than Hopper; use int8"
    )


def int8_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The product with `weight` (out, in), rounded to 8 bits. In bfloat16 on a CPU a kernel reads
    the 8 bits; elsewhere they are widened before each product, which saves memory and no time."""
    rounded, scales = rounded_to_int8(weight)
    if weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and _fits_tiles(weight):
        return _with_bias(lambda x: torch._weight_int8pack_mm(x, rounded, scales), bias)
    return _with_bias(lambda x: F.linear(x, rounded.to(x.dtype)).mul_(scales), bias)


def _fits_tiles(weight: Tensor) -> bool:
    """The kernel reads whole tiles, past the end of weights of other sizes."""
    outputs, inputs = weight.shape
    return outputs % 16 == 0 and inputs % 64 == 0


def _with_bias(product: Callable[[Tensor], Tensor], bias: Tensor | None) -> Linear:
    return product if bias is None else lambda x: product(x).add_(bias)


def rounded_to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in 8 bits, 3 of them fraction (e4m3, arXiv 2209.05433), of shape (out, in), and
    scales (out,), whose product is nearest to `weight`."""
    rounded = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty_like(weight[:, 0])
    for start in range(0, len(weight), _ROWS):
        rows = weight[start : start + _ROWS].float()
        scale = (rows.abs().amax(dim=1) / _LARGEST_FP8).clamp_min(1e-7).to(weight.dtype)
        scales[start : start + _ROWS] = scale
        shares = (rows / scale.float()[:, None]).clamp_(-_LARGEST_FP8, _LARGEST_FP8)
        rounded[start : start + _ROWS] = shares.to(torch.float8_e4m3fn)
    return rounded, scales


def rounded_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (out, in) and scales (out,), whose product is nearest to `weight`. The scales
    are rounded to its precision first, so that the whole numbers make up for it."""
    rounded = torch.empty_like(weight, dtype=torch.int8)
    scales = torch.empty_like(weight[:, 0])
    for start in range(0, len(weight), _ROWS):
        rows = weight[start : start + _ROWS].float()
        scale = (rows.abs().amax(dim=1) / 127).clamp_min(1e-7).to(weight.dtype)
        scales[start : start + _ROWS] = scale
        whole = (rows / scale.float()[:, None]).round_().clamp_(-127, 127)
        rounded[start : start + _ROWS] = whole.to(torch.int8)
    return rounded, scales
