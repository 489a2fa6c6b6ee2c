"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE
from typing import IO

from doublespec.errors import DatastoreError


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when all went well, and is gone otherwise.

    Who may read it: those who may read what it replaces, else `mode` less the umask. A link stays,
    what it names is replaced. Raises DatastoreError where the system refuses: no permission, no
    folder, a full disk.
    """
    place = Path(os.path.realpath(path))
    waiting = place.with_name(f".{place.name}.{token_hex(8)}.tmp")
    try:
        old = _mode(place)
        file = _create(waiting, mode if old is None else old)
    except OSError as error:
        raise DatastoreError(f"cannot write {path}: {error.strerror}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if old is not None:
            waiting.chmod(old)
        waiting.replace(place)
    except OSError as error:
        raise DatastoreError(f"cannot write {path}: {error.strerror}") from error
    finally:
        waiting.unlink(missing_ok=True)


def _mode(path: Path) -> int | None:
    """Who may read, write and run a file, if there is one."""
    try:
        return S_IMODE(path.stat().st_mode) & 0o777
    except FileNotFoundError:
        return None


def _create(path: Path, mode: int) -> IO[bytes]:
    """A new file to write, open to us even where `mode` is not; the system takes off the umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, mode), "wb")
