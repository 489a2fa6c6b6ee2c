"""Attention of one row over what it may look at."""

from llvmlite import ir

from doublespec.models.native.code import ADDRESS, INTEGER, LANES, Code, Number, Operand, Variable
from doublespec.models.native.layout import number_of_pass, of_layer, of_pass
from doublespec.models.native.products import multiply
from doublespec.models.native.rows import exp
from doublespec.models.sizes import DecoderConfig

Seen = tuple[Number, Number, Number]  # slots [0, text) and [start, stop)


def write_attend(module: ir.Module, config: DecoderConfig) -> None:
    """The heads that share a head of keys and values (arXiv 2305.13245)."""
    c, dim = config, config.head_dim
    group, width = c.num_heads // c.num_kv_heads, c.query_size + 2 * c.kv_size
    parameters = {
        "kv_head": INTEGER,
        "row": INTEGER,
        "scores": ADDRESS,  # (group, capacity)
        "layer": ADDRESS,
        "pass": ADDRESS,
    }
    with Code(module, "attend", parameters) as code:
        head, row, scores = code["kv_head"], code["row"], code["scores"]
        text, start, stop = (
            code.load(of_pass(code, name), row, INTEGER) for name in ("text", "start", "stop")
        )
        capacity, zeros = number_of_pass(code, "capacity"), of_pass(code, "zeros")
        end = (text > stop).then(text, stop)
        panels = (end + (LANES - 1)) // LANES
        own = head * (group * dim)
        keys, values = (
            code.offset(of_layer(code, name), head * capacity * dim) for name in ("keys", "values")
        )
        mixed = code.offset(of_pass(code, "mixed"), row * c.query_size + own)
        shared: dict[str, Operand] = {"rows": group, "bias": zeros, "first": 0, "is_added": 0}
        with_keys: dict[str, Operand] = {
            "inputs": code.offset(of_pass(code, "qkv"), row * width + own),
            "stride": dim,
            "weights": keys,
            "step": LANES,
            "panel": LANES * dim,
            "depth": dim,
            "last": panels,
            "outputs": scores,
            "apart": capacity,
        }
        multiply(code, "float32", shared | with_keys)
        parts = []
        for g in range(group):
            place = code.offset(scores, capacity * g)
            parts.append(_softmax(code, place, panels, (text, start, stop), dim**-0.5))
        with_values: dict[str, Operand] = {
            "inputs": scores,
            "stride": capacity,
            "weights": values,
            "step": dim,
            "panel": LANES,
            "depth": end,
            "last": dim // LANES,
            "outputs": mixed,
            "apart": dim,
        }
        multiply(code, "float32", shared | with_values)
        for g, part in enumerate(parts):
            with code.loop(g * dim, (g + 1) * dim, LANES) as i:
                # Plus zero: a sum of zeros is +0, whether hidden slots are among its terms or not.
                code.store(code.load_lanes(mixed, i) * code.wide(part) + 0.0, mixed, i)


def _softmax(code: Code, scores: Number, panels: Number, seen: Seen, scale: float) -> Number:
    """Leaves e^(score - largest) where a slot is seen and 0 elsewhere; 1 / their sum."""
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
    whole = code.sum(total.get())
    return whole.like(1.0) / whole


def _is_seen(code: Code, panel: Number, seen: Seen) -> Number:
    """Which slots of a panel are."""
    slot = code.indices(panel * LANES)
    text, start, stop = map(code.words, seen)
    return (slot < text) | ((slot >= start) & (slot < stop))
