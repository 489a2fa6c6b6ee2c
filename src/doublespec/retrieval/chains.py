"""A text whose places are chained by the n-gram that ends there, as in zlib's hash chains.

Knows how to grow, to be cut back, and where the longest suffix of the text occurs in it before; not
which of several places is the best.
"""

from array import array
from typing import NamedTuple

from doublespec.retrieval.linking import linking, tables
from doublespec.tokens import Tokens

OPEN_SIZES = (8, 4)  # n-grams whose match may be longer: each place has to be measured
SIZES = (*OPEN_SIZES, 3, 2, 1)  # without a gap up to 4, so that those below are just as long
MOST_VISITS = 1000  # places looked at for the longest match: a bound for text in a loop
QUICK_SIZE = 4  # of an n-gram that was seen before: then a lookup is likely to be worth it
FEW_VISITS = 4  # to say whether there is one
MOST_PLACES = 4  # more choose no better: see docs/retrieval.md


class Places(NamedTuple):
    """Where the longest suffix of a text occurs: the stops, latest first, and its length."""

    stops: list[int]
    depth: int


NOWHERE = Places([], 0)


class Level(NamedTuple):
    """The chains of one n-gram size: the last place of each hash, and the place before each."""

    size: int
    last: "array[int]"
    before: "array[int]"


class Chains:
    """Tokens with an index of all their n-grams that can be cut back as cheaply as it grows.

    A place is named by its stop, the position after the n-gram; 0 ends a chain. Cutting the text
    undoes the entries in reverse, so the chains are always those of a fresh index.
    """

    def __init__(self, bits: int = 10) -> None:
        """For hashes of so many bits, and half as many tokens as these tell apart, at first."""
        self.tokens: list[int] = []
        self._enter, self._leave = linking()
        self._begin(bits)

    def extend(self, new: Tokens) -> None:
        """Append tokens to the text."""
        first, stop = len(self.tokens), len(self.tokens) + len(new)
        if stop > self.mask // 2:
            first, new = 0, [*self.tokens, *new]
            self._begin_anew(stop)
        self._ids[first:stop] = array("i", new)
        self.tokens += new
        self._enter(self.place, first, stop, self.mask)

    def reserve(self, count: int) -> None:
        """Makes room for so many more tokens."""
        most = len(self.tokens) + count
        if most > self.mask // 2:
            tokens = self.tokens.copy()
            self._begin_anew(most)
            self.extend(tokens)

    def _begin_anew(self, most: int) -> None:
        self._begin(most.bit_length() + 1)
        self.tokens.clear()

    def cut(self, length: int) -> None:
        """Drop the tokens from position `length` on."""
        self._leave(self.place, length, len(self.tokens), self.mask)
        del self.tokens[length:]

    def _begin(self, bits: int) -> None:
        """Chains without places."""
        hashes, room = 1 << bits, 1 << bits - 1
        self.mask = hashes - 1
        self._ids = _zeros(room)  # the tokens once more, for functions that are compiled
        self._levels = [Level(size, _zeros(hashes), _zeros(room)) for size in SIZES]
        self._tables = tables(self._ids, self._levels)
        self.place = self._tables.buffer_info()[0]  # for functions that are compiled

    def ends_as_before(self, size: int = QUICK_SIZE) -> bool:
        """Whether the last tokens, as many as one of SIZES, occurred before (it looks at a few
        places only)."""
        size, _, before = self._levels[SIZES.index(size)]
        tokens, place = self.tokens, before[len(self.tokens)]
        for _ in range(FEW_VISITS):
            if place < size:
                return False
            if tokens[place - size : place] == tokens[-size:]:
                return True
            place = before[place]
        return False

    def earlier(self, stop: int) -> Places:
        """Where the longest suffix of the text's first `stop` tokens occurs before."""
        for level in self._levels:
            if level.before[stop]:
                measured = _deepest if level.size in OPEN_SIZES else _latest
                found = measured(level, self.tokens, stop)
                if found.stops:
                    return found
        return NOWHERE


def _latest(level: Level, tokens: list[int], stop: int) -> Places:
    """The latest places of the n-gram that ends at `stop`."""
    size, _, before = level
    ngram, place = tokens[max(0, stop - size) : stop], before[stop]
    stops: list[int] = []
    while place and len(stops) < MOST_PLACES:
        if tokens[place - size : place] == ngram:
            stops.append(place)
        place = before[place]
    return Places(stops, size)


def _deepest(level: Level, tokens: list[int], stop: int) -> Places:
    """The places that share the longest suffix with `tokens[:stop]`; none if it is shorter than
    the level's n-grams."""
    depth, _, before = level
    place, stops = before[stop], list[int]()
    wanted = depth  # tokens that a place must share to be worth measuring
    for _ in range(MOST_VISITS):
        if place >= wanted and tokens[place - wanted] == tokens[stop - wanted]:
            common = common_suffix(tokens, place, stop)
            if common >= depth:
                stops = [place] if common > depth else [*stops, place]
                depth = common
                wanted = depth + (len(stops) == MOST_PLACES)
        place = before[place]
        if place == 0:
            break
    return Places(stops, depth)


def common_suffix(tokens: list[int], a: int, b: int) -> int:
    """The number of tokens that `tokens[:a]` and `tokens[:b]` share at their ends, `a` before `b`.

    Compares blocks that double while they agree and are halved where they do not.
    """
    length, block, grows = 0, 4, True
    while block:
        longer = length + block
        if longer <= a and tokens[a - longer : a - length] == tokens[b - longer : b - length]:
            length = longer
        else:
            grows = False
        block = block * 2 if grows else block // 2
    return length


def _zeros(length: int) -> "array[int]":
    return array("i", bytes(4 * length))
