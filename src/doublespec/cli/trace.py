"""`doublespec trace`: looks at what `generate --trace` has recorded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from doublespec.bench.outputs import check_file, replace_file
from doublespec.cli import options
from doublespec.cli.lanes import Drawing, in_ascii, legend
from doublespec.cli.options import terminal
from doublespec.decoding import Step
from doublespec.errors import ConfigError
from doublespec.stats import summarise
from doublespec.trace.chrome import chrome_trace
from doublespec.trace.jsonl import as_jsonl, read_jsonl
from doublespec.trace.lanes import Timeline, draft_lane, from_zero, target_lane


def trace(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="From `generate --trace`, .jsonl.")],
    start: Annotated[int, typer.Option(help="First step to draw.")] = 1,
    num_steps: Annotated[int, typer.Option("--steps", help="How many steps to draw.")] = 24,
    svg: Annotated[Path | None, typer.Option(help="Draw them as an SVG file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw them as a PNG file.")] = None,
    chrome: Annotated[
        Path | None, typer.Option(help="Write the whole trace as JSON for Perfetto.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Draw what happened: the draft's lane above, the target's below."""
    for output in (svg, png, chrome):
        check_file(output, force=force)
    options.check_pictures(svg, png)
    timeline = read_jsonl(path)
    chosen = _choose(len(timeline.steps), start, num_steps)
    _print(timeline, chosen, terminal)
    if chrome is not None:
        replace_file(chrome, json.dumps(chrome_trace(timeline), ensure_ascii=False).encode())
    if svg is not None or png is not None:
        _draw(timeline, chosen, svg, png)


def _draw(timeline: Timeline, chosen: range, svg: Path | None, png: Path | None) -> None:
    from doublespec.bench.timeline import draw_timeline  # needs the extra `bench`

    title = _title(timeline, chosen)
    if svg is not None:
        replace_file(svg, draw_timeline(timeline, chosen, "svg", title))
    if png is not None:
        replace_file(png, draw_timeline(timeline, chosen, "png", title))


def write_trace(path: Path, timeline: Timeline) -> None:
    """Writes a trace in the format that the file's name asks for."""
    if path.suffix == ".json":
        text = json.dumps(chrome_trace(timeline), ensure_ascii=False)
    else:
        text = as_jsonl(timeline)
    replace_file(path, text.encode())


def check_trace_path(path: Path | None, *, force: bool) -> None:
    """Raises ConfigError if a trace could not be written there."""
    if path is not None and path.suffix not in (".json", ".jsonl"):
        raise ConfigError(
            f"a trace is written to a file .jsonl (for `doublespec trace`) or .json (for "
            f"Perfetto), got {path}"
        )
    check_file(path, force=force)


def _choose(total: int, start: int, num_steps: int) -> range:
    """The steps to draw, counted from 0; raises ConfigError if there are none."""
    if num_steps < 1:
        raise ConfigError(f"--steps must be a whole number from 1 up, got {num_steps}")
    if not 1 <= start <= max(total, 1):
        raise ConfigError(f"the trace has {total} steps; --start must be one of them, got {start}")
    return range(start - 1, min(total, start - 1 + num_steps))


def _print(timeline: Timeline, chosen: range, console: Console) -> None:
    console.print(_title(timeline, chosen), style="bold", highlight=False, markup=False)
    steps = from_zero(timeline.steps)
    if chosen:
        shown = target_lane(steps)[chosen.start : chosen.stop]
        lines = list(Drawing(shown, draft_lane(steps), console.width).lines())
        _print_drawing(lines, console)
    console.print(figures(timeline.steps), highlight=False)


def _title(timeline: Timeline, chosen: range) -> str:
    names = timeline.target + (f", drafted by {timeline.draft}" if timeline.draft else "")
    title = f"{timeline.method}: {names}"
    if len(chosen) < len(timeline.steps):
        title += f"; steps {chosen.start + 1} to {chosen.stop} of {len(timeline.steps)}"
    return title


def _print_drawing(lines: Sequence[Text], console: Console) -> None:
    known = console.encoding.lower().startswith("utf")
    shown, signs = (
        [line if known else in_ascii(line) for line in part] for part in (lines, legend(lines))
    )
    for line in shown:
        console.print(line)
    console.print(Columns(signs, padding=(0, 3)))


def figures(steps: Sequence[Step]) -> str:
    """One line about all steps, for people."""
    stats = summarise(steps)
    return (
        f"{stats.steps} steps of {stats.mean_accepted_length:.2f} tokens, "
        f"{stats.seconds * 1e3:.0f} ms; bubbles {_percent(stats.bubbles)}, "
        f"draft idle {_percent(stats.draft_idle)}, "
        f"foreseen {_percent(stats.foreseen)}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
