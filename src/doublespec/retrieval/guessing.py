"""What followed the end of a text where it stood before, found by a compiled function: in less than
a microsecond, while a model goes on by itself."""

from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir

from doublespec.compiled.build import Compiled, Function
from doublespec.compiled.clock import declare_clock, now
from doublespec.compiled.code import ADDRESS, INTEGER, WORD, Code, Number, Variable
from doublespec.retrieval.linking import hash_of, levels

DEPTHS = 128  # to which the length of a suffix is measured
_LEAST = 2  # tokens of a suffix that counts
_LOOKED_AT = 8  # places of an n-gram's chain: others with the same hash may stand in it
# Of guesses that are not worth being shown one in so many is written down all the same, with so
# many tokens, to learn what became of it.
_WATCHED, _WATCHED_TOKENS = 8, 2

# Whole numbers and addresses.
STATE = (
    "guessed",  # tokens to show now (`compiled/guesser.py`),
    "guess",  # and where they are
    "tables",  # of the text, as `linking.tables` makes them: of its first tokens,
    "known",  # so many,
    "mask",  # and of their hashes
    "length",  # of the text: what is told stands behind those, where they are,
    "stop",  # and how long it may become
    "lengths",  # (DEPTHS): how many tokens to show behind a suffix so long
    "runs",  # of guesses, one behind the other,
    "used",  # so many numbers,
    "room",  # of so many
    "log",  # of what was guessed (GUESSED), and what came of it,
    "entries",  # so many,
    "most_entries",  # of so many
    "is_open",  # 1: the forward that the last one was guessed for is under way,
    "since",  # which time, in nanoseconds
    "unshown",  # guesses that were not worth it
)
GUESSED = (
    "place",  # tokens told before it
    "depth",  # of the suffix that it follows
    "length",  # of what was written down,
    "shown",  # and what was shown of it
    "nanoseconds",  # of the forward
)


class Guessing(NamedTuple):
    """`guess`, a function of (state), which says what comes next; `hear`, one of (state, token,
    more), which takes in a token before (`compiled/guesser.py`), and its address."""

    guess: Function
    hear: Function
    address: int
    compiled: Compiled  # of which they hold as long as it is there


@cache
def guessing() -> Guessing:
    """Compiled when it is first asked for."""
    module = ir.Module("guessing")
    declare_clock(module)
    _write_deepest(module)
    _write_guess(module)
    with Code(module, "hear", _PARAMETERS, inner=False) as code:
        _tell(code, "guessed", code.integer(0))
        length = _told(code, "length")
        with code.when(length < _told(code, "stop")):
            code.store(code.word(code["token"]), _text(code), length)
            _tell(code, "length", length + 1)
        with code.when(code["more"].equals(0)):
            code.call("guess", code["state"])
    compiled = Compiled(module)
    guess = compiled.function("guess", [ADDRESS], brief=True)
    hear = compiled.function("hear", list(_PARAMETERS.values()), brief=True)
    return Guessing(guess, hear, compiled.address("hear"), compiled)


_PARAMETERS = {"state": ADDRESS, "token": INTEGER, "more": INTEGER}


def _write_guess(module: ir.Module) -> None:
    """A forward is over: closes what is open, and guesses what comes next."""
    with Code(module, "guess", {"state": ADDRESS}, inner=False) as code:
        time = now(code)
        with code.when(_told(code, "is_open") > 0):
            _write_down(code, "nanoseconds", time - _told(code, "since"))
            _tell(code, "entries", _told(code, "entries") + 1)
        _tell(code, "since", time)
        _tell(code, "is_open", code.integer(0))
        length, used = _told(code, "length"), _told(code, "used")
        found = code.room(2)  # how long a suffix stood before, and where what followed it is
        code.store(code.integer(0), found, 0)
        code.call("deepest", code["state"], found)
        depth, place = (code.load(found, i, INTEGER) for i in range(2))
        left = _told(code, "stop") - length
        with code.when((depth >= _LEAST) & (left > 1)):
            shown = code.load(_told(code, "lengths", ADDRESS), depth, INTEGER)
            shown = _least(shown, left - 1)  # the last one is the model's own choice
            unshown = _told(code, "unshown") + shown.equals(0).then(code.integer(1), 0)
            _tell(code, "unshown", unshown)
            is_watched = (unshown % _WATCHED).equals(0)
            watched = is_watched.then(_least(code.integer(_WATCHED_TOKENS), left - 1), 0)
            written = shown.equals(0).then(watched, shown)
            has_room = used + written < _told(code, "room") + 1
            has_room = has_room & (_told(code, "entries") < _told(code, "most_entries"))
            with code.when((written > 0) & has_room):
                run = code.offset(_told(code, "runs", ADDRESS), used, INTEGER)
                _copy(code, place, length, run, written)
                told = length - _told(code, "known")
                entry = {"place": told, "depth": depth, "length": written, "shown": shown}
                for name, number in entry.items():
                    _write_down(code, name, number)
                _tell(code, "guessed", shown)
                _tell(code, "guess", run)
                _tell(code, "used", used + written)
                _tell(code, "is_open", code.integer(1))


def _copy(code: Code, place: Number, length: Number, run: Number, count: Number) -> None:
    """So many tokens of a text from a place on, which goes on as it did from there."""
    with code.loop(0, count) as i:
        token = Variable(code, code.integer(0))
        is_inside = place + i < length
        with code.when(is_inside):
            token.set(code.widened(code.load(_text(code), place + i, WORD)))
        with code.when(is_inside.equals(0)):
            token.set(code.load(run, place + i - length, INTEGER))
        code.store(token.get(), run, i)


def _write_deepest(module: ir.Module) -> None:
    """How long a suffix of the text stood in it before, and where what followed it is: the longest
    one, the latest of several. Where n-grams of some size stood in the text, shorter ones are not
    looked for there."""
    with Code(module, "deepest", {"state": ADDRESS, "found": ADDRESS}) as code:
        length, known = _told(code, "length"), _told(code, "known")
        with code.loop(known + 1, length) as place:  # in what was told, the latest last
            _measure(code, place, code.integer(_LEAST), longer=0)
        is_done = Variable(code, code.integer(0))
        with levels(code, _told(code, "tables", ADDRESS)) as (size, last, before):
            is_wanted = (size >= _LEAST) & (size <= length) & is_done.get().equals(0)
            with code.when(is_wanted):
                key = hash_of(code, _text(code), length - size, length) & _told(code, "mask")
                at = Variable(code, code.widened(code.load(last, key, WORD)))
                with code.when(at.get().equals(length)):  # it is itself
                    at.set(code.widened(code.load(before, length, WORD)))
                looked = Variable(code, code.integer(0))
                with code.while_(lambda: (at.get() > 0) & (looked.get() < _LOOKED_AT)):
                    is_one = _measure(code, at.get(), size, longer=1)
                    is_done.set(is_one.then(code.integer(1), is_done.get()))
                    at.set(code.widened(code.load(before, at.get(), WORD)))
                    looked.set(looked.get() + 1)


def _measure(code: Code, place: Number, least: Number, *, longer: int) -> Number:
    """Takes the suffix that ends before a place for the one that is found, if it has `least` tokens
    or more, and as many as that and so many `longer`. Whether it has as many as the least."""
    text, length, found = _text(code), _told(code, "length"), code["found"]
    same, most = Variable(code, code.integer(0)), _least(place, code.integer(DEPTHS - 1))

    def agree() -> Number:
        is_inside = same.get() < most
        back = is_inside.then(same.get(), 0) + 1
        one, other = (code.load(text, end - back, WORD) for end in (place, length))
        return is_inside & one.equals(other)

    with code.while_(agree):
        same.set(same.get() + 1)
    is_one = same.get() >= least
    with code.when(is_one & (same.get() >= code.load(found, 0, INTEGER) + longer)):
        code.store(same.get(), found, 0)
        code.store(place, found, 1)
    return is_one


def _least(one: Number, other: Number) -> Number:
    return (one < other).then(one, other)


def _text(code: Code) -> Number:
    return code.load(_told(code, "tables", ADDRESS), 0, ADDRESS)


def _told(code: Code, name: str, kind: Any = INTEGER) -> Number:
    return code.load(code["state"], STATE.index(name), kind)


def _tell(code: Code, name: str, number: Number) -> None:
    code.store(number, code["state"], STATE.index(name))


def _write_down(code: Code, name: str, number: Number) -> None:
    """Of the latest entry of the log."""
    first = _told(code, "entries") * len(GUESSED)
    code.store(number, _told(code, "log", ADDRESS), first + GUESSED.index(name))
