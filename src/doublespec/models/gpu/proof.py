"""Are products right, and does no row depend on what is computed beside it? A test of this device.

Nothing is believed of a device: `kernels.py` says why the bits should not, and this shows that they
do not, before a model's weights are read. The products' data cancel, so that what is left of a sum
is the order of summation itself (`models/kernels.py`); a decoder of one layer computes a text in
several ways, recorded or not.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from doublespec.errors import reason
from doublespec.models.gpu.decoder import CHUNK, GpuDecoder
from doublespec.models.gpu.products import Product, choose_parts, make_product
from doublespec.models.graphs import Capture
from doublespec.models.quantize import rounded_to_fp8, rounded_to_int8
from doublespec.models.random_weights import RandomWeights
from doublespec.models.weights import Source

_COUNTS = (1, 3, 16, 17, 33, 64, 100, 256)  # of rows
_REFERENCE = 16
_TOLERANCE = 0.01  # of a sum's usual size, in float32
_OUTPUTS = 256
_VOCABULARY = 512
_TEXT = CHUNK + 90  # tokens, so that attention has several sums
_WAYS = ((1,), (1,), (3, 1, 16), (40, 5), (_TEXT,))  # blocks that a text is computed in


def find_fault(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
    capture: Capture | None,
    *,
    exact: bool,
) -> str | None:
    """Why the kernels cannot be used there for such a model, if anything is in the way: they do not
    run or, where a model must be exact, something is wrong or has other bits beside other rows."""
    try:
        if exact:
            return find_difference(source, device, dtype, quantize, capture)
        list(
            _by_blocks(
                _one_layer(source, device, dtype, quantize, capture), _text(), (_TEXT - 1, 1)
            )
        )
    except Exception as error:  # of Triton, of the compiler that it looks for, of the device
        return f"they do not run ({reason(error)})"
    return None


def find_difference(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
    capture: Capture | None,
) -> str | None:
    """What is wrong, or gives other bits beside other rows, if anything does."""
    config = source.config
    assert config is not None  # or there would be no kernels for it
    for outputs, inputs in sorted(set(config.layer_sizes())):
        if not _is_right(inputs, choose_parts(outputs, inputs, quantize), device, dtype, quantize):
            return f"a product of {inputs} inputs is wrong"
        product = _cancelling(outputs, inputs, device, dtype, quantize)
        if not _agrees(product, device, dtype):
            return f"a product of {inputs} inputs has other bits beside other rows"
    if not _agrees_with_itself(_one_layer(source, device, dtype, quantize, capture)):
        return "a forward over the same text has other bits in other blocks"
    return None


def _one_layer(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
    capture: Capture | None,
) -> GpuDecoder:
    """A model of random weights with one layer of those sizes."""
    assert source.config is not None
    small = replace(source.config, num_layers=1, vocab_size=_VOCABULARY, tied=False)
    layer = RandomWeights("random", source.model_type, small)
    return GpuDecoder.load(
        layer, device, dtype, max_length=_TEXT, quantize=quantize, capture=capture
    )


def _text() -> list[int]:
    return [(7 * i * i + 3) % _VOCABULARY for i in range(_TEXT)]


def _is_right(
    inputs: int, parts: int, device: torch.device, dtype: torch.dtype, quantize: str | None
) -> bool:
    """Whether a product's sums are those of its weights, but for rounding: numbers in 8 bits are
    widened by instructions of our own."""
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(_OUTPUTS, inputs, generator=generator).to(device, dtype)
    rows = torch.randn(_REFERENCE, inputs, generator=generator).to(device, dtype)
    weight, scale = _rounded(weight, quantize)
    whole = weight.float() if scale is None else weight.float() * scale.float()[:, None]
    wanted = rows.double() @ whole.double().T
    found = _sums(make_product(weight, scale, None, parts), rows).sum(0)
    return bool(((found - wanted).abs() <= _TOLERANCE * inputs**0.5).all())


def _rounded(weight: Tensor, quantize: str | None) -> tuple[Tensor, Tensor | None]:
    if quantize is None:
        return weight, None
    return (rounded_to_fp8 if quantize == "fp8" else rounded_to_int8)(weight)


def _cancelling(
    outputs: int, inputs: int, device: torch.device, dtype: torch.dtype, quantize: str | None
) -> Product:
    """A product of that many inputs, in as many parts; its sums are zero but for rounding."""
    generator = torch.Generator().manual_seed(inputs)
    half = torch.randn(_OUTPUTS, inputs // 2, generator=generator)
    weight = torch.cat((half, -half), 1)[:, _order(inputs // 2 * 2)].to(device, dtype)
    weight = torch.nn.functional.pad(weight, (0, inputs - weight.shape[1]))
    weight, scale = _rounded(weight, quantize)
    return make_product(weight, scale, None, choose_parts(outputs, inputs, quantize))


def _agrees(product: Product, device: torch.device, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(_REFERENCE, product.inputs // 2, generator=generator)
    rows = torch.cat((half, half), 1)[:, _order(product.inputs // 2 * 2)]
    rows = torch.nn.functional.pad(rows, (0, product.inputs - rows.shape[1])).to(device, dtype)
    wanted = _sums(product, rows)
    is_rounding = bool(wanted.any())
    gated = None
    for count in _COUNTS:
        index = (torch.arange(count, device=device) + 5) % _REFERENCE
        if not torch.equal(_sums(product, rows[index]), wanted[:, index]):
            return False
        found = _gated(product, rows[index])
        gated = _gated(product, rows) if gated is None else gated
        if not torch.equal(found, gated[index]):
            return False
    return is_rounding


def _sums(product: Product, rows: Tensor) -> Tensor:
    shape = product.parts, len(rows), product.outputs
    out = rows.new_empty(shape, dtype=torch.float32)
    product.into(rows, out, len(rows), early=False)
    return out


def _gated(product: Product, rows: Tensor) -> Tensor:
    out = rows.new_empty(len(rows), product.outputs // 2)
    product.gated_into(rows, out, len(rows), early=False)
    return out


def _order(size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))


def _agrees_with_itself(model: GpuDecoder) -> bool:
    text = _text()
    wanted = model.fresh().logits(text, _TEXT, 0)
    return all(
        torch.equal(found, wanted[first : first + len(found)])
        for way in _WAYS
        for first, found in _by_blocks(model.fresh(), text, way)
    )


def _by_blocks(
    model: GpuDecoder, text: list[int], sizes: tuple[int, ...]
) -> Iterator[tuple[int, Tensor]]:
    """Where blocks of these sizes begin, and their logits."""
    first = 0
    for number in range(len(text)):
        stop = min(first + sizes[number % len(sizes)], len(text))
        if first < stop:
            yield first, model.logits(text[:stop], stop - first, 0)
        first = stop
