"""Earlier answers: whose they are, how long they are kept, and what is written to disk."""

import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doublespec.errors import DatastoreError
from doublespec.retrieval import shared
from doublespec.retrieval.files import replacing
from doublespec.retrieval.history import FORMAT, Entry, History

Text = list[int]
HEADER = json.dumps({"format": FORMAT, "vocabulary": "llama"}).encode() + b"\n"
texts = st.lists(st.integers(0, 3), min_size=1, max_size=12)
posix = pytest.mark.skipif(
    sys.platform == "win32", reason="modes and links are not like that there"
)


@pytest.fixture(params=[0o077, 0o022])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def longest_by_scan(kept: list[Text], text: Text) -> int:
    """The depth of the longest suffix of `text` after which a kept text goes on."""
    depths = [0]
    for other in kept:
        for stop in range(1, len(other)):
            depth = 0
            while depth < min(stop, len(text)) and other[stop - 1 - depth] == text[-1 - depth]:
                depth += 1
            depths.append(depth)
    return max(depths)


@settings(max_examples=150, deadline=None)
@given(kept=st.lists(texts, max_size=8), text=texts)
def test_history_finds_the_longest_match_of_a_scan(kept: list[Text], text: Text) -> None:
    history = History()
    for tokens in kept:
        history.add(tokens)
    match = history.index().lookup(text, 4)
    assert (0 if match is None else match.depth) == longest_by_scan(kept, text)
    assert history.index().may_know(text) == (longest_by_scan(kept, text) >= 4)
    assert not history.index("another").may_know(text)
    if match is not None:
        found = [*text[len(text) - match.depth :], *match.tokens]
        spans = [other[i : i + len(found)] for other in kept for i in range(len(other))]
        assert found in spans, "a run never leaves the text it is from"


@settings(max_examples=100, deadline=None)
@given(mine=st.lists(texts, max_size=5), theirs=st.lists(texts, max_size=5), text=texts)
def test_one_tenant_is_never_offered_the_text_of_another(
    mine: list[Text], theirs: list[Text], text: Text
) -> None:
    alone, shared = History(), History()
    for tokens in mine:
        alone.add(tokens, "mine")
    for tokens in [*theirs, *mine, *theirs]:
        shared.add(tokens, "mine" if tokens in mine else "theirs")
    for tokens in theirs:
        if tokens not in mine:
            shared.add(tokens, "mine!")
    only = [tokens for tokens in mine if tokens not in theirs]
    if only == mine:
        assert shared.index("mine").lookup(text, 9) == alone.index("mine").lookup(text, 9)
    assert shared.index("nobody").lookup(text, 9) is None


def test_what_was_answered_is_found_again() -> None:
    history = History()
    index = history.index("ann")
    assert index.lookup([1, 2], 5) is None
    history.add([1, 2, 3, 4], "ann")
    match = index.lookup((0, 1, 2), 5)
    assert match is not None
    assert (match.tokens, match.depth, match.source) == ((3, 4), 2, "history")
    assert history.index("bob").lookup([1, 2], 5) is None


def test_the_oldest_texts_go_first_and_the_bytes_are_bounded() -> None:
    history = History(most_bytes=1_000_000)
    for number in range(300):
        history.add(list(range(1000 * number, 1000 * number + 200)), f"tenant {number % 3}")
    assert os.fstat(history.descriptor).st_size == 1_000_000
    kept = {entry.tokens[0] // 1000 for entry in history.entries()}
    assert kept == set(range(min(kept), 300))
    assert 20 < len(kept) < 200


def test_a_half_whose_emptying_was_interrupted_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is added next is found, and so is all that follows."""
    history, text = History(1 << 16), [i * i % 97 for i in range(200)]
    room = history._texts.halves[0].capacity
    for number in range(2 * room // 200):
        history.add([(i * i + number) % 991 for i in range(200)])

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shared, "array", interrupted)
        for _ in range(room):
            history.add(text)
    for _ in range(50):
        history.add(text)
        assert history.index().lookup(text[:50], 8) is not None


def test_a_text_too_large_for_the_bytes_is_not_kept() -> None:
    history = History(most_bytes=300_000)
    history.add([1, 2, 3])
    history.add(list(range(10_000)))
    assert [entry.tokens for entry in history.entries()] == [[1, 2, 3]]


def test_a_saved_history_is_the_same_when_loaded(tmp_path: Path) -> None:
    history, again = History(), History()
    history.add([1, 2, 3], "ann")
    history.add([], "ann")
    history.add([4, 5], "bob")
    history.save(tmp_path / "history", "llama")
    again.load(tmp_path / "history", "llama")
    assert list(again.entries()) == list(history.entries())
    assert list(again.entries())[-1] == Entry("bob", [4, 5])
    assert [path.name for path in tmp_path.iterdir()] == ["history"]


def ended(lines: bytes) -> bytes:
    """A file that is whole, whatever is in it."""
    count, checksum = lines.count(b"\n"), zlib.crc32(lines)
    return lines + json.dumps({"lines": count, "checksum": checksum}).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04]",
        b"[1]\n",
        ended(b'{"format": "doublespec history 1", "vocabulary": "llama"}\n'),
        ended(HEADER.replace(b"llama", b"other")),
        HEADER,
        ended(HEADER + b'{"tenant": "a"}\n'),
        ended(HEADER + b"[1, 2]\n"),
        ended(HEADER + b'{"tenant": "a", "tokens": [-1]}\n'),
        b"[" * 100_000,
    ],
)
def test_what_is_no_history_is_refused_and_adds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    history = History()
    with pytest.raises(DatastoreError, match="file"):
        history.load(tmp_path / "file", "llama")
    assert list(history.entries()) == []


def test_a_history_that_cannot_be_written_or_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatastoreError, match="cannot write"):
        History().save(tmp_path / "missing" / "file", "llama")
    with pytest.raises(DatastoreError, match="cannot read"):
        History().load(tmp_path / "missing", "llama")


@pytest.mark.parametrize("damage", ["cut", "changed", "swapped", "more"])
def test_a_damaged_history_is_refused(tmp_path: Path, damage: str) -> None:
    path, history = tmp_path / "file", History()
    for text in ([1, 2, 3], [4, 5, 6]):
        history.add(text, "ann")
    history.save(path, "llama")
    header, first, second, end = path.read_bytes().splitlines(keepends=True)
    lines = {
        "cut": [header, first],
        "changed": [header, first.replace(b"2", b"7"), second, end],
        "swapped": [header, second, first, end],
        "more": [header, first, second, second, end],
    }
    path.write_bytes(b"".join(lines[damage]))
    again = History()
    with pytest.raises(DatastoreError, match="damaged"):
        again.load(path, "llama")
    assert list(again.entries()) == []


@posix
def test_a_new_file_is_as_open_as_its_owner_wants_and_a_history_is_private(
    tmp_path: Path, umask: int
) -> None:
    with replacing(tmp_path / "store") as file:
        file.write(b"text")
    History().save(tmp_path / "history", "llama")
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    with replacing(path) as file:
        file.write(b"text")
    assert path.stat().st_mode & 0o777 == mode
    assert path.read_bytes() == b"text"


@posix
def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(Path("there", "file"))
    for text in (b"first", b"second"):
        with replacing(tmp_path / "link") as file:
            file.write(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "file").read_bytes() == text
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
