"""A text whose places are chained by the n-gram that ends there, as in zlib's hash chains.

Knows how to grow, to be cut at both ends, and where the longest suffix of a given text occurs in
it; not whose text it is, nor which of several places is the best.
"""

from array import array
from dataclasses import dataclass

from doublespec.tokens import Tokens

OPEN_SIZES = (8, 4)  # n-grams whose match may be longer: each place has to be measured
SIZES = (*OPEN_SIZES, 3, 2, 1)  # without a gap up to 4, so that those below are just as long
MOST_VISITS = 1000  # places looked at for the longest match: a bound for text in a loop
MOST_PLACES = 6  # more choose hardly better: see docs/retrieval.md


@dataclass(frozen=True, slots=True)
class Places:
    """Where the longest suffix of a text occurs: the stops, latest first, and its length."""

    stops: list[int]
    depth: int


@dataclass(frozen=True, slots=True)
class Level:
    """The chains of one n-gram size: the last place of each hash, and the place before each."""

    size: int
    last: "array[int]"
    before: "array[int]"


class Chains:
    """Tokens with an index of all their n-grams that can be cut back as cheaply as it grows.

    A place is named by its stop, the position after the n-gram; 0 ends a chain. Cutting the text
    undoes the entries in reverse, so the chains are always those of a fresh index.
    """

    def __init__(self, bits: int = 17) -> None:
        self.tokens: list[int] = []
        self._mask = (1 << bits) - 1
        self._levels = [Level(size, _zeros(1 << bits), _zeros(1)) for size in SIZES]

    def extend(self, new: Tokens) -> None:
        """Append tokens to the text."""
        tokens, mask = self.tokens, self._mask
        for token in new:
            tokens.append(token)
            stop = len(tokens)
            for level in self._levels:
                key = hash(tuple(tokens[max(0, stop - level.size) :])) & mask
                level.before.append(level.last[key])
                level.last[key] = stop

    def cut(self, length: int) -> None:
        """Drop the tokens from position `length` on."""
        tokens, mask = self.tokens, self._mask
        for stop in range(len(tokens), length, -1):
            for level in self._levels:
                key = hash(tuple(tokens[max(0, stop - level.size) : stop])) & mask
                level.last[key] = level.before.pop()
        del tokens[length:]

    def longest(self, text: list[int], stop: int, before: int) -> Places | None:
        """Where the longest suffix of `text[:stop]` occurs, at places less than `before`."""
        for level in self._levels:
            if level.size > stop:
                continue
            ngram = text[stop - level.size : stop]
            place = level.last[hash(tuple(ngram)) & self._mask]
            while place >= before:
                place = level.before[place]
            if place and level.size in OPEN_SIZES:
                found = self._deepest(level, place, text, stop)
            else:
                found = Places(self._latest(level, place, ngram), level.size)
            if found.stops:
                return found
        return None

    def _latest(self, level: Level, place: int, ngram: list[int]) -> list[int]:
        """The latest places after `ngram` in the chain that begins at `place`."""
        tokens, before, size = self.tokens, level.before, level.size
        stops: list[int] = []
        while place and len(stops) < MOST_PLACES:
            if tokens[place - size : place] == ngram:
                stops.append(place)
            place = before[place]
        return stops

    def _deepest(self, level: Level, place: int, text: list[int], stop: int) -> Places:
        """The places of the chain that share the longest suffix with the text."""
        tokens, before, depth = self.tokens, level.before, level.size
        stops: list[int] = []
        for _ in range(MOST_VISITS):
            wanted = depth + (len(stops) == MOST_PLACES)
            if place >= wanted and tokens[place - wanted] == text[stop - wanted]:
                common = common_suffix(tokens, place, text, stop)
                if common > depth:
                    depth, stops = common, [place]
                elif common == depth:
                    stops.append(place)
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


def _zeros(length: int) -> "array[int]":
    return array("i", bytes(4 * length))
