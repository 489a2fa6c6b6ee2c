"""Computations of a decoder on inputs that show how a device's kernels round.

Two orders of summation give the same bfloat16 value in all but 1 of 10,000 cases (measured), so
that equal bits on ordinary inputs prove little, and a wrong answer comes a thousand tokens later.
Here the terms of every sum cancel: what is left is the rounding itself, which differs in nearly
every value when the order does. Weights are noise in the model's own sizes, since what matters is
which kernel a size is given to.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from doublespec.models.layers import DecoderConfig, attention, linear
from doublespec.models.shapes import KEY_STEP, PROBE_INPUTS, Probe

_KEY_LENGTHS = (KEY_STEP, 2 * KEY_STEP, 8 * KEY_STEP, 32 * KEY_STEP)


def probes(
    config: DecoderConfig, device: torch.device, dtype: torch.dtype, max_length: int
) -> Iterator[Probe]:
    """Every product of the decoder, then its attention over short and long texts."""
    noise = _Noise(device, dtype)
    for num_out, num_in in _products(config):
        yield _with_all_threads(_product(noise, num_out, num_in), device)
    for keys in _KEY_LENGTHS:
        if keys <= max(max_length, KEY_STEP):
            yield _with_all_threads(_attention(noise, config, keys), device)


def _with_all_threads(probe: Probe, device: torch.device) -> Probe:
    """The same, or NaN where the bits depend on the number of threads: a target that shares a CPU
    with its draft has one thread less than one that does not."""
    threads = torch.get_num_threads()
    others = sorted({1, max(1, threads - 1)} - {threads})
    if device.type != "cpu" or not others:
        return probe

    def results(ids: Tensor) -> Tensor:
        wanted = probe(ids)
        try:
            for count in others:
                torch.set_num_threads(count)
                if not torch.equal(probe(ids), wanted):
                    return torch.full_like(wanted, float("nan"))
        finally:
            torch.set_num_threads(threads)
        return wanted

    return results


def _products(config: DecoderConfig) -> list[tuple[int, int]]:
    """(outputs, inputs) of the products in a forward pass."""
    inner = config.num_heads * config.head_dim
    return [
        (inner + 2 * config.num_kv_heads * config.head_dim, config.hidden_size),
        (config.hidden_size, inner),
        (2 * config.intermediate_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
        (config.vocab_size, config.hidden_size),
    ]


class _Noise:
    """Random numbers on a device, the same for every model and run."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._generator = torch.Generator(device).manual_seed(0)
        self._dtype = dtype

    def normal(self, *size: int) -> Tensor:
        device, dtype = self._generator.device, self._dtype
        return torch.randn(size, generator=self._generator, device=device, dtype=dtype)

    def order(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self._generator, device=self._generator.device)


def _product(noise: _Noise, num_out: int, num_in: int) -> Probe:
    """Inputs come in equal pairs, weights in opposite ones: every exact result is 0."""
    half, order = noise.normal(num_out, num_in // 2), noise.order(num_in // 2 * 2)
    product = linear(torch.cat((half, -half), dim=1)[:, order])
    half = noise.normal(PROBE_INPUTS, num_in // 2)
    inputs = torch.cat((half, half), dim=1)[:, order]
    return lambda ids: product(inputs[ids])


def _attention(noise: _Noise, config: DecoderConfig, keys: int) -> Probe:
    """Each key comes twice, with opposite values: every exact result is 0. The scores are small
    differences of large terms, so that they show their rounding too."""
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    order = noise.order(keys)
    half = _cancelling(noise.normal(kv_heads, keys // 2, dim), opposite=True)
    all_keys = torch.cat((half, half), dim=1)[None, :, order]
    half = noise.normal(kv_heads, keys // 2, dim)
    values = torch.cat((half, -half), dim=1)[None, :, order]
    query = _cancelling(noise.normal(PROBE_INPUTS, heads, dim), opposite=False)
    mask = torch.zeros((1, keys), dtype=query.dtype, device=query.device)

    def attend(ids: Tensor) -> Tensor:
        rows = len(ids) * heads // kv_heads
        mixed = attention(query[ids].transpose(0, 1), all_keys, values, mask.repeat(rows, 1))
        return mixed.transpose(0, 1)

    return attend


def _cancelling(x: Tensor, *, opposite: bool) -> Tensor:
    """`x` with three quarters of its last dimension in pairs of large numbers, that cancel in a
    product of one tensor with equal pairs and one with opposite ones."""
    size = 3 * x.shape[-1] // 8
    x[..., :size] *= 32
    x[..., size : 2 * size] = -x[..., :size] if opposite else x[..., :size]
    return x
