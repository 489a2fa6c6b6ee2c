"""Earlier texts in memory that several processes share: one adds to it, all search in it.

The memory has no name: a process gets at it by inheriting its descriptor, and when the last one
ends, however it ends, nothing of it is left. It holds a few counters and two halves; a half holds

    tokens | owners | for each n-gram size: the place before each place, the last place of each hash

like `chains`, but of many texts, each between borders and with an owner. No search crosses a
border or leaves its owner's texts.
"""

import mmap
import os
import sys
import tempfile
import weakref
from array import array
from collections.abc import Iterator
from itertools import islice

from doublespec.retrieval.base import Match
from doublespec.retrieval.chains import FEW_VISITS, MOST_PLACES, OPEN_SIZES, QUICK_SIZE, SIZES
from doublespec.retrieval.ranking import WINDOW, most_alike
from doublespec.tokens import common_prefix

MOST_DEPTH = 64  # tokens of a match that are counted: more of them say no more
BORDER = -1  # after each text
MOST_VISITS = 32  # places looked at for the longest match
COUNTERS = 4096  # bytes at the beginning: generation and length of each half
INT = 4


class SharedTexts:
    """The memory behind `descriptor`, or new memory of at most `num_bytes` bytes."""

    def __init__(self, num_bytes: int = 0, descriptor: int | None = None) -> None:
        self._owned = descriptor is None
        self.descriptor = _new_memory(num_bytes) if descriptor is None else descriptor
        access = mmap.ACCESS_WRITE if self._owned else mmap.ACCESS_READ
        self._map = mmap.mmap(self.descriptor, 0, access=access)
        ints = memoryview(self._map).cast("i")
        counters, texts = ints[: COUNTERS // INT], ints[COUNTERS // INT :]
        middle = len(texts) // 2
        self.halves = [
            Half(counters[:2], texts[:middle]),
            Half(counters[2:4], texts[middle : 2 * middle]),
        ]
        if self._owned:
            weakref.finalize(self, os.close, self.descriptor)

    def add(self, tokens: list[int], owner: int) -> bool:
        """Keep a text; where there is no room the older half is emptied for it, and it says so.
        One larger than a half is not kept."""
        older, younger = sorted(self.halves, key=_generation)
        if len(tokens) >= younger.capacity:
            return False
        full = not younger.has_room(tokens)
        if full:
            older.empty((younger.generation | 1) + 1)
            younger = older
        younger.append(tokens, owner)
        return full

    def lookup(self, text: list[int], limit: int, owner: int) -> Match | None:
        """What followed the longest suffix of `text` in the texts of an owner; of equally long ones
        that of the younger half."""
        halves = sorted(self.halves, key=_generation, reverse=True)
        found = [half.lookup(text, limit, owner) for half in halves]
        return max(filter(None, found), key=_depth, default=None)

    def may_know(self, end: list[int], owner: int) -> bool:
        """Whether the last of QUICK_SIZE tokens or more stand in a text of an owner (a few places
        are looked at)."""
        return any(half.may_know(end, owner) for half in self.halves)

    def texts(self) -> Iterator[tuple[int, list[int]]]:
        """All texts with their owners, the oldest first."""
        for half in sorted(self.halves, key=_generation):
            yield from half.texts()


class Half:
    """One half of the memory. `state` holds its generation, which is odd while it is emptied and
    even else, and the number of its tokens: what is behind them is being written."""

    def __init__(self, state: "memoryview[int]", ints: "memoryview[int]") -> None:
        self._state = state
        table, self.capacity = _layout(len(ints))
        self._mask = table - 1
        self._tokens, rest = ints[: self.capacity], ints[self.capacity :]
        self._owners, rest = rest[: self.capacity], rest[self.capacity :]
        self._levels = []
        for size in SIZES:
            last, before = rest[:table], rest[table : table + self.capacity]
            rest = rest[table + self.capacity :]
            self._levels.append((size, last, before))

    @property
    def generation(self) -> int:
        return self._state[0]

    def has_room(self, tokens: list[int]) -> bool:
        return self._state[1] + len(tokens) < self.capacity

    def empty(self, generation: int) -> None:
        """Forget all texts; who is searching in them notices that the generation is another."""
        self._state[0] = generation - 1
        self._state[1] = 0
        for _, last, _ in self._levels:
            last[:] = array("i", bytes(INT * len(last)))
        self._state[0] = generation

    def append(self, tokens: list[int], owner: int) -> None:
        """Add a text, for which there is room. Searchers find it whole or not at all."""
        start = self._state[1]
        border = start + len(tokens)
        self._tokens[start : border + 1] = array("i", [*tokens, BORDER])
        self._owners[start : border + 1] = array("i", [owner]) * (len(tokens) + 1)
        for size, last, before in self._levels:
            for stop in range(size, len(tokens)):
                key = hash((owner, *tokens[stop - size : stop])) & self._mask
                before[start + stop] = last[key]
                last[key] = start + stop
        self._state[1] = border + 1

    def lookup(self, text: list[int], limit: int, owner: int) -> Match | None:
        """What followed the longest suffix of `text` in the texts of an owner."""
        generation, length = self._state
        if generation % 2 or not length or limit < 1:
            return None
        places, depth = self._longest(text[: -MOST_DEPTH - 1 : -1], owner, length)
        if not places:
            return None
        contexts = [self._context(place, WINDOW) for place in places]
        choice = most_alike(text, contexts, [self._tokens[place] for place in places])
        run = self._run(places[choice.number], limit, length)
        if self._state[0] != generation or not run:
            return None  # it was emptied meanwhile, and may hold another owner's text
        return Match(tuple(run), depth, "history", choice.likeness, choice.share)

    def may_know(self, end: list[int], owner: int) -> bool:
        """Whether a text of an owner has the last of `end`, of which there are enough."""
        size, last, before = self._levels[SIZES.index(QUICK_SIZE)]
        ngram, length = end[-size:], self._state[1]
        place = last[hash((owner, *ngram)) & self._mask]
        for _ in range(FEW_VISITS):
            if not size <= place < length:
                return False
            is_own = self._owners[place] == owner
            if is_own and self._tokens[place - size : place].tolist() == ngram:
                return True
            place = before[place]
        return False

    def texts(self) -> Iterator[tuple[int, list[int]]]:
        tokens, start = self._tokens[: self._state[1]].tolist(), 0
        while start < len(tokens):
            stop = tokens.index(BORDER, start)
            yield self._owners[start], tokens[start:stop]
            start = stop + 1

    def _longest(self, end: list[int], owner: int, length: int) -> tuple[list[int], int]:
        """The places after the longest suffix of a text, latest first, and its length; `end` is
        the text backwards."""
        for size, last, before in self._levels:
            if len(end) >= size:
                place = last[hash((owner, *end[size - 1 :: -1])) & self._mask]
                chain = islice(_chain(before, place), MOST_VISITS)
                inside = (p for p in chain if p < length and self._owners[p] == owner)
                places, depth = self._deepest(inside, end if size in OPEN_SIZES else end[:size])
                if depth >= size:
                    return places, depth
        return [], 0

    def _deepest(self, chain: Iterator[int], end: list[int]) -> tuple[list[int], int]:
        """The places of a chain that share most with `end`, and how much."""
        places, depth = list[int](), 0
        for place in chain:
            common = common_prefix(self._context(place, len(end)), end)
            if common > depth:
                places, depth = [place], common
            elif common == depth and len(places) < MOST_PLACES:
                places.append(place)
            if depth == len(end) and len(places) == MOST_PLACES:
                break
        return places, depth

    def _context(self, place: int, most: int) -> list[int]:
        """At most so many tokens of a text before a place, backwards."""
        context: list[int] = self._tokens[max(0, place - most) : place].tolist()
        context.reverse()
        return context[: context.index(BORDER)] if BORDER in context else context

    def _run(self, place: int, limit: int, length: int) -> list[int]:
        run: list[int] = self._tokens[place : min(place + limit, length)].tolist()
        return run[: run.index(BORDER)] if BORDER in run else run


def _chain(before: "memoryview[int]", place: int) -> Iterator[int]:
    while place:
        yield place
        place = before[place]


def _generation(half: Half) -> int:
    """By which halves are ordered: one whose emptying was interrupted first, to be emptied."""
    return -1 if half.generation % 2 else half.generation


def _depth(match: Match) -> int:
    return match.depth


def _layout(num_ints: int) -> tuple[int, int]:
    """The size of each table of hashes, a power of two, and how many tokens there is room for."""
    table = 1 << (num_ints * 2 // 5 // len(SIZES)).bit_length() - 1
    return table, (num_ints - len(SIZES) * table) // (2 + len(SIZES))


def _new_memory(num_bytes: int) -> int:
    """The descriptor of memory without a name (where there is no such thing, of a file without
    one). Pages take room when they are first written to."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("doublespec-history")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor
