"""The command line: people on one side, the Python API on the other."""

import errno
import os
import sys
from io import TextIOWrapper
from typing import Annotated

import typer
from rich.markup import escape

from doublespec import __version__
from doublespec.cli import datastore
from doublespec.cli.bench import bench
from doublespec.cli.bench_retrieval import bench_retrieval
from doublespec.cli.bench_shapes import bench_shapes
from doublespec.cli.chat import chat
from doublespec.cli.demo import demo
from doublespec.cli.doctor import doctor
from doublespec.cli.generate import generate
from doublespec.cli.lossless import lossless
from doublespec.cli.options import errors, terminal
from doublespec.cli.overhead import overhead
from doublespec.cli.simulate import simulate
from doublespec.cli.trace import trace
from doublespec.errors import ConfigError, DoubleError

app = typer.Typer(
    name="doublespec",
    help="Fast, exact decoding: the answer of plain decoding, bit for bit, in fewer steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        terminal.print(f"doublespec {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def begin(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """What all commands share."""


for command in (generate, chat, demo, doctor, lossless, bench, simulate, trace):
    app.command()(command)
app.command("bench-overhead")(overhead)
app.command("bench-retrieval")(bench_retrieval)
app.command("bench-shapes")(bench_shapes)
app.add_typer(datastore.app, name="datastore")


_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def main() -> None:
    """Runs a command. A user's mistake is one sentence and exit code 2; Ctrl-C is exit code 130;
    output that cannot be written is exit code 1."""
    try:
        _run()
    except DoubleError as error:
        _print_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        _drop_output()
        _print_error(f"the output cannot be written: {error.strerror}; write it to another place")
        sys.exit(1)


def _run() -> None:
    """Runs a command, and writes out what it has printed."""
    if sys.stdout is None:
        raise ConfigError(
            "stdout is closed, and the output goes there; give it a file or /dev/null"
        )
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # characters that the terminal does not have
    try:
        app()
    finally:
        sys.stdout.flush()


def _drop_output() -> None:
    """Sends what is still to be written nowhere: Python would try it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(message: str) -> None:
    errors.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
