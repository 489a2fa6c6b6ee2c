"""`doublespec bench-retrieval`: every index on real answers, and what a lookup costs."""

from dataclasses import asdict
from pathlib import Path
from random import Random
from statistics import mean
from typing import Annotated, Any

import typer
from rich.table import Table

from doublespec.bench.retrieval import Trace, Worth, not_stored, peers, read_traces, replay
from doublespec.bench.retrieval_cost import append_us, bytes_per_token, index_cost, store_cost
from doublespec.cli import options
from doublespec.cli.options import errors, terminal
from doublespec.llm import find_bundled
from doublespec.models.checkpoints import find_folder
from doublespec.retrieval.context import ContextIndex, context_sources
from doublespec.retrieval.datastore import Datastore, fingerprint
from doublespec.retrieval.layered import LayeredIndex
from doublespec.text import TextCodec

_CONTEXTS = (1_000, 32_000, 100_000)

Figures = dict[str, dict[str, Worth]]  # file -> index -> worth


def bench_retrieval(
    traces: Annotated[
        Path | None,
        typer.Option(help="Answers, .jsonl or .jsonl.gz, or a folder. Default: cost alone."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Answers of each file.")] = 60,
    datastore: Annotated[
        list[Path] | None, typer.Option(help="A store to add to the context; may be repeated.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="The traces are text; encode them for this model.")
    ] = None,
    cost: Annotated[bool, typer.Option(help="Measure the cost as well.")] = True,
    as_json: options.AsJson = False,
) -> None:
    """Replay real answers with every index, and measure what lookups cost."""
    codec = None if tokenizer is None else TextCodec(find_folder(find_bundled(tokenizer, "target")))
    vocabulary = None if codec is None else fingerprint(codec.vocabulary)
    stores = [Datastore(path, vocabulary) for path in datastore or []]
    encode = None if codec is None else codec.encode
    files = {} if traces is None else read_traces(traces, limit, encode)
    worth = _worth({name: _checked(name, found, stores) for name, found in files.items()}, stores)
    costs = _cost(files, stores) if cost else {}
    if as_json:
        plain = {
            file: {index: asdict(figures) for index, figures in indexes.items()}
            for file, indexes in worth.items()
        }
        options.print_json({"worth": plain, "cost": costs})
    else:
        _print_worth(worth)
        _print_cost(costs)


def _checked(name: str, traces: list[Trace], stores: list[Datastore]) -> list[Trace]:
    """The traces that may be measured on: an answer that is in a store would prove nothing."""
    kept = not_stored(traces, stores)
    if len(kept) < len(traces):
        errors.print(
            f"[yellow]left out:[/yellow] {len(traces) - len(kept)} of {len(traces)} answers of "
            f"{name}, since text of theirs is in the datastore",
            highlight=False,
        )
    return kept


def _worth(files: dict[str, list[Trace]], stores: list[Datastore]) -> Figures:
    found: Figures = {}
    with options.progress_bar() as bar:
        for file, traces in files.items():
            indexes = peers(traces, stores)
            task = bar.add_task(file, total=len(indexes))
            found[file] = {}
            for name, index in indexes.items():
                found[file][name] = replay(traces, index)
                bar.advance(task)
    return found


def _cost(files: dict[str, list[Trace]], stores: list[Datastore]) -> dict[str, Any]:
    """Costs on the text of the traces, one after the other; without traces, on its own numbers."""
    text = [token for traces in files.values() for t in traces for token in t.prompt + t.answer]
    longest = (text or _made_up(_CONTEXTS[-1]))[: _CONTEXTS[-1]]
    costs: dict[str, Any] = {
        "append_us": append_us(longest),
        "bytes_per_token": bytes_per_token(longest),
    }
    for size in (size for size in _CONTEXTS if size <= len(longest)):
        costs[f"context index, {size:,} tokens"] = asdict(
            index_cost(ContextIndex(), longest[:size], 500)
        )
        layered = LayeredIndex(context_sources())
        costs[f"all of the context, {size:,} tokens"] = asdict(
            index_cost(layered, longest[:size], 500)
        )
    ends = [longest[stop - 64 : stop] for stop in range(64, len(longest), 20)] or [longest]
    for store in stores:
        costs[f"datastore {store.path.name}"] = asdict(store_cost(store, ends))
    return costs


def _made_up(length: int) -> list[int]:
    """Tokens as unlike each other in number as those of a text."""
    made = Random(0)
    return [int(1 / (made.random() + 1e-5)) for _ in range(length)]


def _print_worth(worth: Figures) -> None:
    if not worth:
        return
    table = Table("index", *worth, "mean", title="tokens settled a step / rows shown per token")
    for name in next(iter(worth.values())):
        cells = [indexes[name] for indexes in worth.values()]
        cells.append(
            Worth(mean(c.tokens_per_step for c in cells), mean(c.rows_per_token for c in cells))
        )
        table.add_row(name, *(f"{c.tokens_per_step:.2f} / {c.rows_per_token:.2f}" for c in cells))
    terminal.print(table)


def _print_cost(costs: dict[str, Any]) -> None:
    for name, value in costs.items():
        facts = value if isinstance(value, dict) else {"": value}
        shown = ", ".join(f"{fact.replace('_', ' ')} {number:,}" for fact, number in facts.items())
        terminal.print(f"{name.replace('_', ' ')}: {shown}", highlight=False)
