"""A decoder's forward as kernels in which no row knows of another.

Every sum is a chain in the order of its terms, or LANES chains joined in their order, whatever is
computed beside it: the bits of a row depend on its own text alone, however many rows a block has,
however many keys a cache, and however many threads there are. So nothing has to be padded, and
nothing found out by tests.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from doublespec.compiled.clock import declare_clock, now
from doublespec.compiled.code import ADDRESS, INTEGER, LANES, WORD, Code, Number, Operand, Variable
from doublespec.models.native.attention import (
    queries_at_a_time,
    rows_at_a_time,
    write_attend,
    write_softmax,
)
from doublespec.models.native.chain import goes_on, write_pick, write_place
from doublespec.models.native.layout import (
    CLAIMED,
    CLAIMS_APART,
    LAYER,
    number_of_pass,
    of_layer,
    of_pass,
    set_of_pass,
)
from doublespec.models.native.products import Tiles, multiply, parameters_of, write_product
from doublespec.models.native.rows import write_embed, write_norm, write_swiglu, write_turn
from doublespec.models.native.tiles import (
    release_tiles,
    scratch_size,
    shape_tiles,
    write_tiled_product,
)
from doublespec.models.sizes import DecoderConfig
from doublespec.noise import write_perturb_row

_SHARED = {"thread": INTEGER, "threads": INTEGER}  # which one this is, and of how many
_PIECES = 8  # of a thread's share: when it is done with them, it does those of others
_LEAST_PANELS = 4  # of a piece: as many as are computed beside each other


@dataclass(frozen=True, slots=True)
class Storage:
    """How weights are held: in float32, in bfloat16 or, for a CPU's matrix unit, bfloat16 `tiled`;
    those of layers also in int8."""

    tables: str  # embeddings and vocabulary
    layers: str


def write_model(config: DecoderConfig, storage: Storage, tiles: Tiles) -> ir.Module:
    """The kernels of a decoder of these sizes. Public are `forward` and `chain`, and
    `multiply` for tests."""
    module = ir.Module("doublespec")
    _declare_openmp(module)
    declare_clock(module)
    for kind in sorted({storage.tables, storage.layers, "float32"}):  # the cache is float32
        if kind == "tiled":
            write_tiled_product(module)
        else:
            write_product(module, kind, tiles)
    write_norm(module, config)
    write_turn(module, config)
    write_softmax(module, config)
    write_attend(module, config)
    write_swiglu(module, config)
    write_embed(module, config, storage.tables)
    _write_begin(module)
    _write_watch(module)
    _write_layer(module, config, storage.layers)
    _write_head(module, config, storage.tables)
    _write_forward(module, is_tiled="tiled" in (storage.tables, storage.layers))
    write_perturb_row(module)
    write_pick(module, -(-config.vocab_size // LANES) * LANES)
    write_place(module)
    _write_chain(module)
    _write_multiply(module, storage.layers)
    return module


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Rows of float32."""

    start: Number
    width: int


def _write_layer(module: ir.Module, config: DecoderConfig, storage: str) -> None:
    """One layer, by each of the threads."""
    c, size, middle = config, config.hidden_size, config.intermediate_size
    with Code(module, "layer", {"layer": ADDRESS, "pass": ADDRESS, **_SHARED}) as code:
        hidden, normed = (_Buffer(of_pass(code, name), size) for name in ("hidden", "normed"))
        qkv = _Buffer(of_pass(code, "qkv"), c.query_size + 2 * c.kv_size)
        mixed = _Buffer(of_pass(code, "mixed"), c.query_size)
        gated = _Buffer(of_pass(code, "gated"), 2 * middle)

        _open(code, "qkv", "attention", "output")
        _norm_rows(code, hidden, of_layer(code, "attention_norm"), normed)
        with _panels(code, storage, "qkv", qkv.width) as panels:
            _multiply_rows(code, config, storage, "qkv", size, normed, qkv, panels)
        _meet(code)
        _turn_rows(code, config)
        _attend_rows(code, config)
        with _panels(code, storage, "output", size) as panels:
            _multiply_rows(
                code, config, storage, "output", mixed.width, mixed, hidden, panels, is_added=1
            )
        _meet(code)

        _open(code, "mlp", "down")
        _norm_rows(code, hidden, of_layer(code, "mlp_norm"), normed)
        with _panels(code, storage, "mlp", middle) as (first, last):
            for half in (0, middle // LANES):  # the gate's columns, and the same of up
                panels = first + half, last + half
                _multiply_rows(code, config, storage, "gate_up", size, normed, gated, panels)
            with code.loop(0, number_of_pass(code, "rows")) as row:
                own = code.offset(gated.start, row * gated.width)
                code.call("swiglu", own, first * LANES, last * LANES)
        _meet(code)
        with _panels(code, storage, "down", size) as panels:
            _multiply_rows(code, config, storage, "down", middle, gated, hidden, panels, is_added=1)
        with code.when(code["thread"].equals(0)):
            code.call("watch", code["pass"])
        _meet(code)  # and all know whether to stop before it can be told anew


def _norm_rows(code: Code, inputs: _Buffer, weight: Number, outputs: _Buffer) -> None:
    with code.loop(*_share(code, number_of_pass(code, "rows"))) as row:
        place = row * inputs.width
        sources = code.offset(inputs.start, place), weight, code.offset(outputs.start, place)
        code.call("norm", *sources)
    _meet(code)


def _multiply_rows(
    code: Code,
    config: DecoderConfig,
    storage: str,
    name: str,
    depth: int,
    inputs: _Buffer,
    outputs: _Buffer,
    panels: tuple[Number, Number],
    *,
    is_added: int = 0,
) -> None:
    """The first `depth` columns with those panels of a product of the layer."""
    arguments: dict[str, Operand] = {
        "inputs": inputs.start,
        "stride": inputs.width,
        "rows": number_of_pass(code, "rows"),
        "weights": of_layer(code, name),
        "step": LANES,
        "panel": LANES * depth,
        "depth": depth,
        "bias": of_layer(code, f"{name}_bias"),
        "scale": of_layer(code, f"{name}_scale"),
        "first": panels[0],
        "last": panels[1],
        "outputs": outputs.start,
        "apart": outputs.width,
        "is_added": is_added,
        **_of_tiles(code, config),
    }
    multiply(code, storage, arguments)


def _of_tiles(code: Code, config: DecoderConfig) -> dict[str, Operand]:
    """What a thread's products on the matrix unit need besides."""
    own = code["thread"] * scratch_size(config)
    return {
        "scratch": code.offset(of_pass(code, "scratch"), own),
        "shapes": of_pass(code, "shapes"),
    }


def _turn_rows(code: Code, config: DecoderConfig) -> None:
    heads = config.num_heads + 2 * config.num_kv_heads
    with code.loop(*_share(code, number_of_pass(code, "rows") * heads)) as i:
        code.call("turn", i % heads, i // heads, code["layer"], code["pass"])
    _meet(code)


def _attend_rows(code: Code, config: DecoderConfig) -> None:
    """Some rows of one head at a time."""
    heads, thread, rows = config.num_kv_heads, code["thread"], number_of_pass(code, "rows")
    queries = queries_at_a_time(config)
    room = number_of_pass(code, "capacity") * queries
    scores = code.offset(of_pass(code, "scores"), room * thread)
    states = code.offset(of_pass(code, "states"), thread * (queries * config.head_dim))
    parts = (rows + (rows_at_a_time(config) - 1)) // rows_at_a_time(config)
    with _claims(code, "attention", parts * heads, 1) as piece, code.loop(*piece) as i:
        part = i // heads
        bounds = rows * part // parts, rows * (part + 1) // parts
        code.call("attend", i % heads, *bounds, scores, states, code["layer"], code["pass"])
    _meet(code)


def _write_forward(module: ir.Module, *, is_tiled: bool) -> None:
    """A pass, or a part of one."""
    with _threaded(module, "forward", {"pass": ADDRESS}) as code:
        with code.when(code["thread"].equals(0)):
            code.call("begin", code["pass"])
        with code.when(code.is_set(of_pass(code, "table"))):
            with code.loop(*_share(code, number_of_pass(code, "rows"))) as row:
                code.call("embed", row, code["pass"])
            _meet(code)
        if is_tiled:
            shape_tiles(code, of_pass(code, "shapes"), number_of_pass(code, "rows"))
        done, is_over = Variable(code, code.integer(0)), Variable(code, code.integer(0))
        count = number_of_pass(code, "num_layers")
        with code.while_(lambda: (done.get() < count) & is_over.get().equals(0)):
            layer = code.offset(of_pass(code, "layers"), done.get() * len(LAYER), INTEGER)
            code.call("layer", layer, code["pass"], code["thread"], code["threads"])
            done.set(done.get() + 1)
            is_over.set(number_of_pass(code, "is_stopped"))
        is_whole = done.get().equals(count)
        with code.when(code["thread"].equals(0)):
            set_of_pass(code, "done", done.get())
        with code.when(is_whole & (number_of_pass(code, "num_chosen") > 0)):
            if is_tiled:
                shape_tiles(code, of_pass(code, "shapes"), number_of_pass(code, "num_chosen"))
            code.call("head", code["pass"], code["thread"], code["threads"])
        if is_tiled:
            release_tiles(code)


def _write_begin(module: ir.Module) -> None:
    """A pass begins to be watched."""
    with Code(module, "begin", {"pass": ADDRESS}) as code:
        for name in ("begun", "checked"):
            set_of_pass(code, name, now(code))
        set_of_pass(code, "is_stopped", code.integer(0))


def _write_watch(module: ir.Module) -> None:
    """A layer is nearly done: whether the pass had better stop after it."""
    with Code(module, "watch", {"pass": ADDRESS}) as code:
        time = now(code)
        slow = time - number_of_pass(code, "checked")
        set_of_pass(code, "checked", time)
        set_of_pass(code, "slow", slow)
        is_late = _is_beyond(slow, number_of_pass(code, "late"))
        is_long = _is_beyond(time - number_of_pass(code, "begun"), number_of_pass(code, "longest"))
        set_of_pass(code, "is_stopped", (is_late | is_long).then(code.integer(1), 0))


def _is_beyond(time: Number, limit: Number) -> Number:
    return (limit > 0) & (time > limit)


def _write_chain(module: ir.Module) -> None:
    """Passes over one row each, the first of which is there, until the chain is over, or one of
    them is stopped."""
    fields = {"pass": ADDRESS, "chain": ADDRESS}
    with _threaded(module, "chain", fields) as code, code.while_(lambda: goes_on(code)):
        with code.when(code["thread"].equals(0)):
            code.call("place", code["pass"], code["chain"])
        _meet(code)
        code.call("forward_part", code["pass"], code["thread"], code["threads"])
        _meet(code)
        with code.when(code["thread"].equals(0)):
            code.call("pick", code["pass"], code["chain"])
        _meet(code)


def _write_head(module: ir.Module, config: DecoderConfig, storage: str) -> None:
    """The logits of some rows, in whole panels."""
    size, panels = config.hidden_size, -(-config.vocab_size // LANES)
    with Code(module, "head", {"pass": ADDRESS, **_SHARED}) as code:
        count, normed = number_of_pass(code, "num_chosen"), of_pass(code, "normed")
        _open(code, "head")
        with code.loop(*_share(code, count)) as i:
            row = code.load(of_pass(code, "chosen"), i, INTEGER)
            inputs = code.offset(of_pass(code, "hidden"), row * size)
            code.call("norm", inputs, of_pass(code, "norm"), code.offset(normed, i * size))
        _meet(code)
        arguments: dict[str, Operand] = {
            "inputs": normed,
            "stride": size,
            "rows": count,
            "weights": of_pass(code, "vocabulary"),
            "step": LANES,
            "panel": LANES * size,
            "depth": size,
            "bias": of_pass(code, "vocabulary_bias"),
            "outputs": of_pass(code, "logits"),
            "apart": panels * LANES,
            "is_added": 0,
            **_of_tiles(code, config),
        }
        with _panels(code, storage, "head", panels * LANES) as (first, last):
            multiply(code, storage, {**arguments, "first": first, "last": last})


def _write_multiply(module: ir.Module, storage: str) -> None:
    """A product by itself, of panels [0, last)."""
    parameters = parameters_of(storage)
    with _threaded(module, "multiply", parameters) as code:
        first, last = _share(code, code["last"])
        whole = {name: code[name] for name in parameters}
        if storage == "tiled":
            shape_tiles(code, code["shapes"], code["rows"])
        multiply(code, storage, {**whole, "first": first, "last": last})


# -- threads ---------------------------------------------------------------------------------------


def _share(code: Code, count: Operand) -> tuple[Number, Number]:
    """This thread's part [first, last) of what is divided among all."""
    total, thread = code.integer(0).like(count), code["thread"]
    return total * thread // code["threads"], total * (thread + 1) // code["threads"]


def _open(code: Code, *names: str) -> None:
    """Work that follows behind the next meeting, and that all have done before: nothing of it is
    begun yet."""
    for name in names:
        code.store(code.integer(0), of_pass(code, "claims"), _own_claim(code, name, code["thread"]))


def _own_claim(code: Code, name: str, thread: Number) -> Number:
    return (code["threads"] * CLAIMED.index(name) + thread) * CLAIMS_APART


@contextmanager
def _claims(code: Code, name: str, count: Operand, least: int) -> Iterator[tuple[Number, Number]]:
    """Pieces [first, last) of what is divided among all, of `least` or more: this thread's own
    share, and then what others have not come to yet. Cores are not equally fast, and what else runs
    takes them away: so none has to wait for long."""
    total, threads = code.integer(0).like(count), code["threads"]
    claims, helped = of_pass(code, "claims"), Variable(code, code.integer(0))
    with code.while_(lambda: helped.get() < threads):
        owner = (code["thread"] + helped.get()) % threads
        start, stop = total * owner // threads, total * (owner + 1) // threads
        size = (stop - start + (_PIECES * least - 1)) // (_PIECES * least) * least
        size = threads.equals(1).then(stop - start + 1, size)
        claim = _own_claim(code, name, owner)
        first = Variable(code, code.claimed(claims, claim))
        with code.when(start + first.get() < stop):
            first.set(code.claim(claims, claim, size))
        with code.while_(lambda: start + first.get() < stop):
            end = start + first.get() + size
            yield start + first.get(), (end < stop).then(end, stop)
            first.set(code.claim(claims, claim, size))
        helped.set(helped.get() + 1)


@contextmanager
def _panels(code: Code, storage: str, name: str, width: int) -> Iterator[tuple[Number, Number]]:
    """Pieces of a product with so many columns. On a matrix unit each thread has one: it lays out
    the inputs first."""
    if storage == "tiled":
        yield _share(code, width // LANES)
    else:
        with _claims(code, name, width // LANES, _LEAST_PANELS) as piece:
            yield piece


def _meet(code: Code) -> None:
    """Waits for the other threads."""
    with code.when(code["threads"] > 1):
        code.call("GOMP_barrier")


def _declare_openmp(module: ir.Module) -> None:
    """Of GCC's OpenMP, whose threads PyTorch's kernels use, too."""
    void = ir.VoidType()
    for name, result, parameters in (
        ("GOMP_parallel", void, [ADDRESS, ADDRESS, WORD, WORD]),
        ("GOMP_barrier", void, []),
        ("omp_get_thread_num", WORD, []),
        ("omp_get_num_threads", WORD, []),
    ):
        ir.Function(module, ir.FunctionType(result, parameters), name)


@contextmanager
def _threaded(module: ir.Module, name: str, fields: Mapping[str, Any]) -> Iterator[Code]:
    """A public function of these fields and the number of threads. What is written inside is done
    by each of them."""
    with Code(module, f"{name}_part", {**fields, **_SHARED}) as code:
        yield code
    with Code(module, f"{name}_work", {"task": ADDRESS}) as code:
        values = [code.load(code["task"], i, kind) for i, kind in enumerate(fields.values())]
        team = [code.call(f"omp_get_{what}") for what in ("thread_num", "num_threads")]
        code.call(f"{name}_part", *values, *map(code.widened, team))
    with Code(module, name, {**fields, "threads": INTEGER}, inner=False) as code:
        threads = code["threads"]
        with code.when(threads.equals(1)):
            code.call(f"{name}_part", *(code[field] for field in fields), 0, 1)
        with code.when(threads > 1):
            task = code.room(len(fields))
            for i, field in enumerate(fields):
                code.store(code[field], task, i)
            work = code.function(f"{name}_work")
            code.call("GOMP_parallel", work, task, code.word(threads), code.word(0))
