"""Which models run on kernels of our own."""

from collections.abc import Sequence

import torch

from doublespec.compiled.code import LANES
from doublespec.errors import ConfigError
from doublespec.models.devices import find_dtype, has_fast_bfloat16
from doublespec.models.native.decoder import STORAGES
from doublespec.models.native.library import can_compile
from doublespec.models.sizes import DecoderConfig


def is_native(
    kernels: str | None,
    config: DecoderConfig | None,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None = None,
) -> bool:
    """Whether a model runs on them: by default where they can compute it, except in bfloat16 on a
    CPU with instructions for that, which PyTorch's kernels use and ours do not. What decides is
    never a measurement, since the two differ in their bits. Raises ConfigError where they are asked
    for and cannot."""
    if kernels == "torch":
        return False
    reason = _why_not(config, device, quantize) or _why_not_dtype(dtype)
    if kernels == "native" and reason is not None:
        raise ConfigError(f"kernels native cannot be used {reason}; choose kernels torch")
    wanted = kernels == "native" or dtype is torch.float32 or not has_fast_bfloat16()
    return wanted and reason is None


def choose_dtype(
    name: str | None,
    kernels: str | None,
    config: DecoderConfig | None,
    devices: Sequence[torch.device],
    quantize: str | None = None,
) -> torch.dtype:
    """The precision of that name or, by default, the one that suits the kernels that will compute:
    ours hold weights in bfloat16. Raises ConfigError."""
    possible = len(devices) == 1 and kernels != "torch"
    native = possible and _why_not(config, devices[0], quantize) is None
    return find_dtype(name, devices[0], torch.bfloat16 if native else None)


def _why_not(
    config: DecoderConfig | None, device: torch.device, quantize: str | None
) -> str | None:
    """What keeps a model from them, if anything does."""
    if device.type != "cpu":
        return f"on {device}"
    if quantize not in (None, "int8"):
        return f"with {quantize} layers"
    if config is None:
        return "for a model that runs through transformers"
    sizes = config.hidden_size, config.intermediate_size, config.head_dim
    if any(size % LANES for size in sizes):
        return f"for hidden, intermediate and head sizes {sizes}, not all multiples of {LANES}"
    if not can_compile():
        return "on this CPU or with this build of PyTorch (it needs FMA, and GCC's OpenMP)"
    return None


def _why_not_dtype(dtype: torch.dtype) -> str | None:
    return None if dtype in STORAGES else f"in {str(dtype).removeprefix('torch.')}"
