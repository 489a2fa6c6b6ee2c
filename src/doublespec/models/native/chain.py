"""A text that goes on with its own likeliest tokens, in one call: what a small draft spends on
Python between two of its forwards is as much as a forward takes."""

from llvmlite import ir

from doublespec.compiled.code import ADDRESS, INTEGER, LANES, WORD, Code, Number, Variable
from doublespec.models.native.layout import CHAIN, of_pass

_NO_ID = (1 << 31) - 1


def write_pick(module: ir.Module) -> None:
    """Takes the likeliest token after the row that was computed, the lowest of several, or samples
    one, and says whether to go on."""
    with Code(module, "pick", {"pass": ADDRESS, "chain": ADDRESS}) as code:
        logits, size, count = of_pass(code, "logits"), _number(code, "size"), _number(code, "count")
        with code.when(code.is_set(_address(code, "heat"))):
            key = code.widened(code.load(_address(code, "keys"), count, WORD))
            temperature = code.load(_address(code, "heat"), 0)
            told = logits, _address(code, "hashed"), key, logits, size, temperature
            code.call("perturb_row", *told)
        token, behind = _best_of_row(code, logits, size)
        code.store(token, _address(code, "tokens"), count)
        code.store(behind, _address(code, "behind"), count)
        reach = _address(code, "reach")
        left = code.load(reach, 0) * _chance(code, behind)
        code.store(left, reach, 0)
        is_more = (count + 1 < _number(code, "most")) & (left > code.load(reach, 1))
        ends = Variable(code, code.integer(0))
        with code.loop(0, _number(code, "num_ends")) as i:
            is_end = code.load(_address(code, "ends"), i, INTEGER).equals(token)
            ends.set(is_end.then(code.integer(1), ends.get()))
        _set(code, "is_over", is_more.then(ends.get(), 1))
        _set(code, "count", count + 1)
        _set(code, "token", token)


def write_place(module: ir.Module) -> None:
    """Makes the latest token the next row."""
    with Code(module, "place", {"pass": ADDRESS, "chain": ADDRESS}) as code:
        position = _number(code, "position") + _number(code, "count")
        told = {"ids": _number(code, "token"), "positions": position, "slots": position}
        told |= {"text": position + 1, "start": code.integer(0), "stop": code.integer(0)}
        for name, number in told.items():
            code.store(number, of_pass(code, name), 0)


def goes_on(code: Code) -> Number:
    """Whether the chain is not over."""
    return _number(code, "is_over").equals(0)


def _best_of_row(code: Code, logits: Number, size: Number) -> tuple[Number, Number]:
    """The id of the largest of so many numbers, and how far the second one lies behind it."""
    lowest = code.wide(float("-inf"))
    best, second = Variable(code, lowest), Variable(code, lowest)
    place = Variable(code, code.words(code.integer(0)))  # of the best one of each lane
    with code.loop(0, (size + (LANES - 1)) // LANES) as panel:
        ids, value = code.indices(panel * LANES), code.load_lanes(logits, panel * LANES)
        value = (ids < code.words(size)).then(value, lowest)
        is_more = value > best.get()
        lesser = is_more.then(best.get(), value)
        second.set((lesser > second.get()).then(lesser, second.get()))
        place.set(is_more.then(ids, place.get()))
        best.set(is_more.then(value, best.get()))
    top = code.largest(best.get())
    of_top = best.get().equals(code.wide(top))
    token = code.widened(code.smallest(of_top.then(place.get(), _NO_ID)))
    token = (token < size).then(token, 0)  # if no number is the largest
    others = place.get().equals(code.words(token)).then(lowest, best.get())
    left = code.largest((others > second.get()).then(others, second.get()))
    return token, top - left


def _chance(code: Code, behind: Number) -> Number:
    """That of a choice whose second one lies so far behind."""
    reached = Variable(code, code.integer(0))
    with code.loop(0, _number(code, "num_edges")) as i:
        is_reached = behind >= code.load(_address(code, "edges"), i)
        reached.set(is_reached.then(i + 1, reached.get()))
    return code.load(_address(code, "chances"), reached.get())


def _number(code: Code, name: str) -> Number:
    return code.load(code["chain"], CHAIN.index(name), INTEGER)


def _address(code: Code, name: str) -> Number:
    return code.load(code["chain"], CHAIN.index(name), ADDRESS)


def _set(code: Code, name: str, number: Number) -> None:
    code.store(number, code["chain"], CHAIN.index(name))
