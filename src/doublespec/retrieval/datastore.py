"""A corpus on disk as a source of runs: one file, mapped into memory, shared by all its readers.

Knows the file format and how to search it; `building` writes it. The file holds

    magic, version, length and checksum of the header | header (JSON) | tokens | places | starts

`tokens` are the documents' ids, each plus one, with 0 before, between and after the documents.
A place is a position in them that has a token before and after it; `places` are sorted by the
tokens *before* them, read backwards, so that one binary search finds the longest suffix of a text.
`starts` says where the places after each token begin.
"""

import hashlib
import json
import mmap
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from doublespec.errors import DatastoreError
from doublespec.retrieval.base import Match
from doublespec.retrieval.ranking import most_alike
from doublespec.tokens import Tokens

MAGIC = b"DOUBLEDS"
VERSION = 1
PREFIX = struct.Struct("<8sIII")  # magic, version, bytes of the header, its CRC-32
BORDER = 0
CONTEXT = 32  # tokens before a place that a search compares
SHORT = 8  # tokens that most searches are decided by
NEIGHBOURS = 2  # places looked at on either side of where the text would stand
FEW = 64  # places after a short context, mostly


@dataclass(frozen=True, slots=True)
class Section:
    """Where in the file whole numbers of `width` bytes lie, little endian, and their CRC-32."""

    width: int
    start: int
    stop: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a store says of itself. `vocabulary` is the fingerprint of its tokenizer."""

    tokenizer: str
    vocabulary: str
    num_documents: int
    num_tokens: int
    num_places: int
    min_frequency: int
    sections: dict[str, Section]  # tokens, places, starts, in this order


class Nearest(NamedTuple):
    """Places after a text's longest suffix, its length, and the tokens before each, backwards."""

    depth: int
    places: list[int]
    contexts: list[list[int]]


class Datastore:
    """An open store. Raises DatastoreError if the file is none, damaged, or another tokenizer's.

    Opening reads the header alone; `verify` reads all. A flipped byte that nobody verified can
    make a run wrong, which costs a row of a forward, never a wrong answer.
    """

    def __init__(self, path: Path, vocabulary: str | None = None) -> None:
        self.path = path
        self._source = f"datastore {path.name}"
        self._bytes = _map(path)
        self.header = _read_header(path, self._bytes)
        if vocabulary not in (None, self.header.vocabulary):
            raise DatastoreError(
                f"{path} was built with the tokenizer of {self.header.tokenizer}, "
                "which is not this model's: build one with --tokenizer MODEL"
            )
        self._tokens, self._places, self._starts = map(self._view, self.header.sections.values())

    def verify(self) -> None:
        """Read the whole file; raises DatastoreError if a byte of it has changed."""
        for name, section in self.header.sections.items():
            if zlib.crc32(self._raw(section)) != section.checksum:
                raise DatastoreError(f"{self.path} is damaged in its {name}: build it again")

    @property
    def tokens(self) -> "memoryview[int]":
        """The documents as they are stored: each id plus one, borders between them."""
        return self._tokens

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        """What followed the longest suffix of `tokens`, of at most CONTEXT, in the corpus."""
        text = [token + 1 for token in tokens[-CONTEXT:]]
        found = self._nearest(text, NEIGHBOURS)
        if not found.places or limit < 1:
            return None
        following = [self._tokens[place] for place in found.places]
        choice = most_alike(text, found.contexts, following)
        run = self._run(found.places[choice.number], limit)
        if not run:
            return None
        return Match(tuple(run), found.depth, self._source, choice.likeness, choice.share)

    def matches(self, tokens: Tokens, most: int) -> list[tuple[list[int], list[int]]]:
        """For people: what stands before and after the places most like the end of `tokens`."""
        found = self._nearest([token + 1 for token in tokens[-CONTEXT:]], most)
        pairs = zip(found.places, found.contexts, strict=True)
        return [(_before(context), self._run(place, CONTEXT)) for place, context in pairs][:most]

    def _nearest(self, text: list[int], most: int) -> Nearest:
        """The places after the longest suffix of `text` that occurs, at most so many on either side
        of where the text itself would stand."""
        key = text[::-1]
        if not key or not 0 < key[0] < len(self._starts) - 1:
            return Nearest(0, [], [])
        high = min(self._starts[key[0] + 1], len(self._places))
        low = min(self._starts[key[0]], high)
        middle = self._middle(key, low, high)
        first = max(low, middle - most)
        places = self._places[first : min(high, middle + most)].tolist()
        contexts = [self._context(place) for place in places]
        beside = contexts[max(0, middle - first - 1) : middle - first + 1]  # the most alike
        depth = max((_shared(context, key) for context in beside), default=0)
        if depth == 0:
            return Nearest(0, [], [])
        shared = key[:depth]
        alike = [i for i, context in enumerate(contexts) if context[:depth] == shared]
        return Nearest(depth, [places[i] for i in alike], [contexts[i] for i in alike])

    def _middle(self, key: list[int], low: int, high: int) -> int:
        """Where among the sorted places the text would stand. Most searches are over after a few
        tokens; only if these occur is the rest of the text compared."""
        short = key[:SHORT]
        middle = bisect_left(self._places, short, low, high, key=self._short_context)
        if middle == high or self._short_context(self._places[middle]) != short:
            return middle
        near = middle + FEW
        if near < high and self._short_context(self._places[near]) != short:
            high = near
        stop = bisect_right(self._places, short, middle, high, key=self._short_context)
        return bisect_left(self._places, key, middle, stop, key=self._context)

    def _context(self, place: int) -> list[int]:
        """The tokens before a place, backwards."""
        stop = place - CONTEXT - 1 if place > CONTEXT else None
        context: list[int] = self._tokens[place - 1 : stop : -1].tolist()
        return context

    def _short_context(self, place: int) -> list[int]:
        stop = place - SHORT - 1 if place > SHORT else None
        context: list[int] = self._tokens[place - 1 : stop : -1].tolist()
        return context

    def _run(self, place: int, limit: int) -> list[int]:
        run: list[int] = self._tokens[place : place + limit].tolist()
        stop = run.index(BORDER) if BORDER in run else len(run)
        return [token - 1 for token in run[:stop]]

    def _raw(self, section: Section) -> memoryview:
        return memoryview(self._bytes)[section.start : section.stop]

    def _view(self, section: Section) -> "memoryview[int]":
        raw = self._raw(section)
        return raw.cast("H") if section.width == 2 else raw.cast("I")


def _shared(context: list[int], key: list[int]) -> int:
    """How many leading tokens are the same: few, mostly."""
    return next(
        (i for i, (a, b) in enumerate(zip(context, key, strict=False)) if a != b),
        min(len(context), len(key)),
    )


def _before(context: list[int]) -> list[int]:
    """The ids of a document before a place, from its tokens backwards."""
    stop = context.index(BORDER) if BORDER in context else len(context)
    return [token - 1 for token in context[:stop][::-1]]


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """A name for a vocabulary: two tokenizers with the same name give the same ids."""
    items = sorted((index, token) for token, index in vocabulary.items())
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:32]


def pack_header(header: Header) -> bytes:
    """The beginning of a file, up to where its sections may start."""
    text = json.dumps(asdict(header)).encode()
    return PREFIX.pack(MAGIC, VERSION, len(text), zlib.crc32(text)) + text


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise DatastoreError(f"{path} is not a datastore: it is empty") from error
    except OSError as error:
        raise DatastoreError(f"cannot open the datastore {path}: {error.strerror}") from error


def _read_header(path: Path, data: mmap.mmap) -> Header:
    if data[: len(MAGIC)] != MAGIC or len(data) < PREFIX.size:
        raise DatastoreError(f"{path} is not a datastore of doublespec")
    _, version, length, checksum = PREFIX.unpack_from(data)
    if version != VERSION:
        raise DatastoreError(
            f"{path} has format version {version}, this doublespec reads {VERSION}: build it again"
        )
    text = data[PREFIX.size : PREFIX.size + length]
    if zlib.crc32(text) != checksum:
        raise DatastoreError(f"{path} is damaged in its header: build it again")
    fields = json.loads(text)
    sections = {name: Section(**section) for name, section in fields.pop("sections").items()}
    stop = max(section.stop for section in sections.values())
    if len(data) != stop:
        raise DatastoreError(
            f"{path} has {len(data):,} bytes where {stop:,} were written: copy or build it again"
        )
    return Header(**fields, sections=sections)
