"""Corpora on disk: against a scan, and against all that happens to files."""

import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doublespec.errors import DatastoreError
from doublespec.retrieval.building import NUMBERS_ROOM, Source, build, documents_of
from doublespec.retrieval.datastore import (
    CONTEXT,
    PREFIX,
    Datastore,
    Header,
    Section,
    fingerprint,
    pack_header,
)
from doublespec.retrieval.encoding import at_most

Text = list[int]
SMALL = Source("small", "v", 10)
WIDE = Source("wide", "v", 1 << 17)  # ids of three bytes


def write(path: Path, documents: Iterable[Text], source: Source = SMALL, least: int = 1) -> Path:
    build(path, [np.array(tokens, np.uint32) for tokens in documents], source, least)
    return path


def longest_by_scan(documents: list[Text], text: Text) -> int:
    """The depth of the longest suffix of `text` after which a document goes on."""
    depths = [0]
    for other in documents:
        for stop in range(1, len(other)):
            depth = 0
            while depth < min(stop, len(text)) and other[stop - 1 - depth] == text[-1 - depth]:
                depth += 1
            depths.append(depth)
    return max(depths)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rng = random.Random(4)
    return write(tmp_path / "store", [rng.choices(range(10), k=300) for _ in range(5)])


@pytest.mark.parametrize("source", [SMALL, WIDE])
@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 3), max_size=20), min_size=1, max_size=6),
    texts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), max_size=8),
)
def test_a_store_finds_the_longest_match_of_a_scan(
    tmp_path_factory: pytest.TempPathFactory,
    source: Source,
    documents: list[Text],
    texts: list[Text],
) -> None:
    if not any(documents):
        return
    scale = (source.vocab_size - 1) // 3
    documents = [[token * scale for token in tokens] for tokens in documents]
    path = write(tmp_path_factory.getbasetemp() / "property", documents, source)
    opened = Datastore(path)
    assert [ids.tolist() for ids in documents_of(opened)] == [ids for ids in documents if ids]
    for text in texts:
        text = [token * scale for token in text]
        match = opened.lookup(text, 4)
        assert (0 if match is None else match.depth) == longest_by_scan(documents, text)
        if match is not None:
            found = [*text[len(text) - match.depth :], *match.tokens]
            assert any(
                other[i : i + len(found)] == found for other in documents for i in range(len(other))
            ), "a run never leaves the document it is from"


def test_a_match_longer_than_what_is_compared_counts_as_that_much(tmp_path: Path) -> None:
    text = random.Random(1).choices(range(10), k=100)
    match = Datastore(write(tmp_path / "store", [text])).lookup(text[:-5], 9)
    assert match is not None
    assert (match.depth, match.tokens) == (CONTEXT, tuple(text[-5:]))


def test_the_tokens_of_other_vocabularies_match_nothing(store: Path) -> None:
    opened = Datastore(store)
    assert opened.lookup([5000], 4) is None
    assert opened.lookup([10], 4) is None
    assert opened.lookup([], 4) is None
    assert opened.lookup([1, 2], 0) is None


def test_rare_places_are_left_out_and_frequent_ones_kept(tmp_path: Path) -> None:
    documents = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4], [6, 7, 8, 9]]
    opened = Datastore(write(tmp_path / "store", documents, least=3))
    match = opened.lookup([1, 2, 3], 4)
    assert match is not None
    assert match.tokens == (4,), "the continuation of most"
    assert opened.lookup([6, 7, 8], 4) is None
    assert (
        opened.header.num_places < Datastore(write(tmp_path / "all", documents)).header.num_places
    )


def test_documents_are_cut_where_the_tokens_are_used_up() -> None:
    documents = [np.arange(4, dtype=np.uint32), np.arange(4, dtype=np.uint32)]
    assert [ids.tolist() for ids in at_most(documents, 6)] == [[0, 1, 2, 3], [0, 1]]
    assert [ids.tolist() for ids in at_most(documents, 4)] == [[0, 1, 2, 3]]


def test_fifty_readers_see_the_same(store: Path) -> None:
    texts = [random.Random(i).choices(range(10), k=12) for i in range(100)]

    def answers(_: int) -> list[object]:
        opened = Datastore(store, "v")
        return [opened.lookup(text, 8) for text in texts]

    with ThreadPoolExecutor(50) as pool:
        first, *others = pool.map(answers, range(50))
    assert any(first)
    assert all(other == first for other in others)


def test_a_fingerprint_names_a_vocabulary() -> None:
    assert fingerprint({"a": 0, "b": 1}) == fingerprint({"b": 1, "a": 0})
    assert fingerprint({"a": 0, "b": 1}) != fingerprint({"a": 1, "b": 0})


def test_the_store_of_another_tokenizer_is_refused_by_name(store: Path) -> None:
    with pytest.raises(DatastoreError, match="tokenizer of small"):
        Datastore(store, "another")


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "bytes where"),
        (lambda data: data + b"\0", "bytes where"),
        (lambda data: data[:20], "not a datastore|damaged"),
        (lambda data: data[:5], "not a datastore"),
        (lambda data: b"", "it is empty"),
        (lambda data: b"a text " * 1000, "not a datastore"),
        (lambda data: flip(data, 40), "damaged in its header"),
        (lambda data: data[:8] + struct.pack("<I", 2) + data[12:], "format version 2"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(store: Path, damage, message: str) -> None:
    store.write_bytes(damage(store.read_bytes()))
    with pytest.raises(DatastoreError, match=message):
        Datastore(store)


def test_a_flipped_byte_of_the_header_is_found_when_it_is_opened(store: Path) -> None:
    data = store.read_bytes()
    _, _, length, _ = PREFIX.unpack_from(data)
    for position in range(PREFIX.size + length):
        store.write_bytes(flip(data, position))
        with pytest.raises(DatastoreError, match=r"damaged|version|not a datastore"):
            Datastore(store)


@pytest.mark.parametrize("name", ["tokens", "places", "starts"])
def test_a_flipped_byte_is_found_by_verify_and_breaks_no_lookup(store: Path, name: str) -> None:
    Datastore(store).verify()
    section = Datastore(store).header.sections[name]
    data = store.read_bytes()
    for position in range(
        section.start, section.stop, max(1, (section.stop - section.start) // 40)
    ):
        store.write_bytes(flip(data, position))
        with pytest.raises(DatastoreError, match=f"damaged in its {name}"):
            Datastore(store).verify()
        for seed in range(5):
            Datastore(store).lookup(random.Random(seed).choices(range(10), k=9), 8)


def test_places_beyond_the_text_break_no_lookup(store: Path) -> None:
    """All places overwritten with the largest number: a wrong run at worst."""
    section = Datastore(store).header.sections["places"]
    data = store.read_bytes()
    size = section.stop - section.start
    store.write_bytes(data[: section.start] + b"\xff" * size + data[section.stop :])
    assert Datastore(store).lookup([1, 2, 3], 8) is None


def test_no_text_is_no_store_and_the_old_one_stays(store: Path) -> None:
    before = store.read_bytes()
    with pytest.raises(DatastoreError, match="no text"):
        write(store, [[], []])
    assert store.read_bytes() == before


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(DatastoreError, match="No such file"):
        Datastore(tmp_path / "missing")
    with pytest.raises(DatastoreError, match="directory"):
        Datastore(tmp_path)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read and write everything; so root is somebody else here for a while."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_store_or_folder_without_permission_says_so(store: Path) -> None:
    before = store.read_bytes()
    store.chmod(0)
    store.parent.chmod(0o555)
    with as_nobody():
        with pytest.raises(DatastoreError, match="Permission denied"):
            Datastore(store)
        with pytest.raises(DatastoreError, match=r"cannot write .*Permission denied"):
            write(store, [[1, 2, 3]])
    store.parent.chmod(0o755)
    store.chmod(0o644)
    assert store.read_bytes() == before


BUILD_WITH_LITTLE_ROOM = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from doublespec.errors import DatastoreError
from doublespec.retrieval.building import NUMBERS_ROOM, Source, build
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    build(Path(sys.argv[1]), [np.arange(5000, dtype=np.uint32)], Source("t", "v", 5000))
except DatastoreError as error:
    print(error)
"""


def test_a_build_that_finds_no_room_leaves_the_old_store(store: Path) -> None:
    before = store.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", BUILD_WITH_LITTLE_ROOM, store],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert store.read_bytes() == before
    assert list(store.parent.iterdir()) == [store]


def test_an_interrupted_build_leaves_nothing(store: Path) -> None:
    before = store.read_bytes()

    def documents() -> Iterable[Text]:
        yield [1, 2, 3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(store, documents())
    assert store.read_bytes() == before
    assert list(store.parent.iterdir()) == [store]


def test_two_builds_of_one_store_leave_one_whole_store(tmp_path: Path) -> None:
    def make(number: int) -> Path:
        return write(tmp_path / "store", [[number] * 50])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(8)))
    Datastore(tmp_path / "store").verify()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be deleted there")
def test_a_store_deleted_or_replaced_while_it_is_open_goes_on(store: Path) -> None:
    opened = Datastore(store)
    before = opened.lookup([1, 2, 3], 8)
    write(store, [[9, 9, 9]])
    assert opened.lookup([1, 2, 3], 8) == before
    store.unlink()
    assert opened.lookup([1, 2, 3], 8) == before
    opened.verify()


def test_the_header_is_json_and_nothing_is_pickled(store: Path) -> None:
    data = store.read_bytes()
    _, _, length, checksum = PREFIX.unpack_from(data)
    text = data[PREFIX.size : PREFIX.size + length]
    assert zlib.crc32(text) == checksum
    assert json.loads(text)["num_documents"] == 5


@pytest.mark.parametrize("length", [0, 400, 500, 512, 700, 4000])
def test_a_header_of_any_length_has_room(tmp_path: Path, length: int) -> None:
    """Each of these characters takes six bytes."""
    source = Source("\u8def" * length, "v", 10)
    path = write(tmp_path / "store", [[1, 2, 3, 4]], source)
    opened = Datastore(path)
    opened.verify()
    assert opened.header.tokenizer == source.tokenizer
    assert [ids.tolist() for ids in documents_of(opened)] == [[1, 2, 3, 4]]


def test_the_numbers_of_the_largest_header_have_room() -> None:
    most = (1 << 64) - 1
    sections = {name: Section(most, most, most, most) for name in ("tokens", "places", "starts")}
    assert len(pack_header(Header("", "", most, most, most, most, sections))) < NUMBERS_ROOM
