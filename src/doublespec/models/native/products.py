"""Products of rows with panels: with weights, with keys and with values."""

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from doublespec.compiled.code import (
    ADDRESS,
    INTEGER,
    LANES,
    Code,
    Number,
    Operand,
    Variable,
)

PRODUCT = {
    "inputs": ADDRESS,  # rows of float32, `stride` apart
    "stride": INTEGER,
    "rows": INTEGER,
    "weights": ADDRESS,  # of panel p and input i: LANES numbers at p x panel + i x step
    "step": INTEGER,
    "panel": INTEGER,
    "depth": INTEGER,  # the number of inputs
    "bias": ADDRESS,  # of panel p: LANES float32 at p x LANES
    "scale": ADDRESS,  # as the bias, on sums with weights in int8
    "first": INTEGER,  # panels [first, last)
    "last": INTEGER,
    "outputs": ADDRESS,  # rows of float32, `apart` apart
    "apart": INTEGER,
    "is_added": INTEGER,  # 1: to what is there
}
TILED = {**PRODUCT, "scratch": ADDRESS, "shapes": ADDRESS}  # for weights in tiles (`tiles.py`)
_MOST_ROWS = 12
_AHEAD = 6 << 10  # bytes before they are used, weights are fetched: a panel or less (docs/log.md)
_TILE = {name: kind for name, kind in PRODUCT.items() if name not in ("rows", "last")}


@dataclass(frozen=True, slots=True)
class Tiles:
    """How many rows, and how many panels beside each other, one pass over weights computes: as many
    sums as a CPU has registers for, beside the weights that are used more than once and an input.
    (Where these do not fit, a product takes twice as long.)"""

    registers: int  # of LANES float32

    @property
    def most_rows(self) -> int:
        return max(rows for rows in range(1, _MOST_ROWS + 1) if self.widths(rows))

    def widths(self, rows: int) -> list[int]:
        """The numbers of panels, the largest first."""
        return [width for width in (4, 2, 1) if self._fits(rows, width)]

    def _fits(self, rows: int, width: int) -> bool:
        weights = width if rows > 1 else 1
        return rows * width + weights < self.registers


def write_product(module: ir.Module, storage: str, tiles: Tiles) -> None:
    """That of any number of rows with weights held in `storage`: each panel is read from memory
    once, and serves all rows."""
    for rows in range(1, tiles.most_rows + 1):
        for panels in tiles.widths(rows):
            _write_tile(module, storage, rows, panels)
    with Code(module, f"product_{storage}", PRODUCT) as code:
        blocks = (code["rows"] + (tiles.most_rows - 1)) // tiles.most_rows
        size = (code["rows"] + blocks - 1) // blocks
        panel, width = (
            Variable(code, code["first"]),
            Variable(code, _most_panels(code, size, tiles)),
        )
        with code.while_(lambda: panel.get() < code["last"]):
            for smaller in (2, 1):  # towards the end fewer panels are left
                is_over = code["last"] < panel.get() + width.get()
                is_less = width.get() > smaller
                width.set((is_over & is_less).then(code.integer(smaller), width.get()))
            with code.loop(0, code["rows"], size) as row:
                left = code["rows"] - row
                count = (left < size).then(left, size)
                _call_tile(code, storage, tiles, (count, width.get()), (row, panel.get()))
            panel.set(panel.get() + width.get())


def parameters_of(storage: str) -> dict[str, Any]:
    """Those of a product with weights held so."""
    return TILED if storage == "tiled" else PRODUCT


def multiply(code: Code, storage: str, arguments: dict[str, Operand]) -> None:
    """Calls a product; it has no scale unless one is given."""
    whole = {"scale": code.null(), **arguments}
    code.call(f"product_{storage}", *(whole[name] for name in parameters_of(storage)))


def _write_tile(module: ir.Module, storage: str, rows: int, width: int) -> None:
    """The product of so many rows with so many panels, the first of which is `first`. Each sum is a
    chain in the order of the inputs, and begins with the bias; one of weights in int8 begins with
    0, and scale and bias come at its end. Where weights serve several rows they are asked for
    beforehand, so that they come from memory while others are used; for a single row there is
    nothing else to do but to wait for them."""
    with Code(module, _tile_name(storage, rows, width), _TILE) as code:
        panels = [code["first"] + p for p in range(width)]
        starts = [panel * code["panel"] for panel in panels]
        inputs = [code.offset(code["inputs"], code["stride"] * r) for r in range(rows)]
        bias = [code.load_lanes(code["bias"], panel * LANES) for panel in panels]
        begins = [code.wide(0.0)] * width if storage == "int8" else bias
        sums = [[Variable(code, begin) for begin in begins] for _ in range(rows)]
        with code.loop(0, code["depth"]) as i:
            place = i * code["step"]
            places = [start + place for start in starts]
            weights = [code.load_lanes(code["weights"], at, storage) for at in places]
            if rows > 1:
                for at in places:
                    code.prefetch(code["weights"], at, storage, _AHEAD)
            for r in range(rows):
                value = code.wide(code.load(inputs[r], i))
                for total, weight in zip(sums[r], weights, strict=True):
                    total.set(code.fma(value, weight, total.get()))
        if storage == "int8":
            scales = [code.load_lanes(code["scale"], panel * LANES) for panel in panels]
            for row in sums:
                for total, scale, add in zip(row, scales, bias, strict=True):
                    total.set(code.fma(total.get(), scale, add))
        for r in range(rows):
            for total, panel in zip(sums[r], panels, strict=True):
                put(code, total, code["apart"] * r + panel * LANES)


def put(code: Code, total: Variable, place: Number) -> None:
    with code.when(code["is_added"].equals(1)):
        total.set(total.get() + code.load_lanes(code["outputs"], place))
    code.store(total.get(), code["outputs"], place)


def _tile_name(storage: str, rows: int, width: int) -> str:
    return f"tile_{storage}_{rows}_{width}"


def _most_panels(code: Code, rows: Number, tiles: Tiles) -> Number:
    """As many as a tile of so many rows may have."""
    width = code.integer(1)
    for count in range(tiles.most_rows, 0, -1):
        width = (rows <= count).then(code.integer(tiles.widths(count)[0]), width)
    return width


def _call_tile(
    code: Code,
    storage: str,
    tiles: Tiles,
    size: tuple[Number, Number],
    place: tuple[Number, Number],
) -> None:
    """The tile with that many rows and panels, from that row and panel on."""
    (rows, width), (row, panel) = size, place
    changed = {
        "inputs": code.offset(code["inputs"], row * code["stride"]),
        "outputs": code.offset(code["outputs"], row * code["apart"]),
        "first": panel,
    }
    arguments = [changed[name] if name in changed else code[name] for name in _TILE]
    for count in range(1, tiles.most_rows + 1):
        with code.when(rows.equals(count)):
            for panels in tiles.widths(count):
                with code.when(width.equals(panels)):
                    code.call(_tile_name(storage, count, panels), *arguments)
