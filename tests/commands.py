"""The `doublespec` command, run in this process: a process of its own takes seconds to start."""

import io
import sys
from dataclasses import dataclass
from unittest.mock import patch

from doublespec.cli import main


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str


def run_command(
    *arguments: str, stdin: str | bytes = "", stdout: io.TextIOWrapper | None = None
) -> Outcome:
    """What the command prints and how it ends, in a terminal that is none. What goes to a `stdout`
    that is given is not told."""
    given = _stream(stdin.encode() if isinstance(stdin, str) else stdin)
    out, err = _stream(), _stream()
    code: object = 0
    with (
        patch.object(sys, "argv", ["doublespec", *arguments]),
        patch.object(sys, "stdin", given),
        patch.object(sys, "stdout", stdout or out),
        patch.object(sys, "stderr", err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Outcome(code, _read(out), _read(err))


def _stream(content: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", write_through=True)


def _read(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
