"""The work of `chains` that grows with the text, compiled: to enter its n-grams, and to take them
out again. In Python it takes 1.3 microseconds a token, which a long prompt is waited for."""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from llvmlite import ir

from doublespec.compiled.build import Compiled, Function
from doublespec.compiled.code import ADDRESS, INTEGER, WORD, Code, Number, Variable

_FACTOR = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: it spreads small ids over the upper bits
_UPPER = 1 << 32

_PARAMETERS = {
    "tables": ADDRESS,  # as `tables` makes them
    "start": INTEGER,
    "stop": INTEGER,
    "mask": INTEGER,  # of hashes: the size of `last`, less 1
}


class Linking(NamedTuple):
    """Functions of (tables, start, stop, mask). `enter` enters the n-grams that end with one of the
    tokens from `start` to `stop` into chains of those before; `leave` undoes it."""

    enter: Function
    leave: Function


def tables(
    tokens: "array[int]", levels: Sequence[tuple[int, "array[int]", "array[int]"]]
) -> "array[int]":
    """Where the tokens are, how many levels, and of each its size and where its `last` and `before`
    are: arrays that must not grow."""
    words = [_address(tokens), len(levels)]
    for size, last, before in levels:
        words += size, _address(last), _address(before)
    return array("Q", words)


def _address(numbers: "array[int]") -> int:
    return numbers.buffer_info()[0]


@cache
def linking() -> Linking:
    """Those functions, compiled when they are first asked for."""
    enter, leave = (
        _compiled().function(name, list(_PARAMETERS.values()), brief=True)
        for name in ("enter", "leave")
    )
    return Linking(enter, leave)


@cache
def _compiled() -> Compiled:
    module = ir.Module("linking")
    with Code(module, "enter", _PARAMETERS, inner=False) as code, levels(code) as level:
        size, last, before = level
        with code.loop(code["start"], code["stop"]) as place:
            key = _key(code, place, size)
            code.store(code.load(last, key, WORD), before, place + 1)
            code.store(code.word(place + 1), last, key)
    with Code(module, "leave", _PARAMETERS, inner=False) as code, levels(code) as level:
        size, last, before = level
        with code.loop(code["start"], code["stop"]) as index:
            place = code["start"] + code["stop"] - 1 - index  # the last one first
            code.store(code.load(before, place + 1, WORD), last, _key(code, place, size))
    return Compiled(module)


@contextmanager
def levels(code: Code, tables: Number | None = None) -> Iterator[list[Number]]:
    """Of one level after the other its size, and where its `last` and `before` are."""
    tables = code["tables"] if tables is None else tables
    with code.loop(0, code.load(tables, 1, INTEGER)) as level:
        kinds = INTEGER, ADDRESS, ADDRESS
        yield [code.load(tables, level * 3 + 2 + i, kind) for i, kind in enumerate(kinds)]


def _key(code: Code, place: Number, size: Number) -> Number:
    """The hash of the n-gram whose last token has that place; at the beginning of the text it is
    shorter."""
    tokens, stop = code.load(code["tables"], 0, ADDRESS), place + 1
    first = (stop < size).then(code.integer(0), stop - size)
    return hash_of(code, tokens, first, stop) & code["mask"]


def hash_of(code: Code, tokens: Number, first: Number, stop: Number) -> Number:
    """That of the tokens [first, stop), before the mask."""
    found = Variable(code, code.integer(0))
    with code.loop(first, stop) as i:
        token = code.widened(code.load(tokens, i, WORD))
        found.set((found.get() + token + 1) * _FACTOR)
    return found.get() // _UPPER
