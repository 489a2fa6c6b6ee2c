"""Attention of rows over what each of them may look at."""

from llvmlite import ir

from doublespec.compiled.code import ADDRESS, INTEGER, LANES, Code, Number, Operand, Variable
from doublespec.compiled.functions import exp
from doublespec.models.native.layout import number_of_pass, of_layer, of_pass
from doublespec.models.native.products import multiply
from doublespec.models.sizes import DecoderConfig

# Queries that read keys and values together: two tiles of a CPU with AVX2, one with AVX-512.
_QUERIES = 12

Seen = tuple[Number, Number, Number]  # slots [0, text) and [start, stop)


def rows_at_a_time(config: DecoderConfig) -> int:
    """Of which the heads of a group attend together."""
    return max(1, _QUERIES * config.num_kv_heads // config.num_heads)


def queries_at_a_time(config: DecoderConfig) -> int:
    return rows_at_a_time(config) * (config.num_heads // config.num_kv_heads)


def write_attend(module: ir.Module, config: DecoderConfig) -> None:
    """The heads that share a head of keys and values (arXiv 2305.13245), of rows [first, last).

    They look at as many slots as the one of them that looks furthest. What a row may not look at
    has the weight 0, which adds nothing to a sum: but for the sign of a 0, which is made +.
    """
    c, dim = config, config.head_dim
    group, width = c.num_heads // c.num_kv_heads, c.query_size + 2 * c.kv_size
    parameters = {
        "kv_head": INTEGER,
        "first": INTEGER,
        "last": INTEGER,
        "scores": ADDRESS,  # (queries, capacity)
        "states": ADDRESS,  # (queries, head_dim)
        "layer": ADDRESS,
        "pass": ADDRESS,
    }
    with Code(module, "attend", parameters) as code:
        first, last = code["first"], code["last"]
        scores, states, own = code["scores"], code["states"], code["kv_head"] * (group * dim)
        capacity = number_of_pass(code, "capacity")
        furthest = Variable(code, code.integer(0))
        with code.loop(first, last) as row:
            source = code.offset(of_pass(code, "qkv"), row * width + own)
            _copy(code, group * dim, source, code.offset(states, (row - first) * (group * dim)))
            end = _end(*_seen(code, row))
            furthest.set((end > furthest.get()).then(end, furthest.get()))
        end = furthest.get()
        panels = (end + (LANES - 1)) // LANES
        slots = code["kv_head"] * capacity * dim
        shared: dict[str, Operand] = {
            "rows": (last - first) * group,
            "bias": of_pass(code, "zeros"),
            "first": 0,
            "is_added": 0,
        }
        with_keys: dict[str, Operand] = {
            "inputs": states,
            "stride": dim,
            "weights": code.offset(of_layer(code, "keys"), slots),
            "step": LANES,
            "panel": LANES * dim,
            "depth": dim,
            "last": panels,
            "outputs": scores,
            "apart": capacity,
        }
        multiply(code, "float32", shared | with_keys)
        with code.loop(first, last) as row, code.loop(0, group) as g:
            place = code.offset(scores, ((row - first) * group + g) * capacity)
            code.call("softmax", place, panels, *_seen(code, row))
        with_values: dict[str, Operand] = {
            "inputs": scores,
            "stride": capacity,
            "weights": code.offset(of_layer(code, "values"), slots),
            "step": dim,
            "panel": LANES,
            "depth": end,
            "last": dim // LANES,
            "outputs": states,
            "apart": dim,
        }
        multiply(code, "float32", shared | with_values)
        with code.loop(first, last) as row:
            mixed = code.offset(of_pass(code, "mixed"), row * c.query_size + own)
            source = code.offset(states, (row - first) * (group * dim))
            with code.loop(0, group * dim, LANES) as i:
                code.store(code.load_lanes(source, i) + 0.0, mixed, i)


def _seen(code: Code, row: Number) -> Seen:
    """What a row may look at."""
    text, start, stop = (
        code.load(of_pass(code, name), row, INTEGER) for name in ("text", "start", "stop")
    )
    return text, start, stop


def _end(text: Number, _: Number, stop: Number) -> Number:
    """The slot behind the last one that is seen."""
    return (text > stop).then(text, stop)


def _copy(code: Code, count: int, source: Number, target: Number) -> None:
    with code.loop(0, count, LANES) as i:
        code.store(code.load_lanes(source, i), target, i)


def write_softmax(module: ir.Module, config: DecoderConfig) -> None:
    """Turns scores into weights: of what is seen, and 0 elsewhere."""
    scale = config.head_dim**-0.5
    parameters = {"scores": ADDRESS, "panels": INTEGER}
    parameters |= {"text": INTEGER, "start": INTEGER, "stop": INTEGER}
    with Code(module, "softmax", parameters) as code:
        scores, panels = code["scores"], code["panels"]
        seen = code["text"], code["start"], code["stop"]
        lowest = code.wide(float("-inf"))
        largest, total = Variable(code, lowest), Variable(code, code.wide(0.0))
        with code.loop(0, panels) as p:
            score = code.load_lanes(scores, p * LANES) * scale
            score = _is_seen(code, p, seen).then(score, lowest)
            largest.set((score > largest.get()).then(score, largest.get()))
        top = code.wide(code.largest(largest.get()))
        with code.loop(0, panels) as p:
            score = code.load_lanes(scores, p * LANES) * scale
            weight = _is_seen(code, p, seen).then(exp(code, score - top), 0.0)
            code.store(weight, scores, p * LANES)
            total.set(total.get() + weight)
        whole = code.wide(code.sum(total.get()))
        with code.loop(0, panels) as p:
            code.store(code.load_lanes(scores, p * LANES) / whole, scores, p * LANES)


def _is_seen(code: Code, panel: Number, seen: Seen) -> Number:
    """Which slots of a panel are."""
    slot = code.indices(panel * LANES)
    text, start, stop = map(code.words, seen)
    return (slot < text) | ((slot >= start) & (slot < stop))
