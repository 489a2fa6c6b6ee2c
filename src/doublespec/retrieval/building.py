"""Writes datastores: from token ids to the sorted places of `datastore`.

The order is that of a suffix array over the reversed ids. Each id is spelled in two or three
bytes, the highest first, so that a suffix array over bytes (libdivsufsort) sorts ids.
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydivsufsort import divsufsort  # type: ignore[import-untyped]

from doublespec.errors import DatastoreError
from doublespec.retrieval.datastore import BORDER, Datastore, Header, Section, pack_header
from doublespec.retrieval.files import replacing

Ids = NDArray[np.uint32]

MOST_BYTES = (1 << 31) - 1  # that libdivsufsort sorts with 4-byte positions
FREQUENT = 3  # the n-gram before a place that must be as frequent as asked
HEADER_ROOM = 4096  # bytes, or a multiple where the names need more
NUMBERS_ROOM = 1024  # bytes of a header beside the names, at most
ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Source:
    """Whose ids a store holds: a name for people, the fingerprint, and how many ids there are."""

    tokenizer: str
    vocabulary: str
    vocab_size: int


def build(
    path: Path, documents: Iterable[NDArray[np.uint32]], source: Source, min_frequency: int = 1
) -> Header:
    """Write a store of `documents` in place of what is at `path`, whole or not at all."""
    tokens, num_documents = _join(documents)
    if num_documents == 0:
        raise DatastoreError(f"{path} is not written: there is no text to put into it")
    places = _frequent(tokens, _sorted_places(tokens, source.vocab_size), min_frequency)
    lasts = tokens[places - 1]
    starts = np.searchsorted(lasts, np.arange(source.vocab_size + 2))
    arrays = {
        "tokens": tokens.astype("<u2" if source.vocab_size < 1 << 16 else "<u4"),
        "places": places.astype("<u4"),
        "starts": starts.astype("<u4"),
    }
    header = Header(
        tokenizer=source.tokenizer,
        vocabulary=source.vocabulary,
        num_documents=num_documents,
        num_tokens=int(np.count_nonzero(tokens)),
        num_places=len(places),
        min_frequency=min_frequency,
        sections=_sections(arrays, _room(source)),
    )
    with replacing(path) as file:
        file.write(pack_header(header))
        for name, section in header.sections.items():
            file.seek(section.start)
            file.write(arrays[name].data)
    return header


def documents_of(store: Datastore) -> Iterator[Ids]:
    """The ids of each document of a store."""
    tokens = np.asarray(store.tokens)
    for start, stop in pairwise(np.flatnonzero(tokens == BORDER).tolist()):
        yield tokens[start + 1 : stop].astype(np.uint32) - 1


def _join(documents: Iterable[Ids]) -> tuple[Ids, int]:
    """All documents, each id plus one, with a border before, between and after them."""
    border = np.array([BORDER], np.uint32)
    parts = [border]
    for ids in documents:
        if len(ids):
            parts += [ids + 1, border]
    return np.concatenate(parts), (len(parts) - 1) // 2


def _sorted_places(tokens: Ids, vocab_size: int) -> NDArray[np.int64]:
    """The places between two tokens of a document, sorted by what is before them, backwards."""
    width = 2 if vocab_size < 1 << 16 else 3
    if width * len(tokens) > MOST_BYTES:
        most = MOST_BYTES // width
        raise DatastoreError(
            f"a store holds at most {most:,} tokens, these are {len(tokens):,}: build several, "
            "they may be used together"
        )
    backwards = tokens[::-1]
    spelled = np.empty((len(tokens), width), np.uint8)
    for i in range(width):
        spelled[:, i] = (backwards >> (8 * (width - 1 - i))) & 0xFF
    order: NDArray[np.int64] = divsufsort(spelled.reshape(-1))
    places = len(tokens) - order[order % width == 0] // width
    places = places[places < len(tokens)]
    inside = (tokens[places] != BORDER) & (tokens[places - 1] != BORDER)
    return np.asarray(places[inside])


def _frequent(tokens: Ids, places: NDArray[np.int64], min_frequency: int) -> NDArray[np.int64]:
    """The places after an n-gram that stands at `min_frequency` places at least."""
    if min_frequency <= 1 or len(places) == 0:
        return places
    grams = [tokens[np.maximum(places - 1 - i, 0)] for i in range(FREQUENT)]
    begins = np.flatnonzero(
        np.logical_or.reduce([np.diff(gram, prepend=gram[:1] + 1) != 0 for gram in grams])
    )
    sizes = np.diff(begins, append=len(places))
    return places[np.repeat(sizes, sizes) >= min_frequency]


def _room(source: Source) -> int:
    """The bytes before the first array. A tokenizer's name may be a path of any length."""
    names = len(json.dumps([source.tokenizer, source.vocabulary]))
    return -(-(names + NUMBERS_ROOM) // HEADER_ROOM) * HEADER_ROOM


def _sections(arrays: dict[str, NDArray[Any]], start: int) -> dict[str, Section]:
    """Where each array is to lie: one after the other, behind the header."""
    sections = {}
    for name, array in arrays.items():
        stop = start + array.nbytes
        sections[name] = Section(array.itemsize, start, stop, zlib.crc32(array.data))
        start = -(-stop // ALIGNED) * ALIGNED
    return sections
