"""Machine code that was compiled before, in the user's cache: to compile the kernels of a model
takes a second or two of each start, and of its draft's.

A file's name tells the source, the compiler and the CPU, so that none is ever used for another. It
appears whole or not at all, and one that was damaged is compiled anew. Where the folder cannot be
written, all is compiled each time.
"""

import contextlib
import os
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

FOLDER = "DOUBLESPEC_CACHE"  # the environment's variable that names another folder
_HEADER = b"doublespec machine code 1\n"
_MOST = 64  # files, the latest ones used: other versions and models leave theirs behind


def find(source: str) -> bytes | None:
    """What `source`, with all that matters of compiler and CPU, was compiled to."""
    try:
        path = _path(source)
        found = path.read_bytes()
    except (OSError, RuntimeError):  # the latter: nobody knows where a home is
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it is of use
    size = len(_HEADER)
    header, digest, code = found[:size], found[size : size + 32], found[size + 32 :]
    return code if header == _HEADER and digest == sha256(code).digest() else None


def keep(source: str, code: bytes) -> None:
    """Keeps that, if the folder can be written."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(source)
        waiting = path.with_name(f".{path.name}.{token_hex(8)}.tmp")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            waiting.write_bytes(_HEADER + sha256(code).digest() + code)
            waiting.replace(path)
        finally:
            waiting.unlink(missing_ok=True)
        _tidy(path.parent)


def _tidy(folder: Path) -> None:
    by_age = sorted(folder.glob("*.code"), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-_MOST]:
        path.unlink(missing_ok=True)


def _path(source: str) -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get(FOLDER) or f"{caches}/doublespec").expanduser()
    return folder / f"{sha256(source.encode()).hexdigest()}.code"
