"""A text that goes on with its own likeliest tokens, in one call: what a small draft spends on
Python between two of its forwards is as much as a forward takes."""

from llvmlite import ir

from doublespec.compiled.code import ADDRESS, INTEGER, LANES, Code, Number, Variable
from doublespec.models.native.layout import CHAIN, number_of_pass, of_pass, set_of_pass
from doublespec.noise import position_key

_NO_ID = (1 << 31) - 1


def write_pick(module: ir.Module, width: int) -> None:
    """Takes the likeliest token after the row that was computed, the lowest of several, or samples
    one, and says whether to go on; of a pass that judges a guess, after each row as far as the
    guess holds. Where some number is not finite, the chain is over before it, and behind a pass
    that was stopped. Rows of logits are `width` apart."""
    with Code(module, "pick", {"pass": ADDRESS, "chain": ADDRESS}) as code:
        _set(code, "is_over", code.integer(1))
        is_whole = number_of_pass(code, "done").equals(number_of_pass(code, "num_layers"))
        with code.when(is_whole):
            _set(code, "passes", _number(code, "passes") - 1)
            row, holds = Variable(code, code.integer(0)), Variable(code, code.integer(1))
            with code.while_(lambda: holds.get() > 0):
                logits = code.offset(of_pass(code, "logits"), row.get() * width)
                holds.set(code.integer(0))
                _pick_from(code, logits, row.get(), holds)
                row.set(row.get() + 1)
            _set(code, "num_guess", code.integer(0))
            with code.when(code.is_set(_address(code, "guesser"))):
                _take_guess(code)


def _take_guess(code: Code) -> None:
    """For the next pass: as far as there is room, and up to an id that the model does not have."""
    guessing = _address(code, "guessing")
    count, guess = code.load(guessing, 0, INTEGER), code.load(guessing, 1, ADDRESS)
    for name, less in (("most_guess", code.integer(0)), ("most", _number(code, "count") + 1)):
        most = _number(code, name)
        room = (less < most).then(most - less, 0)
        count = (count < room).then(count, room)
    known = Variable(code, code.integer(0))

    def is_known() -> Number:
        is_one = known.get() < count
        place = is_one.then(known.get(), 0)
        return is_one & (code.load(guess, place, INTEGER) < _number(code, "size"))

    with code.when(count > 0):
        with code.while_(is_known):
            known.set(known.get() + 1)
        _set(code, "guess", guess)
    _set(code, "num_guess", known.get())


def _pick_from(code: Code, logits: Number, row: Number, holds: Variable) -> None:
    """Takes one token, and says whether the guess holds up to there and has another row."""
    size, count = _number(code, "size"), _number(code, "count")
    with code.when(code.is_set(_address(code, "heat"))):
        position = _number(code, "position") + count + 1
        key = position_key(code, position, _number(code, "seed"))
        temperature = code.load(_address(code, "heat"), 0)
        told = logits, _address(code, "hashed"), key, logits, size, temperature
        code.call("perturb_row", *told)
    token, behind, is_finite = _best_of_row(code, logits, size)
    _set(code, "is_over", code.integer(1))
    with code.when(is_finite):
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
        _set(code, "count", count + 1)
        _set(code, "token", token)
        is_more = is_more & ends.get().equals(0)
        is_over = (is_more & (_number(code, "passes") > 0)).then(code.integer(0), 1)
        _set(code, "is_over", is_over)
        with code.when(is_more & (row < _number(code, "num_guess"))):
            guessed = code.load(_address(code, "guess"), row, INTEGER)
            holds.set(guessed.equals(token).then(code.integer(1), 0))
        guesser = _address(code, "guesser")
        with code.when(code.is_set(guesser)):
            code.call_at(guesser, _address(code, "guessing"), token, holds.get())


def write_place(module: ir.Module) -> None:
    """Makes the latest token the next row, and the tokens of a guess those behind it."""
    with Code(module, "place", {"pass": ADDRESS, "chain": ADDRESS}) as code:
        with code.when(_number(code, "is_placed").equals(0)):
            first = _number(code, "position") + _number(code, "count")
            rows = _number(code, "num_guess") + 1
            for name in ("rows", "num_chosen"):
                set_of_pass(code, name, rows)
            set_of_pass(code, "late", _number(code, "late") * rows)
            with code.loop(0, rows) as row:
                told = {"positions": first + row, "slots": first + row, "text": first + row + 1}
                told |= {"start": code.integer(0), "stop": code.integer(0), "chosen": row}
                for name, number in told.items():
                    code.store(number, of_pass(code, name), row)
            code.store(_number(code, "token"), of_pass(code, "ids"), 0)
            with code.loop(1, rows) as row:
                guessed = code.load(_address(code, "guess"), row - 1, INTEGER)
                code.store(guessed, of_pass(code, "ids"), row)
        _set(code, "is_placed", code.integer(0))


def goes_on(code: Code) -> Number:
    """Whether the chain is not over."""
    return _number(code, "is_over").equals(0)


def _best_of_row(code: Code, logits: Number, size: Number) -> tuple[Number, Number, Number]:
    """The id of the largest of so many numbers, how far the second one lies behind it, and whether
    all are finite: others are compared otherwise where tokens are chosen outside."""
    lowest, zero = code.wide(float("-inf")), code.wide(0.0)
    best, second, odd = Variable(code, lowest), Variable(code, lowest), Variable(code, zero)
    place = Variable(code, code.words(code.integer(0)))  # of the best one of each lane
    with code.loop(0, (size + (LANES - 1)) // LANES) as panel:
        ids, value = code.indices(panel * LANES), code.load_lanes(logits, panel * LANES)
        is_one = ids < code.words(size)
        odd.set(odd.get() + is_one.then(value, zero) * zero)  # 0, or no number from now on
        value = is_one.then(value, lowest)
        is_more = value > best.get()
        lesser = is_more.then(best.get(), value)
        second.set((lesser > second.get()).then(lesser, second.get()))
        place.set(is_more.then(ids, place.get()))
        best.set(is_more.then(value, best.get()))
    top = code.largest(best.get())
    of_top = best.get().equals(code.wide(top))
    token = code.widened(code.smallest(of_top.then(place.get(), _NO_ID)))
    others = place.get().equals(code.words(token)).then(lowest, best.get())
    left = code.largest((others > second.get()).then(others, second.get()))
    is_odd = code.largest(odd.get().equals(zero).then(zero, 1.0))
    return token, top - left, is_odd < 0.5


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
