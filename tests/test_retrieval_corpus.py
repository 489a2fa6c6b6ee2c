"""What is read into a datastore, and the command that does it."""

import gzip
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from doublespec.cli.datastore import app
from doublespec.errors import DatastoreError
from doublespec.retrieval import corpus
from doublespec.retrieval.corpus import find_files, read_texts
from doublespec.retrieval.datastore import Datastore
from tests.checkpoints import write_tokenizer

LINE = "the token at a position is a function of the text before it\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "sub" / "build").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in ("a.txt", "sub/b.md", "sub/c.py", "sub/d.bin", "sub/build/e.txt", ".git/f.txt"):
        (folder / name).write_text(LINE + name)
    (folder / "sub" / ".gitignore").write_text("build/\n*.pyc\n")
    return folder


def texts(path: Path, name: str = "text") -> list[str]:
    return list(read_texts(path, name))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_folders_are_read_without_what_is_ignored_or_no_text(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in find_files([str(folder)])]
    assert names == ["a.txt", "sub/b.md", "sub/c.py"]


def test_globs_and_files_name_what_they_say_once(folder: Path) -> None:
    found = find_files([str(folder / "**" / "*.md"), str(folder / "sub/d.bin"), str(folder)])
    assert [path.name for path in found] == ["b.md", "d.bin", "a.txt", "c.py"]


def test_a_path_that_names_nothing_is_an_error(folder: Path) -> None:
    for pattern in (folder / "missing.txt", folder / "*.nothing"):
        with pytest.raises(DatastoreError, match="no file or folder"):
            find_files([str(pattern)])


@pytest.mark.parametrize("pattern", ["", "a**b", "x" * 300, "*/" + "x" * 300])
def test_what_cannot_be_a_path_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DatastoreError):
        find_files([pattern])


def test_what_is_wrong_in_a_gitignore_is_left_out(folder: Path) -> None:
    (folder / "sub" / ".gitignore").write_text("!\n\\\n[z-a]\nbuild/\n*.md\n!b.md\nc.py\n")
    assert [path.name for path in find_files([str(folder)])] == ["a.txt", "b.md"]


@pytest.mark.skipif(sys.platform == "win32", reason="a link needs a privilege there")
def test_a_gitignore_that_cannot_be_read_ignores_nothing(folder: Path) -> None:
    (folder / ".gitignore").symlink_to("missing")
    assert [path.name for path in find_files([str(folder)])] == ["a.txt", "b.md", "c.py"]


def test_a_record_may_hold_a_number_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": ' + "9" * 5000 + ', "text": "x"}\n')
    assert texts(tmp_path / "a.jsonl") == ["x"]
    with pytest.raises(DatastoreError, match="no text in field 'id'"):
        texts(tmp_path / "a.jsonl", "id")


def test_records_give_the_named_field_also_compressed(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": t, "body": t * 2}).encode() + b"\n" for t in ("x", "y"))
    (tmp_path / "a.jsonl").write_bytes(lines + b"\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    assert texts(tmp_path / "a.jsonl") == ["x", "y"]
    assert texts(tmp_path / "b.jsonl.gz", "body") == ["xx", "yy"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.txt", b"MZ\0\0", "not UTF-8"),
        ("a.jsonl", b"{", "not JSON in line 1"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', "no text in field 'text' in line 2"),
        ("a.jsonl", b"[1]\n", "no text in field"),
        ("a.jsonl", b"\xff\n", "not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800 abc"}\n', "not Unicode text in line 1"),
        ("a.jsonl", b"[" * 100_000, "not JSON that Python reads in line 1"),
        ("a.jsonl", b"9" * 5_000, "no text in field"),
        ("a.txt.gz", b"not gzip", "cannot read"),
        ("a.txt.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20, "cannot read"),
        ("a.txt.gz", gzip.compress(b"cut short " * 99, mtime=0)[:-12], "cannot read"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatastoreError, match=message):
        texts(tmp_path / name)


def test_a_long_line_is_read_in_pieces_that_join_to_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\u20ac\U0001f600x" * 500 + "\nend"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    for size in (5, 64, 1000):
        monkeypatch.setattr(corpus, "PIECE", size)
        pieces = texts(tmp_path / "a.txt")
        assert "".join(pieces) == text
        assert len(pieces) >= len(text.encode()) // (size + 4) - 1


def test_a_record_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "LONGEST_RECORD", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * (2 << 20) + '"}')
    with pytest.raises(DatastoreError, match=r"over 1 MB \(line 1\)"):
        texts(tmp_path / "a.jsonl")


def test_a_store_is_built_added_to_and_asked(folder: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (folder / "g.txt").write_bytes(b"\xff\xfe")
    output = run("build", store, folder, "--tokenizer", model)
    assert "left out" in output
    assert "g.txt" in output
    before = json.loads(run("info", store, "--json"))
    assert before["documents"] == 3
    (tmp_path / "more.txt").write_text("an unheard of zebra")
    run("add", store, tmp_path / "more.txt")
    after = json.loads(run("info", store, "--json"))
    assert after["documents"] == 4
    assert after["tokens"] > before["tokens"]
    answer = run("query", store, "the token at a")
    assert "position" in answer
    assert "zebra" in run("query", store, "an unheard of")
    assert "nothing in the datastore" in run("query", store, "\u20ac")
    assert "as it was" in " ".join(run("verify", store).split())


def test_no_more_tokens_are_read_than_asked(folder: Path, model: Path, tmp_path: Path) -> None:
    run("build", tmp_path / "store", folder, "--tokenizer", model, "--max-tokens", 20)
    assert Datastore(tmp_path / "store").header.num_tokens == 20


def test_a_build_replaces_nothing_but_a_datastore(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DatastoreError, match="not a datastore"):
        run("build", tmp_path / "thesis.txt", folder, "--tokenizer", model)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_named_file_that_is_no_text_stops_the_build(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DatastoreError, match="not UTF-8"):
        run("build", tmp_path / "store", tmp_path / "a.txt", "--tokenizer", model)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["./a.txt", "sub//../a.txt", ".//a.txt"])
def test_a_named_file_is_known_however_it_is_spelled(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(folder)
    Path("a.txt").write_bytes(b"\xff")
    with pytest.raises(DatastoreError, match="not UTF-8"):
        run("build", "store", name, "sub", "--tokenizer", model)
    assert not Path("store").exists()


def test_an_empty_corpus_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatastoreError, match="no text"):
        run("build", tmp_path / "store", tmp_path / "empty", "--tokenizer", model)


def test_a_store_is_not_asked_with_another_tokenizer(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    run("build", tmp_path / "store", folder, "--tokenizer", model)
    other = write_tokenizer(tmp_path / "other", vocab_size=290)
    with pytest.raises(DatastoreError, match="not this model's"):
        run("query", tmp_path / "store", "the token", "--tokenizer", other)
