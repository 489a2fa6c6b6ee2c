"""`doublespec bench-overhead`: what a step costs outside the models."""

from dataclasses import asdict

from rich.table import Table

from doublespec.bench.overhead import measure_overhead
from doublespec.cli import options
from doublespec.cli.options import terminal

_CONTEXTS = (1_000, 32_000)
_STEPS = 200


def overhead(as_json: options.AsJson = False) -> None:
    """Measure the engine's own time a step, on toy models."""
    rows = measure_overhead(_CONTEXTS, _STEPS)
    if as_json:
        options.print_json({"overhead": [asdict(row) for row in rows]})
        return
    table = Table(
        "loop",
        "context (tokens)",
        "outside the models (microseconds a step, median)",
        "beside it, by the draft",
    )
    for row in rows:
        beside = f"{row.beside_seconds * 1e6:.0f}" if row.beside_seconds else ""
        table.add_row(row.loop, f"{row.context:,}", f"{row.seconds * 1e6:.0f}", beside)
    terminal.print(table)
