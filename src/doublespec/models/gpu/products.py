"""The products of a decoder on a GPU: how their weights lie in memory, and how they are divided.

A weight lies in tiles, each in one piece of memory: what a program reads is one stream then, 2 to
6 % faster than rows (docs/log.md, 2026-11-26). Into how many parts a sum is divided follows from
the sizes of a product alone, never from a measurement: it decides the bits.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from doublespec.models.gpu import kernels

FEWEST_ROWS, MOST_ROWS = 16, 128  # that a program computes at a time
OUTPUTS = 128  # weights are padded to multiples of so many outputs,
INPUTS = 128  # and of so many inputs; and come in pairs of that many
_PROGRAMS = 256  # of a product, at least, where its inputs can be divided: GPUs have 100 to 150
_MOST_PARTS = 8  # processors, and each has room for two or three
_TILE = kernels.TILE.value


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a program computes of a product: outputs and inputs at a time, so many of these on their
    way; by how many warps."""

    outputs: int
    inputs: int
    stages: int
    warps: int


# By what was fastest on an H200 (docs/log.md, 2026-11-26): over up to 16 rows, and over more.
_TILES = Tiles(64, 128, 3, 4), Tiles(128, 64, 4, 4)
_PAIRED_TILES = Tiles(64, 128, 6, 4), Tiles(128, 128, 4, 8)
_GATED_TILES = Tiles(64, 128, 3, 4), Tiles(64, 64, 4, 4)
_PAIRED_GATED_TILES = Tiles(64, 128, 4, 4), Tiles(128, 128, 3, 8)


@dataclass(frozen=True, slots=True)
class Product:
    """A weight of so many outputs and inputs, in the precision of the states or in 8 bits with a
    scale for each output; its bias."""

    weight: Tensor  # in tiles (`laid_out`)
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    inputs: int
    parts: int  # into which each sum is divided
    pairs: int = kernels.SINGLE.value  # how its weights lie: FP8 and INT8 are in pairs

    @property
    def is_paired(self) -> bool:
        return self.weight.dtype is torch.int16

    def into(self, states: Tensor, out: Tensor, rows: int, *, early: bool) -> None:
        """Writes the parts of its sums (parts, rows, outputs) over states (rows, inputs) to the
        beginning of `out`."""
        block = row_block(rows)
        tiles = (_PAIRED_TILES if self.is_paired else _TILES)[block > FEWEST_ROWS]
        part = self.inputs // self.parts
        grid = (triton.cdiv(self.outputs, tiles.outputs), self.parts, triton.cdiv(rows, block))
        kernels.product[grid](
            *self._tensors(states, out),
            self.outputs,
            self.inputs,
            self.weight.shape[1],
            part,
            rows,
            rows * self.outputs,
            **self._constants(tiles, part, block, early=early),
        )

    def gated_into(self, states: Tensor, out: Tensor, rows: int, *, early: bool) -> None:
        """Writes silu(gate) x up (rows, outputs / 2), of sums in one part; half of the outputs must
        be a multiple of OUTPUTS."""
        block, outputs = row_block(rows), self.outputs // 2
        tiles = (_PAIRED_GATED_TILES if self.is_paired else _GATED_TILES)[block > FEWEST_ROWS]
        grid = (triton.cdiv(outputs, tiles.outputs), triton.cdiv(rows, block))
        kernels.gated_product[grid](
            *self._tensors(states, out),
            outputs,
            self.inputs,
            self.weight.shape[1],
            rows,
            **self._constants(tiles, self.inputs, block, early=early),
        )

    def _tensors(self, states: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        """What a kernel reads and writes; a scale or a bias that is not there is not read."""
        weight, scale, bias = self.weight, self.scale, self.bias
        scale, bias = weight if scale is None else scale, weight if bias is None else bias
        return states, weight, scale, bias, out

    def _constants(self, tiles: Tiles, part: int, block: int, *, early: bool) -> dict[str, object]:
        """What a kernel is compiled for."""
        return {
            "EVEN": part % tiles.inputs == 0,
            "PAIRED": self.pairs,
            "SCALED": self.scale is not None,
            "BIASED": self.bias is not None,
            "BLOCK_N": tiles.outputs,
            "BLOCK_R": block,
            "BLOCK_K": tiles.inputs,
            "STAGES": tiles.stages,
            "EARLY": early,
            "num_warps": tiles.warps,
            **launch(early),
        }


def make_product(
    weight: Tensor, scale: Tensor | None = None, bias: Tensor | None = None, parts: int = 1
) -> Product:
    """Lays out a weight (outputs, inputs); one in 8 bits in pairs, if its inputs come in these."""
    outputs, inputs = weight.shape
    pairs = kernels.SINGLE.value
    if weight.itemsize == 1 and inputs % INPUTS == 0:
        is_fp8 = weight.dtype is torch.float8_e4m3fn
        pairs = kernels.FP8.value if is_fp8 else kernels.INT8.value
        weight = paired(weight)
    return Product(laid_out(weight), scale, bias, outputs, inputs, parts, pairs)


def laid_out(weight: Tensor) -> Tensor:
    """A weight (outputs, inputs) in tiles of 64 by 64 numbers, row of tiles by row of tiles; padded
    with zeros."""
    outputs, inputs = weight.shape
    padding = -inputs % (INPUTS // (2 if weight.dtype is torch.int16 else 1)), -outputs % OUTPUTS
    if any(padding):
        whole = weight.new_zeros(outputs + padding[1], inputs + padding[0])
        whole[:outputs, :inputs] = weight
        weight = whole
    tiles = weight.view(weight.shape[0] // _TILE, _TILE, weight.shape[1] // _TILE, _TILE)
    return tiles.transpose(1, 2).contiguous().view(weight.shape)


def paired(weight: Tensor) -> Tensor:
    """Numbers in 8 bits (outputs, inputs), two to an element: of each 128 inputs, those of the
    first half in the low bytes and those of the second half in the high ones."""
    outputs, inputs = weight.shape
    halves = weight.view(torch.uint8).view(outputs, inputs // INPUTS, 2, INPUTS // 2)
    return halves.transpose(2, 3).contiguous().view(torch.int16).view(outputs, inputs // 2)


def launch(early: bool) -> dict[str, bool]:
    """What a launch is told where kernels begin before the one before them has ended."""
    return {"launch_pdl": True} if early else {}


def row_block(rows: int) -> int:
    """The rows that a program computes at a time."""
    padded: int = triton.next_power_of_2(rows)
    return min(max(padded, FEWEST_ROWS), MOST_ROWS)


def choose_parts(outputs: int, inputs: int, quantize: str | None = None) -> int:
    """Into how many parts the sums of a product of these sizes are divided."""
    least = 1 if quantize is None else 2  # a program takes longer over numbers in 8 bits
    parts = 1
    while (
        2 * parts <= _MOST_PARTS
        and (parts < least or triton.cdiv(outputs, _TILE) * parts < _PROGRAMS)
        and inputs % (2 * parts * INPUTS) == 0
    ):
        parts *= 2
    return parts
