"""How fast plain decoding can be: the bytes a token must read, over what the device reads a second.

Bytes are counted from the shape, bandwidth is measured here and now.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any

import torch

from doublespec.models.sizes import DecoderConfig

_REPEATS = 15
_WARM_UPS = 3
_COLUMNS = 8192
BUFFER_BYTES = 2 << 30  # many times as much as any cache holds


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What decoding one token reads."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        return self.weights + self.cache


def token_bytes(
    config: DecoderConfig, dtype: torch.dtype, quantize: str | None, context: int
) -> TokenBytes:
    """Of one token after `context` others: all layers (8 bits each if quantised), norms, the
    vocabulary's product, one row of the embedding, and the keys and values of the context."""
    size = dtype.itemsize
    layers = config.num_layer_weights() * (size if quantize is None else 1)
    norms = (2 * config.num_layers + 1) * config.hidden_size
    rows = (config.vocab_size + 1) * config.hidden_size
    cache = context * config.cache_bytes_per_token(dtype)
    return TokenBytes(layers + (norms + rows) * size, cache)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second: what `reads` by several kernels reached, and a copy, which reads and writes.
    The first of these is what a limit is computed from, at its best."""

    reads: Mapping[str, float]
    copy: float
    buffer_bytes: int

    @property
    def read(self) -> float:
        return max(self.reads.values())


def measure_bandwidth(device: torch.device, buffer_bytes: int = BUFFER_BYTES) -> Bandwidth:
    """By kernels that read a buffer of random numbers once; medians."""
    rows = max(1, buffer_bytes // (4 * _COLUMNS))
    table = torch.randn(rows, _COLUMNS, device=device)
    half, vector = table.view(torch.bfloat16).normal_(), torch.randn(2 * _COLUMNS, device=device)
    vector = vector.bfloat16()
    words, other = table.view(torch.int32), torch.empty_like(table)
    bytes_read = table.numel() * table.itemsize
    kernels: dict[str, Callable[[], object]] = {
        "sum": lambda: half.view(-1).sum(),
        "sum of rows": lambda: half.sum(dim=1),
        "maximum": lambda: words.view(-1).max(),
        "matrix times vector": lambda: torch.mv(half, vector),
    }
    if device.type == "cuda" and find_spec("triton") is not None:
        from doublespec.models.gpu.reading import in_pieces, read_through

        pieces = words.view(-1)[: in_pieces(words.numel())]
        assert pieces.numel() == words.numel()  # buffers are whole megabytes
        kernels["reading alone"] = lambda: read_through(pieces)
    reads = {name: bytes_read / seconds_of(device, call) for name, call in kernels.items()}
    copy = 2 * bytes_read / seconds_of(device, lambda: other.copy_(table))
    return Bandwidth(reads, copy, bytes_read)


def seconds_of(device: torch.device, call: Callable[[], object], repeats: int = _REPEATS) -> float:
    """The median time of a call on the device, after warm-ups: by its own clock, if it has one."""
    for _ in range(_WARM_UPS):
        call()
    timed = _timed_on_cuda if device.type == "cuda" else _timed_on_host
    return median(timed(call) for _ in range(repeats))


def _timed_on_cuda(call: Callable[[], object]) -> float:
    begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _timed_on_host(call: Callable[[], object]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun
