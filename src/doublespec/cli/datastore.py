"""`doublespec datastore`: build, look into and check corpora on disk."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from doublespec.cli import options
from doublespec.cli.options import errors, terminal
from doublespec.errors import DatastoreError
from doublespec.llm import BUNDLED, find_bundled
from doublespec.models.checkpoints import find_folder
from doublespec.retrieval.building import Source, build, documents_of
from doublespec.retrieval.corpus import find_files, read_texts
from doublespec.retrieval.datastore import Datastore, Header, fingerprint
from doublespec.retrieval.encoding import at_most, encode_texts
from doublespec.text import TextCodec

app = typer.Typer(help="Corpora on disk that runs are retrieved from.", no_args_is_help=True)

Store = Annotated[Path, typer.Argument(help="The datastore file.")]
Paths = Annotated[
    list[str], typer.Argument(help="Files, folders or globs: .txt, .md, .rst, .jsonl, code, .gz.")
]
Field = Annotated[str, typer.Option("--field", help="The field of .jsonl that holds the text.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Read no more tokens than this.")]
MinFrequency = Annotated[
    int, typer.Option(min=1, help="Leave out places whose last 3 tokens are rarer than this.")
]
ModelName = Annotated[str, typer.Option(help="The model whose tokenizer it is.")]


@app.command("build")
def build_store(
    out: Store,
    paths: Paths,
    tokenizer: ModelName = BUNDLED,
    field: Field = "text",
    max_tokens: MaxTokens = None,
    min_frequency: MinFrequency = 1,
) -> None:
    """Write a datastore of text files. Do not put text into it that you evaluate on."""
    if out.exists():
        Datastore(out)  # only a datastore may be replaced
    folder = find_folder(find_bundled(tokenizer, "target"))
    vocabulary = TextCodec(folder).vocabulary
    source = Source(tokenizer, fingerprint(vocabulary), max(vocabulary.values()) + 1)
    with options.progress_bar() as bar:
        documents = _encoded(folder, paths, field, max_tokens, bar)
        header = build(out, documents, source, min_frequency)
    _show(out, header)


@app.command()
def add(store: Store, paths: Paths, field: Field = "text", max_tokens: MaxTokens = None) -> None:
    """Add text files to a datastore. Who has it open goes on reading the old one."""
    old = Datastore(store)
    folder = find_folder(find_bundled(old.header.tokenizer, "target"))
    vocabulary = TextCodec(folder).vocabulary
    Datastore(store, fingerprint(vocabulary))
    source = Source(old.header.tokenizer, old.header.vocabulary, max(vocabulary.values()) + 1)
    with options.progress_bar() as bar:
        new = _encoded(folder, paths, field, max_tokens, bar)
        header = build(store, chain(documents_of(old), new), source, old.header.min_frequency)
    _show(store, header)


@app.command()
def info(store: Store, as_json: options.AsJson = False) -> None:
    """What is in a datastore."""
    header = Datastore(store).header
    if as_json:
        options.print_json(_facts(store, header))
    else:
        _show(store, header)


@app.command()
def query(
    store: Store,
    text: Annotated[str, typer.Argument(help="The text to go on from.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Default: the one it was built with.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many places to show.")] = 8,
) -> None:
    """Show where the end of a text occurs, and what followed there."""
    name = tokenizer or Datastore(store).header.tokenizer
    codec = TextCodec(find_folder(find_bundled(name, "target")))
    opened = Datastore(store, fingerprint(codec.vocabulary))
    tokens = codec.encode(text)
    match = opened.lookup(tokens, 32)
    if match is None:
        terminal.print("nothing in the datastore follows this text")
        return
    table = Table("before", "what followed", title=f"the last {match.depth} tokens match")
    for before, run in opened.matches(tokens, limit):
        table.add_row(Text(repr(codec.decode(before))), Text(repr(codec.decode(run))))
    terminal.print(table)
    terminal.print(Text(f"shown to the target: {codec.decode(match.tokens)!r}"))


@app.command()
def verify(store: Store) -> None:
    """Read a whole datastore and compare its checksums."""
    Datastore(store).verify()
    terminal.print(f"{store} is as it was written", markup=False)


def _encoded(
    folder: Path, paths: Sequence[str], field: str, max_tokens: int | None, bar: Progress
) -> Iterator[NDArray[np.uint32]]:
    files = find_files(paths)
    task = bar.add_task("reading files", total=len(files))
    texts = _texts(files, paths, field, bar, task)
    encoded = encode_texts(_read_tokenizer(folder), texts)
    return encoded if max_tokens is None else at_most(encoded, max_tokens)


def _texts(
    files: list[Path], named: Sequence[str], field: str, bar: Progress, task: TaskID
) -> Iterator[str]:
    """The texts of all files. One that was named must be readable; of folders, what is not text
    is left out with a warning."""
    must_read = {str(Path(name)) for name in named}  # spelled as `files` are: without ./
    for path in files:
        try:
            yield from read_texts(path, field)
        except DatastoreError as error:
            if str(path) in must_read:
                raise
            said = f"[yellow]left out:[/yellow] {escape(str(error))}"
            errors.print(said, highlight=False, soft_wrap=True)
        bar.advance(task)


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DatastoreError(f"{folder} has no tokenizer.json, which building a datastore needs")
    return Tokenizer.from_file(str(path))


def _facts(path: Path, header: Header) -> dict[str, str | int | float]:
    num_bytes = path.stat().st_size
    return {
        "tokenizer": header.tokenizer,
        "vocabulary": header.vocabulary,
        "documents": header.num_documents,
        "tokens": header.num_tokens,
        "places": header.num_places,
        "min_frequency": header.min_frequency,
        "bytes": num_bytes,
        "bytes_per_token": round(num_bytes / header.num_tokens, 2),
    }


def _show(path: Path, header: Header) -> None:
    table = Table(title=escape(str(path)), show_header=False)
    for name, value in _facts(path, header).items():
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name.replace("_", " "), Text(shown))
    terminal.print(table)
