"""Reads text files and folders of them, piece by piece. Knows file names, not tokens."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from pathspec import GitIgnoreSpec

from doublespec.errors import DatastoreError

PIECE = 1 << 20  # bytes read at once: a file of one line of a gigabyte needs no more memory
LONGEST_RECORD = 64 << 20  # bytes of a line of .jsonl
TEXT: Final = frozenset({".txt", ".md", ".rst"})
CODE: Final = frozenset(
    {".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".go", ".h", ".hpp", ".html", ".java", ".jl", ".js"}
    | {".json", ".jsx", ".kt", ".lua", ".m", ".php", ".pl", ".ps1", ".py", ".r", ".rb", ".rs"}
    | {".scala", ".sh", ".sql", ".swift", ".toml", ".ts", ".tsx", ".yaml", ".yml", ".zig"}
)
RECORDS: Final = frozenset({".jsonl"})


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and globs name; of folders those with a known ending that no .gitignore
    excludes. Raises DatastoreError for a pattern that names nothing."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = [Path(pattern)] if _exists(pattern) else _expand(pattern)
        for path in paths:
            found |= dict.fromkeys(_walk(path) if path.is_dir() else [path])
    return list(found)


def read_texts(path: Path, record_field: str) -> Iterator[str]:
    """The texts of one file: of .jsonl that field of each line, else the file in pieces.

    Raises DatastoreError for what is damaged, not UTF-8 text, not JSON, or has no such field.
    """
    try:
        with _open(path) as file:
            yield from (
                _records(path, file, record_field) if _ending(path) in RECORDS else _pieces(file)
            )
    except UnicodeDecodeError as error:
        raise DatastoreError(f"{path} is not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatastoreError(f"cannot read {path}: {reason}") from error


def _exists(name: str) -> bool:
    """Whether a path names something: an empty one does not, nor does one that is too long."""
    try:
        return name != "" and Path(name).exists()
    except OSError:
        return False


def _expand(pattern: str) -> list[Path]:
    root = Path(Path(pattern).anchor)
    parts = Path(pattern).relative_to(root).as_posix()
    try:
        paths = sorted(root.glob(parts)) if any(mark in parts for mark in "*?[") else []
    except (OSError, ValueError) as error:  # a name that is too long, or `a**b`
        raise DatastoreError(f"cannot look for {pattern!r}: {error}") from error
    if not paths:
        raise DatastoreError(f"there is no file or folder {pattern!r}")
    return paths


def _walk(folder: Path) -> Iterator[Path]:
    """The readable files below a folder, in the order of their names."""
    ignored: list[tuple[Path, GitIgnoreSpec]] = []
    for name, folders, files in os.walk(folder):
        here = Path(name)
        if ".gitignore" in files:
            ignored.append((here, _rules(here / ".gitignore")))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not _is_ignored(here / name, "/", ignored)
        )
        for file in sorted(files):
            path = here / file
            if _ending(path) in TEXT | CODE | RECORDS and not _is_ignored(path, "", ignored):
                yield path


def _rules(path: Path) -> GitIgnoreSpec:
    """What a .gitignore leaves out. One that cannot be read says nothing, nor does a line of it
    that is no pattern."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return GitIgnoreSpec.from_lines(line for line in lines if _is_rule(line))


def _is_rule(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):
        return False
    return True


def _is_ignored(path: Path, end: str, ignored: list[tuple[Path, GitIgnoreSpec]]) -> bool:
    return any(
        spec.match_file(path.relative_to(root).as_posix() + end)
        for root, spec in ignored
        if path.is_relative_to(root)
    )


def _ending(path: Path) -> str:
    """The ending that says what a file holds; .gz is looked through."""
    return Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _pieces(file: IO[bytes]) -> Iterator[str]:
    """The text in pieces, cut at line ends where there are any."""
    rest, block = b"", file.read(PIECE)
    while block:
        following = file.read(PIECE)
        rest += block
        stop = (rest.rfind(b"\n") + 1 or _characters(rest)) if following else len(rest)
        if text := _decode(rest[:stop]):
            yield text
        rest, block = rest[stop:], following


def _characters(data: bytes) -> int:
    """Where the last character begins that may be cut in two."""
    stop = len(data)
    while stop and len(data) - stop < 4 and data[stop - 1] & 0xC0 == 0x80:
        stop -= 1
    return max(stop - 1, 0)


def _decode(data: bytes) -> str:
    if b"\0" in data:
        raise UnicodeDecodeError("utf-8", data, 0, 1, "a zero byte")
    return data.decode()


def _records(path: Path, file: IO[bytes], name: str) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_RECORD + 1):
        number += 1
        if len(line) > LONGEST_RECORD:
            raise DatastoreError(
                f"{path} has a line of over {LONGEST_RECORD >> 20} MB (line {number}): "
                "a record of .jsonl may not be longer"
            )
        if line.strip():
            yield _field(path, number, line, name)


def _field(path: Path, number: int, line: bytes, name: str) -> str:
    record = _parsed(path, number, _decode(line))
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise DatastoreError(
            f"{path} has no text in field {name!r} in line {number}: name another with --field"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = value[error.start]
        raise DatastoreError(f"{path} is not Unicode text in line {number}: {found!r}") from error
    return value


def _parsed(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line, parse_int=float)  # of any number of digits
    except json.JSONDecodeError as error:
        raise DatastoreError(f"{path} is not JSON in line {number}: {error.msg}") from error
    except RecursionError as error:
        raise DatastoreError(
            f"{path} is not JSON that Python reads in line {number}: too many brackets in another"
        ) from error
