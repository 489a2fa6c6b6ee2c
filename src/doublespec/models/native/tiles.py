"""Products of rows with panels on the matrix unit of some CPUs (Intel's AMX): several rows take
about as long as one, whose time is that of reading the weights.

Its tiles hold bfloat16, as weights are held anyway. A row of inputs is split into two of them, the
second of which is what the first leaves, so that 16 of its 24 bits count; eight rows so split make
a tile. Each sum is a chain in the order of the inputs for either part, and no row knows of another.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from doublespec.compiled.code import ADDRESS, BYTE, HALF, INTEGER, LANES, Code, Number, Variable
from doublespec.models.native.products import TILED, put
from doublespec.models.sizes import DecoderConfig

DEPTH = 32  # inputs of a tile: products have a multiple of them
_BLOCK = 8  # rows of inputs in a tile
_ROWS = 2 * _BLOCK  # of a tile; and rows of inputs whose sums are in tiles at a time
_BYTES = 64  # of a row of a tile
_INPUTS, _WEIGHTS, _SUMS = (0, 1), (2, 3), (4, 5, 6, 7)  # the numbers of tiles
_SUMS_ROOM = len(_SUMS) * _ROWS * LANES  # numbers
_APART = 32  # numbers between rows of inputs, so that they do not share a place in the cache
_CACHED = 1 << 18  # numbers: half of a core's cache of such a CPU, for inputs that weights serve
# Of a product with inputs that are split already; `scratch` is for sums.
_SPLIT = {"parts": ADDRESS} | {
    name: kind for name, kind in TILED.items() if name not in ("inputs", "stride", "shapes")
}


def scratch_size(config: DecoderConfig) -> int:
    """What a product needs besides: tiles of sums, and its inputs in bfloat16."""
    depth = max(config.hidden_size, config.query_size, config.intermediate_size)
    return _SUMS_ROOM + max(_CACHED, _ROWS * (depth + _APART))


@cache
def tile_shapes() -> npt.NDArray[np.uint8]:
    """(16, 64): how large tiles are where there are so many rows of inputs, as the CPU is told."""
    shapes = np.zeros((_ROWS, 64), dtype=np.uint8)
    shapes[:, 0] = 1  # the palette
    for count, shape in enumerate(shapes, 1):
        blocks = [2 * min(count, _BLOCK), 2 * max(count - _BLOCK, 0)]
        sums = blocks * 2 if blocks[1] else blocks[:1] * 4
        tiles = (*_INPUTS, *_WEIGHTS, *_SUMS)
        for tile, rows in zip(tiles, [*blocks, _ROWS, _ROWS, *sums], strict=True):
            shape[16:32].view(np.uint16)[tile] = _BYTES if rows else 0
            shape[48 + tile] = rows
    return shapes


def write_tiled_product(module: ir.Module) -> None:
    """Of any number of rows. Weights are those of panel p, pair of inputs i and output o: two
    numbers, one of each input. `scratch` has `scratch_size` float32, `shapes` are `tile_shapes`.

    Sixteen rows read all weights, as they come from memory in one stream then. More of them read
    two panels at a time, which serve as many rows as a core's cache holds: else weights would come
    from memory again for each sixteen.
    """
    _declare(module)
    _write_split(module)
    for blocks in (1, 2):
        _write_block(module, blocks)
    with Code(module, "product_tiled", TILED) as code:
        with code.when(code["rows"] <= _ROWS):
            _split(code, code.integer(0), code["rows"])
            _multiply_block(code, code["rows"], {"parts": _parts(code)})
        with code.when(code["rows"] > _ROWS):
            size = _rows_at_a_time(code)
            with code.loop(0, code["rows"], size) as row:
                count = _smaller(code["rows"] - row, size)
                _split(code, row, count)
                _multiply_parts(code, row, count)


def _rows_at_a_time(code: Code) -> Number:
    """As many sixteens as the cache holds, and about as many each time."""
    most = code.integer(_CACHED // _ROWS) // (code["depth"] + _APART)
    most = (most > 0).then(most, 1)
    sixteens = (code["rows"] + (_ROWS - 1)) // _ROWS
    times = (sixteens + most - 1) // most
    return (sixteens + times - 1) // times * _ROWS


def _multiply_parts(code: Code, row: Number, count: Number) -> None:
    """So many rows from one on, whose inputs are split."""
    whole = code.integer(_ROWS)
    _shape(code, code["shapes"], whole)
    with code.loop(code["first"], code["last"], 2) as panel:
        with code.loop(0, count, _ROWS) as start:
            rows = _smaller(count - start, whole)
            changed = {
                "parts": code.offset(_parts(code), start * (code["depth"] + _APART)),
                "outputs": code.offset(code["outputs"], (row + start) * code["apart"]),
                "first": panel,
                "last": _smaller(code["last"], panel + 2),
            }
            with code.when(rows < whole):
                _shape(code, code["shapes"], rows)
            _multiply_block(code, rows, changed)
        with code.when(count % _ROWS > 0):
            _shape(code, code["shapes"], whole)


def _multiply_block(code: Code, rows: Number, changed: dict[str, Number]) -> None:
    """Up to sixteen rows, for which tiles have their shapes."""
    changed = {"rows": rows, **changed}
    arguments = [changed[name] if name in changed else code[name] for name in _SPLIT]
    for blocks, is_fitting in ((1, rows <= _BLOCK), (2, rows > _BLOCK)):
        with code.when(is_fitting):
            code.call(f"product_tiled_{blocks}", *arguments)


def _smaller(one: Number, other: Number) -> Number:
    return (one < other).then(one, other)


def shape_tiles(code: Code, shapes: Number, rows: Number) -> None:
    """For products of so many rows that follow; those of more than sixteen do it themselves."""
    with code.when(rows <= _ROWS):
        _shape(code, shapes, rows)


def _shape(code: Code, shapes: Number, rows: Number) -> None:
    code.call("llvm.x86.ldtilecfg", code.offset(shapes, (rows - 1) * 64, BYTE))


def release_tiles(code: Code) -> None:
    """None are in use any more: a CPU has less to keep where another thread takes over."""
    code.call("llvm.x86.tilerelease")


def _write_block(module: ir.Module, blocks: int) -> None:
    """Of a block of rows, a panel at a time: weights come from memory faster in one stream. Of two
    blocks, two panels, which share what is loaded of the inputs."""
    with Code(module, f"product_tiled_{blocks}", _SPLIT) as code:
        apart = code["depth"] + _APART
        inputs = [code.offset(code["parts"], apart * _ROWS * b, HALF) for b in range(blocks)]
        panel = Variable(code, code["first"])
        for width in range(blocks, 0, -1):
            with code.while_(lambda count=width: panel.get() + count <= code["last"]):  # type: ignore[misc]
                _write_sums(code, inputs, apart, panel.get(), width)
                _put_sums(code, blocks, panel.get(), width)
                panel.set(panel.get() + width)


def _parts(code: Code) -> Number:
    """Where split inputs are: of each row two in bfloat16, each depth + _APART numbers."""
    return code.offset(code["scratch"], _SUMS_ROOM)


def _split(code: Code, row: Number, count: Number) -> None:
    """The inputs of so many rows from one on, block by block."""
    apart = code["depth"] + _APART
    with code.loop(0, count, _BLOCK) as start:
        rows = code.offset(code["inputs"], (row + start) * code["stride"])
        size = _smaller(count - start, code.integer(_BLOCK))
        place = code.offset(_parts(code), start * apart)
        code.call("split", rows, code["stride"], size, code["depth"], apart, place)


def _counts(code: Code, blocks: int) -> list[Number]:
    """The rows of each block."""
    return [code["rows"]] if blocks == 1 else [code.integer(_BLOCK), code["rows"] - _BLOCK]


def _declare(module: ir.Module) -> None:
    void, tile = ir.VoidType(), BYTE
    for name, parameters in (
        ("ldtilecfg", [ADDRESS]),
        ("tilerelease", []),
        ("tilezero", [tile]),
        ("tileloadd64", [tile, ADDRESS, INTEGER]),
        ("tilestored64", [tile, ADDRESS, INTEGER]),
        ("tdpbf16ps", [tile, tile, tile]),
    ):
        ir.Function(module, ir.FunctionType(void, parameters), f"llvm.x86.{name}")


def _write_split(module: ir.Module) -> None:
    """Rows of float32 as rows of the nearest bfloat16, and behind them of the nearest to what these
    leave."""
    sizes = dict.fromkeys(("stride", "rows", "depth", "apart"), INTEGER)
    with Code(module, "split", {"inputs": ADDRESS, **sizes, "outputs": ADDRESS}) as code:
        behind = code["rows"] * code["apart"]
        with code.loop(0, code["rows"]) as row, code.loop(0, code["depth"], LANES) as i:
            number = code.load_lanes(code["inputs"], row * code["stride"] + i)
            near = _rounded(code, number)
            rest = _rounded(code, number - code.from_words(near))
            place = row * code["apart"] + i
            code.store_halves(near, code["outputs"], place)
            code.store_halves(rest, code["outputs"], place + behind)


def _rounded(code: Code, numbers: Number) -> Number:
    """The bits of the nearest in bfloat16, of two the even one."""
    bits = code.as_words(numbers)
    odd = code.shifted_right(bits, 16) & 1
    return (bits + odd + 0x7FFF) & 0xFFFF0000


def _write_sums(code: Code, inputs: list[Number], apart: Number, panel: Number, width: int) -> None:
    """Those of so many panels with each block of rows, in their tiles."""
    for total in _SUMS[: width * len(inputs)]:
        code.call("llvm.x86.tilezero", _tile(code, total))
    with code.loop(0, code["depth"], DEPTH) as i:
        for tile, rows in zip(_INPUTS, inputs, strict=False):
            _load(code, tile, code.offset(rows, i, HALF), apart * 2)
        for t in range(width):
            weights = _WEIGHTS[t % 2]
            place = (panel + t) * code["panel"] + i * LANES
            _load(code, weights, code.offset(code["weights"], place, HALF), _BYTES)
            for block, tile in enumerate(_INPUTS[: len(inputs)]):
                tiles = _SUMS[t * len(inputs) + block], tile, weights
                code.call("llvm.x86.tdpbf16ps", *(_tile(code, number) for number in tiles))


def _put_sums(code: Code, blocks: int, panel: Number, width: int) -> None:
    """Joins both parts, adds biases, and puts sums to their places."""
    for number, tile in enumerate(_SUMS[: width * blocks]):
        place = code.offset(code["scratch"], number * _ROWS * LANES)
        code.call("llvm.x86.tilestored64", _tile(code, tile), place, _BYTES)
    for block, count in enumerate(_counts(code, blocks)):
        with code.loop(0, count) as row:
            for t in range(width):
                place = row * LANES + (t * blocks + block) * _ROWS * LANES
                near = code.load_lanes(code["scratch"], place)
                rest = code.load_lanes(code["scratch"], place + count * LANES)
                column = (panel + t) * LANES
                total = near + rest + code.load_lanes(code["bias"], column)
                place = (row + _BLOCK * block) * code["apart"] + column
                put(code, Variable(code, total), place)


def _load(code: Code, tile: int, place: Number, apart: Number | int) -> None:
    code.call("llvm.x86.tileloadd64", _tile(code, tile), place, apart)


def _tile(code: Code, number: int) -> Number:
    return code.number(ir.Constant(BYTE, number))
