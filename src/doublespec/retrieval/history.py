"""What was answered before in this process, as a source of runs. Knows tenants, not models."""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from doublespec.errors import DatastoreError
from doublespec.mutex import Mutex
from doublespec.retrieval.base import Match
from doublespec.retrieval.chains import QUICK_SIZE
from doublespec.retrieval.files import replacing
from doublespec.retrieval.shared import MOST_DEPTH, SharedTexts
from doublespec.tokens import Tokens

FORMAT = "doublespec history 2"
NOBODY = -1  # a tenant without texts


@dataclass(frozen=True, slots=True)
class Entry:
    """One text and whose it is."""

    tenant: str
    tokens: list[int]


class History:
    """Earlier texts in memory that other processes may search (`shared`): within a number of bytes,
    half by half, the oldest first out. No lookup reaches the texts of another tenant."""

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        self._texts = SharedTexts(most_bytes)
        self._mutex = Mutex()
        self._writer = os.getpid()  # a process forked from it adds nothing and names nobody
        self._numbers = {"": 0}  # of tenants
        self._next = 1

    @property
    def descriptor(self) -> int:
        """Of the memory, for `open_history` in a process that inherits it."""
        return self._texts.descriptor

    def number_of(self, tenant: str) -> int:
        """What a tenant is called in the memory. A number is never given twice."""
        with self._mutex.lock:
            number = self._number(tenant)
        self._mutex.catch_up()
        return number

    def add(self, tokens: Tokens, tenant: str = "") -> None:
        """Keep a text for the lookups of `tenant`. One larger than half the bytes is not kept."""
        if not tokens or os.getpid() != self._writer:
            return
        self._mutex.tidy(partial(self._add, list(tokens), tenant))

    def index(self, tenant: str = "") -> "TenantIndex":
        """The texts of one tenant, those that are still to come included."""
        return self.index_of(self.number_of(tenant))

    def index_of(self, number: int) -> "TenantIndex":
        """The same by the tenant's number."""
        return TenantIndex(self._texts, number)

    def entries(self) -> Iterator[Entry]:
        """All texts in the order in which they came."""
        with self._mutex.lock:
            names = {number: name for name, number in self._numbers.items()}
            texts = list(self._texts.texts())
        self._mutex.catch_up()
        for number, tokens in texts:
            yield Entry(names[number], tokens)

    def save(self, path: Path, vocabulary: str) -> None:
        """Write all texts to a file; `vocabulary` names the tokenizer that they belong to."""
        with replacing(path, mode=0o600) as file:
            count = checksum = 0
            for line in self._lines(vocabulary):
                file.write(line)
                count, checksum = count + 1, zlib.crc32(line, checksum)
            file.write(_end(count, checksum))

    def load(self, path: Path, vocabulary: str) -> None:
        """Add the texts of a file. Raises DatastoreError, and adds nothing, if one line of it is
        not as `save` writes it or another tokenizer's."""
        for entry in _read(path, vocabulary):
            self.add(entry.tokens, entry.tenant)

    def _lines(self, vocabulary: str) -> Iterator[bytes]:
        """What a file holds before its last line."""
        yield _line({"format": FORMAT, "vocabulary": vocabulary})
        for entry in self.entries():
            yield _line({"tenant": entry.tenant, "tokens": entry.tokens})

    def _add(self, tokens: list[int], tenant: str) -> None:
        if self._texts.add(tokens, self._number(tenant)):
            kept = {0, *(owner for owner, _ in self._texts.texts())}
            self._numbers = {name: n for name, n in self._numbers.items() if n in kept}

    def _number(self, tenant: str) -> int:
        if tenant not in self._numbers and os.getpid() != self._writer:
            return NOBODY
        if tenant not in self._numbers:
            self._numbers[tenant] = self._next
            self._next += 1
        return self._numbers[tenant]


class TenantIndex:
    """One tenant's earlier texts."""

    def __init__(self, texts: SharedTexts, number: int) -> None:
        self._texts = texts
        self._number = number

    def may_know(self, tokens: Tokens) -> bool:
        """See `base.py`."""
        end = list(tokens[-QUICK_SIZE:])
        return len(end) == QUICK_SIZE and self._texts.may_know(end, self._number)

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        """What followed the longest suffix of `tokens` in an earlier text."""
        return self._texts.lookup(list(tokens[-MOST_DEPTH:]), limit, self._number)


def open_history(descriptor: int) -> Callable[[int], TenantIndex]:
    """The history behind an inherited descriptor: gives the texts of the tenant of a number."""
    texts = SharedTexts(descriptor=descriptor)
    return lambda number: TenantIndex(texts, number)


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _end(count: int, checksum: int) -> bytes:
    """The last line: how many are before it, and the CRC-32 of these."""
    return _line({"lines": count, "checksum": checksum})


def _read(path: Path, vocabulary: str) -> list[Entry]:
    try:
        header, *lines = path.read_bytes().splitlines(keepends=True)
        if json.loads(header) != {"format": FORMAT, "vocabulary": vocabulary}:
            raise DatastoreError(f"{path} is not a history of this version and this tokenizer")
        return _entries(header, lines)
    except OSError as error:
        raise DatastoreError(f"cannot read the history {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DatastoreError(f"{path} is not a history of doublespec, or damaged") from error


def _entries(header: bytes, lines: list[bytes]) -> list[Entry]:
    """The entries between a header and the last line, if this says that they are all as written."""
    *body, end = lines
    if end != _end(1 + len(body), zlib.crc32(b"".join([header, *body]))):
        raise ValueError("not what was written")
    return [_entry(json.loads(line)) for line in body]


def _entry(value: dict[str, object]) -> Entry:
    tenant, tokens = value["tenant"], value["tokens"]
    if not isinstance(tenant, str) or not isinstance(tokens, list):
        raise ValueError("not an entry")
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in tokens):
        raise ValueError("not token ids")
    return Entry(tenant, tokens)
