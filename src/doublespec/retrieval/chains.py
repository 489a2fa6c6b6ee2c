"""A text whose places are chained by the n-gram that ends there, as in zlib's hash chains.

Knows how to grow, to be cut at both ends, and where the longest suffix of a given text occurs in
it; not whose text it is, nor which of several places is the best.
"""

from array import array
from typing import NamedTuple

from doublespec.tokens import Tokens

OPEN_SIZES = (8, 4)  # n-grams whose match may be longer: each place has to be measured
SIZES = (*OPEN_SIZES, 3, 2, 1)  # without a gap up to 4, so that those below are just as long
BORDER = -1  # between texts that are chained together: no match ends at one or crosses it
MOST_VISITS = 1000  # places looked at for the longest match: a bound for text in a loop
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
        self.tokens: list[int] = []
        self._mask, self._levels = _empty_levels(bits)

    @property
    def num_bytes(self) -> int:
        """Memory in use, token objects counted as if nobody else held them."""
        return self.bytes_with(0)

    def bytes_with(self, new: int) -> int:
        """Memory in use after `new` more tokens."""
        length = len(self.tokens) + new
        table = self._mask + 1 if length <= self._mask else 2 << length.bit_length()
        return len(SIZES) * 4 * (table + length) + (8 + 32) * length

    def extend(self, new: Tokens) -> None:
        """Append tokens to the text."""
        first = len(self.tokens)
        self._make_room(first + len(new))
        tokens, mask = self.tokens, self._mask
        tokens += new
        stops = range(first + 1, len(tokens) + 1)
        for size, last, before in self._levels:
            for stop in stops:
                key = hash(tuple(tokens[stop - size if stop > size else 0 : stop])) & mask
                before.append(last[key])
                last[key] = stop

    def _make_room(self, length: int) -> None:
        """Begin again with larger tables where `length` tokens would crowd the chains."""
        if length > self._mask:
            tokens, self.tokens = self.tokens, []
            self._mask, self._levels = _empty_levels(length.bit_length() + 1)
            self.extend(tokens)

    def cut(self, length: int) -> None:
        """Drop the tokens from position `length` on."""
        tokens, mask = self.tokens, self._mask
        stops = range(len(tokens), length, -1)
        for size, last, before in self._levels:
            for stop in stops:
                key = hash(tuple(tokens[stop - size if stop > size else 0 : stop])) & mask
                last[key] = before.pop()
        del tokens[length:]

    def earlier(self, stop: int) -> Places:
        """Where the longest suffix of the text's first `stop` tokens occurs before."""
        tokens = self.tokens
        for level in self._levels:
            place = level.before[stop]
            if place:
                found = _found(level, place, tokens, tokens, stop)
                if found.stops:
                    return found
        return NOWHERE

    def longest(self, text: list[int]) -> Places:
        """Where the longest suffix of another text occurs."""
        stop = len(text)
        for level in self._levels:
            ngram = text[max(0, stop - level.size) :]
            place = level.last[hash(tuple(ngram)) & self._mask] if stop >= level.size else 0
            if place == len(self.tokens):  # no token follows there
                place = level.before[place]
            if place:
                found = _found(level, place, self.tokens, text, stop)
                if found.stops:
                    return found
        return NOWHERE


def _found(level: Level, place: int, tokens: list[int], text: list[int], stop: int) -> Places:
    """The places of the chain that begins at `place` where the longest suffix of `text[:stop]`
    occurs in `tokens`; none if it is shorter than the level's n-grams."""
    if level.size in OPEN_SIZES:
        return _deepest(level, place, tokens, text, stop)
    return _latest(level, place, tokens, text[max(0, stop - level.size) : stop])


def _latest(level: Level, place: int, tokens: list[int], ngram: list[int]) -> Places:
    """The latest places after `ngram`."""
    size, _, before = level
    stops: list[int] = []
    while place and len(stops) < MOST_PLACES:
        if tokens[place - size : place] == ngram and tokens[place] != BORDER:
            stops.append(place)
        place = before[place]
    return Places(stops, size)


def _deepest(level: Level, place: int, tokens: list[int], text: list[int], stop: int) -> Places:
    """The places that share the longest suffix with the text."""
    depth, _, before = level
    stops: list[int] = []
    wanted = depth  # tokens that a place must share to be worth measuring
    for _ in range(MOST_VISITS):
        if place >= wanted and tokens[place - wanted] == text[stop - wanted]:
            common = common_suffix(tokens, place, text, stop)
            if common >= depth and tokens[place] != BORDER:
                stops = [place] if common > depth else [*stops, place]
                depth = common
                wanted = depth + (len(stops) == MOST_PLACES)
                if wanted > stop:
                    break  # nothing is deeper
        place = before[place]
        if place == 0:
            break
    return Places(stops, depth)


def common_suffix(a: list[int], a_stop: int, b: list[int], b_stop: int) -> int:
    """The number of tokens that `a[:a_stop]` and `b[:b_stop]` share at their ends.

    Compares blocks that double while they agree and are halved where they do not.
    """
    length, most, block, grows = 0, min(a_stop, b_stop), 4, True
    while block:
        longer = length + block
        if longer <= most and (
            a[a_stop - longer : a_stop - length] == b[b_stop - longer : b_stop - length]
        ):
            length = longer
        else:
            grows = False
        block = block * 2 if grows else block // 2
    return length


def _empty_levels(bits: int) -> tuple[int, list[Level]]:
    """The mask of a hash of so many `bits`, and chains without places."""
    return (1 << bits) - 1, [Level(size, _zeros(1 << bits), _zeros(1)) for size in SIZES]


def _zeros(length: int) -> "array[int]":
    return array("i", bytes(4 * length))
