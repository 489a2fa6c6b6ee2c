"""Memory for weights in huge pages, where the system has them.

A forward reads all weights once, far more than the processor knows the addresses of: with pages of
two megabytes it looks up a five-hundredth of them (docs/log.md has what that gains).
"""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

_HUGE = 2 << 20  # bytes of a huge page


def in_huge_pages(values: Tensor) -> Tensor:
    """A contiguous copy of them there; a usual one where there are none, or too few values."""
    size = values.numel() * values.element_size()
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return values.contiguous()
    memory = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found = torch.frombuffer(memory, dtype=torch.uint8)
    start = -found.data_ptr() % _HUGE
    with suppress(OSError):  # a system without
        memory.madvise(mmap.MADV_HUGEPAGE, start, size // _HUGE * _HUGE)
    return found[start : start + size].view(values.dtype).view(values.shape).copy_(values)
