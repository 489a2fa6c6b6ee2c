"""The work of `chains` that grows with the text, compiled: to enter its n-grams, and to take them
out again. In Python it takes 1.3 microseconds a token, which a long prompt is waited for. And what
is done while a model goes on by itself: to listen for an n-gram that stood in the text before."""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir

from doublespec.compiled.build import Compiled, Function
from doublespec.compiled.code import ADDRESS, INTEGER, WORD, Code, Number, Variable

_FACTOR = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: it spreads small ids over the upper bits
_UPPER = 1 << 32

_LOOKED_AT = 4  # places of an n-gram's chain: others with the same hash may stand in it

_PARAMETERS = {
    "tables": ADDRESS,  # as `tables` makes them
    "start": INTEGER,
    "stop": INTEGER,
    "mask": INTEGER,  # of hashes: the size of `last`, less 1
}
# What `listen` is told, and tells (`heard`): whole numbers and addresses.
LISTENING = (
    "heard",  # how long the n-gram is that stood in the text before; 0: none
    "tables",  # of the text, as `tables` makes them,
    "mask",  # and of its hashes
    "least",  # tokens of an n-gram that counts
    "new",  # the text's last tokens, and those that were heard since: of 32 bits,
    "count",  # so many,
    "room",  # and of at most so many
    "quiet",  # 1: none counts before one that is new
)


class Linking(NamedTuple):
    """Functions of (tables, start, stop, mask). `enter` enters the n-grams that end with one of the
    tokens from `start` to `stop` into chains of those before; `leave` undoes it. And one of (state,
    token): `listen` (`compiled/listener.py`, the state as in LISTENING)."""

    enter: Function
    leave: Function
    listen: Function


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
    return Linking(enter, leave, _compiled().function("listen", [ADDRESS, INTEGER], brief=True))


@cache
def listen_address() -> int:
    """Where `listen` is, for compiled functions that call it."""
    return _compiled().address("listen")


@cache
def _compiled() -> Compiled:
    module = ir.Module("linking")
    with Code(module, "enter", _PARAMETERS, inner=False) as code, _levels(code) as level:
        size, last, before = level
        with code.loop(code["start"], code["stop"]) as place:
            key = _key(code, place, size)
            code.store(code.load(last, key, WORD), before, place + 1)
            code.store(code.word(place + 1), last, key)
    with Code(module, "leave", _PARAMETERS, inner=False) as code, _levels(code) as level:
        size, last, before = level
        with code.loop(code["start"], code["stop"]) as index:
            place = code["start"] + code["stop"] - 1 - index  # the last one first
            code.store(code.load(before, place + 1, WORD), last, _key(code, place, size))
    _write_listen(module)
    return Compiled(module)


def _write_listen(module: ir.Module) -> None:
    """A token was chosen. The longest n-gram that ends with it and stood before it counts: in the
    text, or among the tokens heard since."""
    with Code(module, "listen", {"state": ADDRESS, "token": INTEGER}, inner=False) as code:
        new = _told(code, "new", ADDRESS)
        has_room = _told(code, "count") < _told(code, "room")
        count = _told(code, "count") + has_room.then(code.integer(1), 0)
        code.store(code.word(code["token"]), new, count - 1)
        _tell(code, "count", count)
        heard = Variable(code, code.integer(0))
        tables = _told(code, "tables", ADDRESS)
        with _levels(code, tables) as (size, last, before):
            is_wanted = (size >= _told(code, "least")) & (size <= count)
            with code.when(is_wanted & heard.get().equals(0)):
                first = count - size
                ngram = new, first, size
                key = _hash(code, new, first, count) & _told(code, "mask")
                text = code.load(tables, 0, ADDRESS)
                place = Variable(code, code.widened(code.load(last, key, WORD)))
                looked = Variable(code, code.integer(0))
                with code.while_(lambda: (place.get() >= size) & (looked.get() < _LOOKED_AT)):
                    is_one = _is_at(code, text, place.get() - size, *ngram)
                    heard.set(is_one.then(size, heard.get()))
                    place.set(code.widened(code.load(before, place.get(), WORD)))
                    looked.set(is_one.then(code.integer(_LOOKED_AT), looked.get() + 1))
                with code.loop(0, first) as start:
                    is_one = _is_at(code, new, start, *ngram)
                    heard.set(is_one.then(size, heard.get()))
        is_quiet = _told(code, "quiet") & heard.get().equals(0).then(code.integer(0), 1)
        _tell(code, "quiet", is_quiet)
        is_full = count.equals(_told(code, "room"))
        counts = is_quiet.equals(0).then(heard.get(), 0)
        _tell(code, "heard", (is_full & counts.equals(0)).then(code.integer(1), counts))


def _told(code: Code, name: str, kind: Any = INTEGER) -> Number:
    return code.load(code["state"], LISTENING.index(name), kind)


def _tell(code: Code, name: str, number: Number) -> None:
    code.store(number, code["state"], LISTENING.index(name))


def _is_at(
    code: Code, text: Number, start: Number, new: Number, first: Number, size: Number
) -> Number:
    """Whether so many tokens of a text are those of `new` from `first` on."""
    same = Variable(code, code.integer(0))

    def agree() -> Number:
        one = code.load(text, start + same.get(), WORD)
        other = code.load(new, first + same.get(), WORD)
        return (same.get() < size) & one.equals(other)

    with code.while_(agree):
        same.set(same.get() + 1)
    return same.get().equals(size)


@contextmanager
def _levels(code: Code, tables: Number | None = None) -> Iterator[list[Number]]:
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
    return _hash(code, tokens, first, stop) & code["mask"]


def _hash(code: Code, tokens: Number, first: Number, stop: Number) -> Number:
    found = Variable(code, code.integer(0))
    with code.loop(first, stop) as i:
        token = code.widened(code.load(tokens, i, WORD))
        found.set((found.get() + token + 1) * _FACTOR)
    return found.get() // _UPPER
