"""What the kernels are handed, as rows of addresses and whole numbers, in this order."""

from array import array
from collections.abc import Mapping, Sequence

from doublespec.compiled.code import ADDRESS, INTEGER, Code, Number

# Weights come in panels of LANES outputs: (outputs / LANES, inputs, LANES). All else is float32.
LAYER = (
    "attention_norm",  # (D)
    "qkv",
    "qkv_bias",
    "qkv_scale",  # of weights in int8, or null
    "query_norm",  # (head_dim), or null
    "key_norm",
    "output",
    "output_bias",
    "output_scale",
    "mlp_norm",
    "gate_up",  # the gate's panels, then those of up
    "gate_up_bias",
    "gate_up_scale",
    "down",
    "down_bias",
    "down_scale",
    "keys",  # (kv heads, capacity / LANES, head_dim, LANES): panels, a key being an output
    "values",  # (kv heads, capacity, head_dim)
)
PASS = (
    "rows",  # their number
    "table",  # of embeddings, which a pass begins with; null: it goes on from hidden states
    "is_panels",  # 1: the table lies in panels, as weights do; 0: (V, D)
    "layers",  # (num_layers, LAYER), of which a pass computes
    "num_layers",
    "late",  # nanoseconds that one of them may take; 0: any number
    "longest",  # and all of them; after a longer one the pass stops, to be gone on with
    "done",  # layers that were computed then
    "slow",  # nanoseconds that the last of them took
    "begun",  # when the pass was, in nanoseconds,
    "checked",  # when its latest layer was done,
    "is_stopped",  # and whether it is to stop
    "num_chosen",  # of which logits are computed at the end; 0: none
    "chosen",  # (num_chosen) of the rows
    "hidden",  # (rows, D)
    "normed",  # (rows, D)
    "qkv",  # (rows, (heads + 2 kv heads) x head_dim)
    "mixed",  # (rows, heads x head_dim)
    "gated",  # (rows, 2 x intermediate)
    "scores",  # (threads, queries, capacity)
    "states",  # (threads, queries, head_dim)
    "scratch",  # (threads, `scratch_size`), for products on the matrix unit
    "shapes",  # and of its tiles (`tiles.py`)
    "claims",  # (CLAIMED, threads, CLAIMS_APART), of work that threads have begun
    "logits",  # (num_chosen, V in whole panels)
    "norm",  # (D), behind all layers
    "vocabulary",
    "vocabulary_bias",
    "zeros",  # (capacity)
    "capacity",  # of the cache, in tokens: a multiple of LANES
    "cos",  # (capacity, head_dim)
    "sin",  # (capacity, head_dim), the sign of the turned half included
    "ids",  # (rows) of tokens
    "positions",  # (rows): where in its text a row stands
    "slots",  # (rows): where in the cache its key and value go
    "text",  # (rows): it looks at the slots [0, text)
    "start",  # (rows): and at [start, stop)
    "stop",
)
CLAIMED = ("qkv", "attention", "output", "mlp", "down", "head")  # in which they help each other
CLAIMS_APART = 8  # so that those of two threads do not share a line of the cache
CHAIN = (
    "token",  # the latest
    "position",  # of the first one
    "guess",  # (num_guess) tokens that the next pass judges
    "num_guess",
    "is_placed",  # 1: the rows of the next pass stand where they belong
    "passes",  # that may still be made
    "most",  # tokens to add
    "size",  # ids below that are chosen from
    "ends",  # (num_ends): ids behind which it ends
    "num_ends",
    "edges",  # (num_edges), rising
    "num_edges",
    "chances",  # (num_edges + 1): of a choice, by how many edges the second one lies behind it
    "reach",  # (2): the product of all chances, and that down to which it goes on
    "heat",  # (1): the temperature; null: the likeliest tokens are chosen
    "hashed",  # (V) ids, of 32 bits,
    "seed",  # and the key of the seed (`noise.py`)
    "guesser",  # a function that is told each token and says what comes next, or null,
    "guessing",  # its state (`compiled/guesser.py`),
    "most_guess",  # and how many tokens it may guess: there is room for no more
    "late",  # nanoseconds that a layer of a pass over one row may take; 0: any number
    "tokens",  # (most), as they are chosen
    "behind",  # (most): how far the second choice lay behind
    "count",  # of them
    "is_over",
)


def in_order(names: Sequence[str], values: Mapping[str, int]) -> "array[int]":
    """The values as a row."""
    return array("q", [values[name] for name in names])


def of_layer(code: Code, name: str) -> Number:
    """That address of a kernel's layer."""
    return code.load(code["layer"], LAYER.index(name), ADDRESS)


def of_pass(code: Code, name: str) -> Number:
    """That address of a kernel's pass."""
    return code.load(code["pass"], PASS.index(name), ADDRESS)


def number_of_pass(code: Code, name: str) -> Number:
    return code.load(code["pass"], PASS.index(name), INTEGER)


def set_of_pass(code: Code, name: str, number: Number) -> None:
    code.store(number, code["pass"], PASS.index(name))
