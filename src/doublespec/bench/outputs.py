"""Files that a command writes at its end: checked at its beginning, written whole or not at all."""

import os
import sys
from pathlib import Path

from doublespec.errors import ConfigError


def check_file(path: Path | None, *, force: bool) -> None:
    """Raises ConfigError if a file could not be written there, or stands there and may not be
    overwritten."""
    if path is None:
        return
    if str(path) == "-":
        raise ConfigError("this output cannot go to stdout; name a file instead of -")
    folder = path.parent
    if not folder.is_dir():
        raise ConfigError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {path}: the folder {folder} may not be written to")
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; give another name, or --force to overwrite it")


def check_output(path: Path | None, *, force: bool) -> None:
    """`check_file` for an output that may be stdout, named "-"."""
    if path is None or str(path) != "-":
        check_file(path, force=force)


def check_different(*paths: Path | None) -> None:
    """Raises ConfigError if two of these outputs are the same."""
    given = [path for path in paths if path is not None]
    twice = next((path for path in given if given.count(path) > 1), None)
    if twice is not None:
        raise ConfigError(f"two reports cannot both be written to {twice}; give another name")


def write_output(path: Path, text: str) -> None:
    """`replace_file` for an output that may be stdout, named "-"."""
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        replace_file(path, text.encode())


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file: whole, or not at all. Raises ConfigError where the system refuses (a full
    disk, a folder that has gone)."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
