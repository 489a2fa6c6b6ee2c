"""Which models run on kernels of our own: compiled for the CPU, or in Triton for a GPU."""

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

import torch
from packaging.version import Version

from doublespec.compiled.code import LANES
from doublespec.errors import ConfigError
from doublespec.models.devices import find_dtype
from doublespec.models.native.decoder import STORAGES
from doublespec.models.native.library import can_compile
from doublespec.models.sizes import DecoderConfig

_LEAST_CAPABILITY, _FP8_CAPABILITY = (8, 0), (9, 0)  # of a GPU: Ampere, Hopper
_LEAST_TRITON = Version("3.6")
_MOST_DIM, _MOST_SHARING, _MOST_HIDDEN = 256, 64, 16384  # that its kernels hold in registers


def is_native(
    kernels: str | None,
    config: DecoderConfig | None,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None = None,
) -> bool:
    """Whether a model runs on them: by default wherever they can compute it (docs/log.md has what
    was measured). What decides is no measurement of the machine at hand, since they and PyTorch's
    differ in their bits. Raises ConfigError where they are asked for and cannot."""
    if kernels == "torch":
        return False
    reason = _why_not(config, device, quantize) or _why_not_dtype(dtype, device)
    if kernels == "native" and reason is not None:
        raise ConfigError(f"kernels native cannot be used {reason}; choose kernels torch")
    return reason is None


def choose_dtype(
    name: str | None,
    kernels: str | None,
    config: DecoderConfig | None,
    devices: Sequence[torch.device],
    quantize: str | None = None,
) -> torch.dtype:
    """The precision of that name or, by default, the one that suits the kernels that will compute:
    ours hold weights in bfloat16. Raises ConfigError."""
    possible = len(devices) == 1 and kernels != "torch" and devices[0].type == "cpu"
    native = possible and _why_not(config, devices[0], quantize) is None
    return find_dtype(name, devices[0], torch.bfloat16 if native else None)


def _why_not(
    config: DecoderConfig | None, device: torch.device, quantize: str | None
) -> str | None:
    """What keeps a model from them, if anything does."""
    if config is None:
        return "for a model that runs through transformers"
    if device.type == "cuda":
        return _why_not_gpu(config, device, quantize)
    if device.type != "cpu":
        return f"on {device}"
    if quantize not in (None, "int8"):
        return f"with {quantize} layers"
    sizes = config.hidden_size, config.intermediate_size, config.head_dim
    if any(size % LANES for size in sizes):
        return f"for hidden, intermediate and head sizes {sizes}, not all multiples of {LANES}"
    if not can_compile():
        return "on this CPU or with this build of PyTorch (it needs FMA, and GCC's OpenMP)"
    return None


def _why_not_gpu(config: DecoderConfig, device: torch.device, quantize: str | None) -> str | None:
    if find_spec("triton") is None:
        return "without Triton, which PyTorch for CUDA brings along"
    if Version(version("triton")) < _LEAST_TRITON:
        return f"with Triton {version('triton')}: they need {_LEAST_TRITON} or newer"
    if torch.version.cuda is None:
        return f"on {device}: they are written for NVIDIA's GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"on {device}: it is older than Ampere"
    if quantize == "fp8" and capability < _FP8_CAPABILITY:
        return f"with fp8 layers on {device}: it is older than Hopper"
    group = config.num_heads // config.num_kv_heads
    if config.head_dim % 16 or config.head_dim > _MOST_DIM or group > _MOST_SHARING:
        return f"for heads of {config.head_dim} numbers, {group} of which share their keys"
    if config.hidden_size > _MOST_HIDDEN:
        return f"for hidden states of {config.hidden_size} numbers"
    return None


def _why_not_dtype(dtype: torch.dtype, device: torch.device) -> str | None:
    possible = (torch.bfloat16, torch.float16) if device.type == "cuda" else tuple(STORAGES)
    return None if dtype in possible else f"in {str(dtype).removeprefix('torch.')}"
