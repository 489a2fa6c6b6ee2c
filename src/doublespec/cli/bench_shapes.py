"""`doublespec bench-shapes`: how near the memory's limit shapes come whose weights are not at hand.

What is found is written to the report as soon as it is found: a run that is killed leaves it, and a
part that fails is said to have failed, and the others go on.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from doublespec.bench.limits import BUFFER_BYTES
from doublespec.bench.outputs import check_different, check_file, write_output
from doublespec.bench.provenance import provenance
from doublespec.bench.shapes_markdown import as_markdown
from doublespec.cli import options
from doublespec.cli.bench import method_names
from doublespec.cli.options import errors, terminal
from doublespec.cli.shape_models import Bench, Plan
from doublespec.cli.shape_parts import PARTS
from doublespec.errors import ConfigError
from doublespec.models.checkpoints import open_source
from doublespec.models.devices import describe
from doublespec.models.random_weights import RANDOM

_CONTEXTS, _ROWS = "1024,8192,32768", "1,16,64"
_MARGIN = 512  # tokens of the context behind the longest of these

Report = dict[str, Any]


def bench_shapes(
    random_weights: Annotated[
        str,
        typer.Option("--random-weights", metavar="TARGET[,DRAFT]", help="As `doublespec bench`."),
    ],
    parts: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(PARTS)}. Default: all.")
    ] = "",
    contexts: Annotated[str, typer.Option(help="Tokens before what is measured.")] = _CONTEXTS,
    rows: Annotated[str, typer.Option(help="Rows of a forward.")] = _ROWS,
    tokens: Annotated[int, typer.Option(help="Tokens to decode at each context.")] = 40,
    repeats: Annotated[int, typer.Option(help="Forwards over each number of rows.")] = 20,
    replay: Annotated[
        list[Path] | None, typer.Option(help="Trace file or folder to replay; repeatable.")
    ] = None,
    agreements: Annotated[
        str,
        typer.Option(help="Shares of places where the draft is right; raw: as recorded."),
    ] = "0.82,raw",
    methods: Annotated[str, typer.Option(help="Methods that replay.")] = "",
    limit: Annotated[int, typer.Option(help="Answers to replay, spread over files.")] = 8,
    max_tokens: options.MaxTokens = 128,
    part_seconds: Annotated[
        float, typer.Option(help="A part that has taken so long begins nothing more.")
    ] = 120.0,
    max_length: options.MaxLength = None,
    gamma: options.Gamma = None,
    background: options.Background = "process",
    target_device: options.TargetDevice = None,
    draft_device: options.DraftDevice = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    kernels: options.Kernels = None,
    graphs: options.Graphs = True,
    threads: options.Threads = None,
    buffer_mib: Annotated[int, typer.Option(help="What bandwidth is measured on.")] = BUFFER_BYTES
    >> 20,
    add: Annotated[
        bool, typer.Option("--add", help="Keep the other parts that the report has already.")
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="The report; runs are kept beside it.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as a document.")] = None,
    force: options.Force = False,
) -> None:
    """Measure random weights of a shape part by part, against the limit that memory sets; exit code
    1 if a part fails."""
    check_different(json_path, markdown)
    for path in (json_path, markdown):
        check_file(path, force=force or add)
    chosen = _parts(parts)
    target, draft = options.model_names("bundled", None, random_weights)
    draft = options.draft_name(target, draft)
    lengths = _numbers("contexts", contexts)
    counts = {"tokens": tokens, "repeats": repeats, "limit": limit, "max-tokens": max_tokens}
    for name, value in {**counts, "buffer-mib": buffer_mib}.items():
        options.check_count(name, value)
    settings = {
        "gamma": gamma,
        "background": background,
        "target_device": target_device,
        "draft_device": draft_device,
        "dtype": dtype,
        "quantize": quantize,
        "kernels": kernels,
        "graphs": graphs,
        "max_length": max_length or _length(target, lengths[-1]),
        "threads": threads,
        "history_bytes": 0,
    }
    plan = Plan(
        target,
        draft,
        settings,
        contexts=lengths,
        rows=_numbers("rows", rows),
        tokens=tokens,
        repeats=repeats,
        traces=tuple(path.absolute() for path in replay or ()),
        agreements=tuple(_agreement(text) for text in agreements.split(",")),
        methods=tuple(method_names(methods, draft)),
        limit=limit,
        max_tokens=max_tokens,
        buffer_bytes=buffer_mib << 20,
        kept=json_path,
    )
    bench = Bench(plan)
    report = _begun(json_path, add) or _new_report(bench)
    try:
        for name in chosen:
            for _ in _measure(bench, name, report, part_seconds):
                if json_path is not None:
                    options.write_json(json_path, report)
            bench.tidy()
    finally:
        bench.close()
        if markdown is not None:
            write_output(markdown, as_markdown(report))
    if any(report["parts"][name]["stopped"] for name in chosen):
        raise typer.Exit(1)


def _measure(bench: Bench, name: str, report: Report, most: float) -> Iterator[None]:
    """Puts into the report what a part finds, and says so; yields after each."""
    command = " ".join(["doublespec", *sys.argv[1:]])
    part: Report = {"command": command, "found": {}, "seconds": 0.0, "stopped": None}
    report["parts"][name] = part
    begun = perf_counter()
    try:
        for key, found in PARTS[name](bench):
            part["found"][key] = found
            part["seconds"] = perf_counter() - begun
            _say(f"{name}, {key}, after {part['seconds']:.1f} s: {_short(found)}")
            yield
            if part["seconds"] > most:
                part["stopped"] = f"stopped after {part['seconds']:.0f} s"
                break
    except Exception as error:  # whatever a device or a library raises: the other parts go on
        part["stopped"] = f"{type(error).__name__}: {error}"
    if part["stopped"]:
        said = f"{name}: {part['stopped']}"
        errors.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
    yield


def _say(text: str) -> None:
    terminal.print(text, markup=False, highlight=False, soft_wrap=True)


def _short(found: Mapping[str, Any]) -> str:
    """The numbers of a finding, in a line."""
    if "results" in found:
        speeds = {name: rows["all"] for name, rows in found["results"].items()}
        shown = [
            f"{name.partition(' ')[0]} {row['tokens_per_second']:.1f} ({_ratio(row['ratio'])})"
            for name, row in speeds.items()
        ]
        return ", ".join([*shown, *found["faults"]])
    facts = {name: _shown(value) for name, value in found.items()}
    return ", ".join(f"{name} {fact}" for name, fact in facts.items() if fact)


def _shown(value: object) -> str:
    """A value, as far as it fits in a line: of a method how far its simulation is off."""
    if isinstance(value, dict):
        if "differs" in value:
            return f"{value['differs']:+.0%}"
        numbers = {key: number for key, number in value.items() if isinstance(number, float)}
        return " ".join(f"{key}: {number:.4g}" for key, number in numbers.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, int | str) else ""


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _new_report(bench: Bench) -> Report:
    names = [name for name in (bench.plan.target, bench.plan.draft) if name is not None]
    origin = {
        **provenance(),
        "device": describe(bench.device),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "quantize": bench.plan.settings["quantize"],
    }
    title = ", draft ".join(name.removeprefix(RANDOM) for name in names)
    return {"title": title, "provenance": origin, "parts": {}}


def _begun(path: Path | None, add: bool) -> Report | None:
    """The report that parts are added to, if there is one. Raises ConfigError."""
    if path is None or not add or not path.exists():
        return None
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
        report["parts"], report["provenance"], report["title"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no report of bench-shapes; leave out --add") from error
    return report


def _length(target: str, longest: int) -> int:
    """Room for the longest context and what is measured behind it, as far as the model has it."""
    config = open_source(target).config
    return min(longest + _MARGIN, config.max_length) if config else longest + _MARGIN


def _parts(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or list(PARTS)
    unknown = next((name for name in names if name not in PARTS), None)
    if unknown is not None:
        raise ConfigError(f"parts must be of {', '.join(PARTS)}, got {unknown!r}")
    return names


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise ConfigError(f"{name} must be whole numbers from 1 up like 1,16,64, got {text!r}")
    return tuple(numbers)


def _agreement(text: str) -> float | None:
    if text.strip() == "raw":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"agreements must be shares like 0.82, or raw, comma-separated, got {text!r}"
        ) from error
