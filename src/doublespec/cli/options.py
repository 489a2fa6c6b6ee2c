"""What several commands share: their options, loading with a progress bar, printing."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from doublespec.bench.outputs import check_output, write_output
from doublespec.errors import ConfigError
from doublespec.llm import BUNDLED, LLM
from doublespec.models.configs import CONFIGS
from doublespec.models.random_weights import RANDOM

Target = Annotated[str, typer.Option(help="Target model: folder, hub id, or 'bundled'.")]
Draft = Annotated[
    str | None,
    typer.Option(help="Draft model, or 'none'. Default: 'bundled' beside the bundled target."),
]
Random = Annotated[
    str | None,
    typer.Option(
        "--random-weights",
        metavar="TARGET[,DRAFT]",
        help=f"Instead of models: random weights, made on the device, of these shapes, each one of "
        f"{', '.join(CONFIGS)} or a config.json.",
    ),
]
MethodName = Annotated[str, typer.Option(help="Decoding method; 'auto' chooses one.")]
Gamma = Annotated[
    int | None,
    typer.Option(
        help="Draft forwards per step of a serial or lock-step draft; a free one goes on by "
        "itself. Default: as many as fit in one step, or, with double-serial, as pay."
    ),
]
Schedule = Annotated[
    str, typer.Option(help="A draft beside the target: free (goes ahead) or lock-step (the paper).")
]
Forks = Annotated[
    int, typer.Option(help="Corrections that a free draft goes on from in advance; 0: none.")
]
Background = Annotated[
    str,
    typer.Option(
        help="Where a draft beside the target runs: process, thread or inline (in turns)."
    ),
]
TargetDevice = Annotated[
    str | None,
    typer.Option(help="Such as cpu or cuda:0; cuda:0,cuda:1 divides the target among both."),
]
DraftDevice = Annotated[str | None, typer.Option(help="Default: the target's first device.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32.")]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="int8, or fp8 on a GPU no older than Hopper: round the target's layers to 8 bits; "
        "answers are exactly those of the rounded target, not of the one on disk."
    ),
]
Kernels = Annotated[
    str | None,
    typer.Option(
        help="native (our own: compiled for the CPU when a model is loaded, in Triton on a GPU) or "
        "torch. Default: native where they can compute it."
    ),
]
Graphs = Annotated[
    bool,
    typer.Option(
        "--graphs/--no-graphs", help="On CUDA: record steps and replay them, if the bits stay."
    ),
]
MaxLength = Annotated[int | None, typer.Option(help="Context length, prompt and answer together.")]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads of the target, of each of its ranks; by default as many as are fastest, "
        "with a core left free while a draft works."
    ),
]
Datastores = Annotated[
    list[Path] | None, typer.Option("--datastore", help="Search this file, too; repeatable.")
]
HistoryFile = Annotated[
    Path | None,
    typer.Option("--history", help="Guess from the answers in this file, too, and add to them."),
]
Temperature = Annotated[float, typer.Option(help="0 is greedy decoding.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Seed = Annotated[int, typer.Option(help="Same seed, same text, whatever the method.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the report to this file; - is stdout.")
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="Write a page to look at; - is stdout.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")]

terminal = Console()
errors = Console(stderr=True)


def draft_name(target: str, draft: str | None) -> str | None:
    """The bundled draft goes with the bundled target; 'none' means no draft."""
    if draft is None:
        return BUNDLED if target == BUNDLED else None
    return None if draft == "none" else draft


def model_names(
    target: str, draft: str | None, random_weights: str | None
) -> tuple[str, str | None]:
    """Target and draft as they were given, or those of random weights. Raises ConfigError."""
    if random_weights is None:
        return target, draft
    if target != BUNDLED or draft is not None:
        raise ConfigError("give --random-weights, or --target and --draft, and not both")
    first, *more = (RANDOM + shape.strip() for shape in random_weights.split(","))
    if len(more) > 1:
        raise ConfigError(
            f"--random-weights takes a target's shape and a draft's, got {random_weights!r}"
        )
    return first, more[0] if more else "none"


def check_count(name: str, value: int) -> None:
    """Raises ConfigError unless there is at least one."""
    if value < 1:
        raise ConfigError(f"{name} must be a whole number from 1 up, got {value}")


@contextmanager
def loaded(target: str, draft: str | None, **settings: Any) -> Iterator[LLM]:
    """An LLM, read with a progress bar on stderr, closed at the end."""
    with progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"loading {what}", total=total)
            bar.update(tasks[what], completed=done)

        llm = LLM(target, draft_name(target, draft), progress=report, **settings)
    with llm:
        yield llm


@contextmanager
def remembered(llm: LLM, path: Path | None) -> Iterator[None]:
    """With the answers of a file, if it is there; at the end it holds the new ones, too."""
    if path is None:
        yield
        return
    check_output(path, force=True)
    if path.exists():
        llm.load_history(path)
    try:
        yield
    finally:
        llm.save_history(path)


def progress_bar() -> Progress:
    """A bar on stderr with the time left, gone when it is done; nothing where nobody looks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


def people(*outputs: Path | None) -> Console:
    """Where tables for people go: beside an output that is stdout, not into it."""
    return errors if Path("-") in outputs else terminal


def check_pictures(*paths: Path | None) -> None:
    """Raises ConfigError if one of these files is wanted and what draws them is not installed."""
    if any(path is not None for path in paths):
        import_module("doublespec.bench.plotting")


def print_json(value: Mapping[str, Any], indent: int | None = None) -> None:
    """Writes JSON to stdout, with escapes where it cannot hold all characters."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, ensure_ascii=not is_unicode, indent=indent) + "\n")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """To a file, or to stdout for the path "-"."""
    if str(path) == "-":
        print_json(value, indent=1)
    else:
        write_output(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_stdin() -> str:
    """All of stdin; raises ConfigError where there is none, or it is not text."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ConfigError("the prompt on stdin is not UTF-8 text") from error
    except (AttributeError, OSError) as error:  # it was closed, or is a folder
        raise ConfigError(
            "the prompt cannot be read from stdin; give it there, or in a file"
        ) from error
