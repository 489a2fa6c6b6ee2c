"""Memory for weights in huge pages, where the system has them.

A forward reads all weights once, far more than the processor knows the addresses of: with pages of
two megabytes it looks up a five-hundredth of them (docs/log.md has what that gains). Weights that
would not fill a page share one with others.
"""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

from doublespec.mutex import Mutex

_HUGE = 2 << 20  # bytes of a huge page
_SHARED = 16 << 20  # bytes that are asked for at a time where several share them
_APART = 64  # bytes: each begins where a line of the cache does


def in_huge_pages(values: Tensor) -> Tensor:
    """A contiguous copy of them there; a usual one where the system has none."""
    size = values.numel() * values.element_size()
    if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return values.contiguous()
    place = _map(size) if size >= _HUGE else _shared.room_for(size)
    return place.view(values.dtype).view(values.shape).copy_(values)


def _map(size: int) -> Tensor:
    """So many new bytes (size), from the beginning of a huge page on."""
    memory = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found = torch.frombuffer(memory, dtype=torch.uint8)
    start = -found.data_ptr() % _HUGE
    with suppress(OSError):  # a system without
        memory.madvise(mmap.MADV_HUGEPAGE, start, size // _HUGE * _HUGE)
    return found[start : start + size]


class _Shared:
    """Pages that several tensors share. They are given back when none of these is left."""

    def __init__(self) -> None:
        self._mutex = Mutex()  # which a process that is forked meanwhile finds free
        self._free = torch.empty(0, dtype=torch.uint8)

    def room_for(self, size: int) -> Tensor:
        """So many bytes (size)."""
        taken = -(-size // _APART) * _APART
        with self._mutex.lock:
            if len(self._free) < taken:
                self._free = _map(_SHARED)
            room, self._free = self._free[:size], self._free[taken:]
        return room


_shared = _Shared()
