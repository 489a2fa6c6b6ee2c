"""The command line: people on one side, the Python API on the other."""

import os
import sys

import typer
from rich.markup import escape

from doublespec.cli import datastore
from doublespec.cli.bench import bench
from doublespec.cli.bench_retrieval import bench_retrieval
from doublespec.cli.chat import chat
from doublespec.cli.demo import demo
from doublespec.cli.doctor import doctor
from doublespec.cli.generate import generate
from doublespec.cli.lossless import lossless
from doublespec.cli.options import errors
from doublespec.cli.overhead import overhead
from doublespec.cli.simulate import simulate
from doublespec.cli.trace import trace
from doublespec.errors import DoubleError

app = typer.Typer(
    name="doublespec",
    help="Fast, exact decoding: the answer of plain decoding, bit for bit, in fewer steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (generate, chat, demo, doctor, lossless, bench, simulate, trace):
    app.command()(command)
app.command("bench-overhead")(overhead)
app.command("bench-retrieval")(bench_retrieval)
app.add_typer(datastore.app, name="datastore")


def main() -> None:
    """Runs a command. A user's mistake is one sentence and exit code 2; Ctrl-C is exit code 130."""
    try:
        app()
    except DoubleError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
