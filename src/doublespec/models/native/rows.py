"""What a row goes through by itself: norms, the gated activation, rotary embeddings."""

from llvmlite import ir

from doublespec.compiled.code import ADDRESS, INTEGER, LANES, Code, Number, Variable
from doublespec.compiled.functions import exp
from doublespec.models.native.layout import number_of_pass, of_layer, of_pass
from doublespec.models.sizes import DecoderConfig


def write_norm(module: ir.Module, config: DecoderConfig) -> None:
    """Root mean square norm (arXiv 1910.07467, eq. 4)."""
    with Code(module, "norm", {"inputs": ADDRESS, "weight": ADDRESS, "outputs": ADDRESS}) as code:
        places = code["inputs"], code["weight"], code["outputs"]
        _norm(code, config.hidden_size, config.norm_eps, *places)


def _norm(
    code: Code, size: int, eps: float, inputs: Number, weight: Number, outputs: Number
) -> None:
    squares = Variable(code, code.wide(0.0))
    with code.loop(0, size, LANES) as i:
        x = code.load_lanes(inputs, i)
        squares.set(code.fma(x, x, squares.get()))
    root = code.sqrt(code.sum(squares.get()) / float(size) + eps)
    scale = code.wide(root.like(1.0) / root)
    with code.loop(0, size, LANES) as i:
        x = code.load_lanes(inputs, i) * scale
        code.store(x * code.load_lanes(weight, i), outputs, i)


def write_swiglu(module: ir.Module, config: DecoderConfig) -> None:
    """silu(gate) x up in place of the gate (arXiv 2002.05202, eq. 5), of columns [first, last)."""
    with Code(module, "swiglu", {"gated": ADDRESS, "first": INTEGER, "last": INTEGER}) as code:
        gated, size = code["gated"], config.intermediate_size
        with code.loop(code["first"], code["last"], LANES) as i:
            gate, up = code.load_lanes(gated, i), code.load_lanes(gated, i + size)
            below = exp(code, code.wide(0.0) - gate) + 1.0
            code.store(gate / below * up, gated, i)


def write_turn(module: ir.Module, config: DecoderConfig) -> None:
    """One head of one row: a query or a key is normed and turned in place (arXiv 2104.09864, eq.
    34); keys and values go to the cache."""
    c, dim = config, config.head_dim
    parameters = {"head": INTEGER, "row": INTEGER, "layer": ADDRESS, "pass": ADDRESS}
    with Code(module, "turn", parameters) as code:
        head, row = code["head"], code["row"]
        width = c.query_size + 2 * c.kv_size
        states = code.offset(of_pass(code, "qkv"), row * width + head * dim)
        is_query, is_value = head < c.num_heads, head >= c.num_heads + c.num_kv_heads
        is_key = (head >= c.num_heads) & (head < c.num_heads + c.num_kv_heads)
        for name, has_own in (("query_norm", is_query), ("key_norm", is_key)):
            weight = of_layer(code, name)
            with code.when(has_own & code.is_set(weight)):
                _norm(code, dim, c.norm_eps, states, weight, states)
        with code.when(is_query | is_key):
            place = code.load(of_pass(code, "positions"), row, INTEGER) * dim
            tables = (code.offset(of_pass(code, name), place) for name in ("cos", "sin"))
            _turn(code, dim, states, *tables)
        slot = code.load(of_pass(code, "slots"), row, INTEGER)
        room = number_of_pass(code, "capacity") * dim  # of a head
        with code.when(is_key):
            panel = (head - c.num_heads) * room + slot // LANES * (LANES * dim)
            place = panel + slot % LANES
            _copy(code, dim, states, code.offset(of_layer(code, "keys"), place), LANES)
        with code.when(is_value):
            place = (head - (c.num_heads + c.num_kv_heads)) * room + slot * dim
            _copy(code, dim, states, code.offset(of_layer(code, "values"), place), 1)


def _turn(code: Code, dim: int, states: Number, cos: Number, sin: Number) -> None:
    """Each number of the first half with its partner in the second."""
    half = dim // 2
    whole = half // LANES * LANES
    for start, stop, step in ((0, whole, LANES), (whole, half, 1)):
        load = code.load_lanes if step == LANES else code.load
        with code.loop(start, stop, step) as i:
            j = i + half
            low, high = load(states, i), load(states, j)
            code.store(code.fma(high, load(sin, i), low * load(cos, i)), states, i)
            code.store(code.fma(low, load(sin, j), high * load(cos, j)), states, j)


def _copy(code: Code, count: int, source: Number, target: Number, step: int) -> None:
    """Numbers to places that are `step` apart."""
    with code.loop(0, count) as i:
        code.store(code.load(source, i), target, i * step)


def write_embed(module: ir.Module, config: DecoderConfig, storage: str) -> None:
    """The embedding of a row's token."""
    size = config.hidden_size
    with Code(module, "embed", {"row": INTEGER, "pass": ADDRESS}) as code:
        token = code.load(of_pass(code, "ids"), code["row"], INTEGER)
        is_panels = number_of_pass(code, "is_panels").equals(1)
        lane = token % LANES
        if storage == "bfloat16":
            lane = lane % (LANES // 2) * 2 + lane // (LANES // 2)
        elif storage == "tiled":
            lane = lane * 2
        in_panel = token // LANES * (LANES * size) + lane
        first = is_panels.then(in_panel, token * size)
        table = of_pass(code, "table")
        outputs = code.offset(of_pass(code, "hidden"), code["row"] * size)
        with code.loop(0, size) as i:
            place = i // 2 * (2 * LANES) + i % 2 if storage == "tiled" else i * LANES
            place = first + is_panels.then(place, i)
            code.store(code.load_one(table, place, storage), outputs, i)
