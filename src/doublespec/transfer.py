"""What crosses from the host to a device goes there without anybody waiting for it.

A copy from ordinary memory makes the host wait until the device has done all it was told to. From
pinned memory it does not; so a step waits once, where its tokens come down (`sampling.py`).
"""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """`values` of the host on the device."""
    if device.type == "cpu":
        return values
    return _ready(values, device).to(device, non_blocking=True)


def refill(buffer: Tensor, values: Tensor) -> None:
    """Writes `values` of the host into a tensor of the same shape."""
    buffer.copy_(_ready(values, buffer.device), non_blocking=True)


def _ready(values: Tensor, device: torch.device) -> Tensor:
    """In memory that is not given to others before the device has read it."""
    return values.contiguous().pin_memory() if device.type == "cuda" else values
