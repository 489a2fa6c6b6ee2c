"""What took long to work out before, in the user's cache: machine code of kernels, and what
transformers made of a checkpoint's files, which take seconds of each start.

A file's name tells its kind and all that it was made from, so that none is ever used for another.
It appears whole or not at all, and one that was damaged is made anew. Where the folder cannot be
written, all is worked out each time.
"""

import contextlib
import os
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

FOLDER = "DOUBLESPEC_CACHE"  # the environment's variable that names another folder
_MOST = 64  # files of a kind, the latest ones used: other versions and models leave theirs behind


def find(kind: str, source: str) -> bytes | None:
    """What was made from `source`, in which is all that matters."""
    try:
        path = _path(kind, source)
        found = path.read_bytes()
    except (OSError, RuntimeError):  # the latter: nobody knows where a home is
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it is of use
    header = _header(kind)
    rest = found.removeprefix(header)
    digest, content = rest[:32], rest[32:]
    is_whole = found.startswith(header) and digest == sha256(content).digest()
    return content if is_whole else None


def keep(kind: str, source: str, content: bytes) -> None:
    """Keeps that, if the folder can be written."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(kind, source)
        waiting = path.with_name(f".{path.name}.{token_hex(8)}.tmp")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            waiting.write_bytes(_header(kind) + sha256(content).digest() + content)
            waiting.replace(path)
        finally:
            waiting.unlink(missing_ok=True)
        _tidy(path)


def _header(kind: str) -> bytes:
    return f"doublespec {kind} 1\n".encode()


def _tidy(latest: Path) -> None:
    alike = latest.parent.glob(f"*{latest.suffix}")
    by_age = sorted(alike, key=lambda path: path.stat().st_mtime)
    for path in by_age[:-_MOST]:
        path.unlink(missing_ok=True)


def _path(kind: str, source: str) -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get(FOLDER) or f"{caches}/doublespec").expanduser()
    return folder / f"{sha256(_header(kind) + source.encode()).hexdigest()}.{kind}"
