"""`doublespec simulate`: what to expect on a machine that is not there, from real answers."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from doublespec.bench.machine import Machine, parse_curve, read_machine
from doublespec.bench.outputs import check_different, check_output, write_output
from doublespec.bench.provenance import provenance
from doublespec.bench.race import Run
from doublespec.bench.runs import read_runs
from doublespec.bench.simulate import uses_gamma
from doublespec.bench.study import (
    SWEEPS,
    Files,
    Outcomes,
    Progress,
    Question,
    ask,
    ask_all,
    check_gamma,
    means,
    recommend,
    sweep_questions,
)
from doublespec.bench.traces import mean_agreement, read_traces, trace_files
from doublespec.bench.validation import validate
from doublespec.cli import options
from doublespec.errors import ConfigError

_LIMIT = 60
_TARGET_MS, _DRAFT_MS = "24", "2.4"
_METHODS = "lookup@pld,sd,psd@lock-step,double@paper,best"


def simulate(
    traces: Annotated[list[Path], typer.Option(help="Trace file, or folder of them; repeatable.")],
    methods: Annotated[str, typer.Option(help="Comma-separated methods, presets, or best.")] = "",
    agreement: Annotated[
        float | None, typer.Option(help="Share of positions where the draft is right.")
    ] = None,
    second_choice: Annotated[
        float, typer.Option(help="Share of the draft's mistakes where its second choice is right.")
    ] = 0.5,
    profile: Annotated[
        Path | None, typer.Option(help="Forward times, written by `doublespec doctor --save`.")
    ] = None,
    target_ms: Annotated[
        str | None,
        typer.Option(help=f"24, or by rows: 1:24,8:24.5,32:30. Default: {_TARGET_MS}."),
    ] = None,
    draft_ms: Annotated[
        str | None, typer.Option(help=f"2.4, or by rows. Default: {_DRAFT_MS}.")
    ] = None,
    pipe_ms: Annotated[
        float | None, typer.Option(help="A draft's messages, a step. Default: 0.")
    ] = None,
    overhead_ms: Annotated[
        float | None,
        typer.Option(help="Outside the models, a step. Default: the profile's; without one, 0."),
    ] = None,
    devices: Annotated[int, typer.Option(help="1: draft and target share a device.")] = 2,
    gamma: Annotated[
        int | None,
        typer.Option(
            help="Draft forwards per step of a serial or lock-step draft; a free one goes on by "
            "itself. Default: c; for sd the best of 3, 5, 8; double-serial decides by itself."
        ),
    ] = None,
    run_length: Annotated[int | None, typer.Option(help="Longest retrieved run.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(help=f"Answers of each file. Default: {_LIMIT}; to validate, all."),
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Of the model the traces come from.")] = 1 << 18,
    seed: options.Seed = 0,
    sweep: Annotated[str, typer.Option(help=f"Draw curves over {', '.join(SWEEPS)}.")] = "",
    values: Annotated[str, typer.Option(help="Comma-separated values of the sweep.")] = "",
    advise: Annotated[bool, typer.Option("--recommend", help="Name the best method.")] = False,
    runs: Annotated[
        Path | None,
        typer.Option("--validate", help="Compare with the runs that `bench --resume` kept here."),
    ] = None,
    json_path: options.JsonFile = None,
    html: options.HtmlFile = None,
    force: options.Force = False,
) -> None:
    """Run the methods on replayed answers in virtual time: no model, no GPU, no clock."""
    check_different(json_path, html)
    for path in (json_path, html):
        check_output(path, force=force)
    options.check_pictures(html)
    _check_task(sweep=sweep, recommend=advise, validate=runs)
    _check_unused("--recommend" if advise else "", methods=methods)
    _check_unused(
        "--validate" if runs else "", methods=methods, agreement=agreement, run_length=run_length
    )
    _check_unused("" if sweep else "a simulation without --sweep", values=values, html=html)
    if runs is not None and profile is None:
        raise ConfigError("--validate needs the --profile of the machine that the runs are from")
    machine = _machine(profile, target_ms, draft_ms, pipe_ms, overhead_ms, devices)
    names = tuple(name.strip() for name in (methods or _METHODS).split(","))
    question = Question(
        names,
        machine,
        None if agreement is None else _share("agreement", agreement),
        _share("second-choice", second_choice),
        seed,
        _positive("gamma", gamma),
    )
    question = replace(question, run_length=_positive("run-length", run_length))
    if gamma is not None and runs is None and not advise:
        check_gamma(question)
    console = options.people(json_path, html)
    found = trace_files(traces)
    most = _positive("limit", limit) or (None if runs is not None else _LIMIT)
    files = {name: read_traces(path, vocab_size, most) for name, path in found.items()}
    if runs is not None:
        report = _validate(files, question, console, read_runs(runs))
    elif sweep:
        report = _sweep(files, question, console, sweep, _numbers(values), html)
    elif advise:
        report = _advise(files, question, console)
    else:
        report = _compare(files, question, console)
    if json_path is not None:
        _write_json(json_path, {"provenance": _provenance(files, question), **report})


def _check_task(**tasks: object) -> None:
    """Raises ConfigError where more than one thing is to be done."""
    given = [f"--{name}" for name, value in tasks.items() if value]
    if len(given) > 1:
        raise ConfigError(f"one at a time: give {' or '.join(given)}, and not both")


def _check_unused(task: str, **values: object) -> None:
    """Raises ConfigError if a flag was given that the task, if it is one, makes no use of."""
    given = [name.replace("_", "-") for name, value in values.items() if value not in (None, "")]
    if task and given:
        raise ConfigError(f"{task} makes no use of --{given[0]}; leave it out")


def _machine(
    profile: Path | None,
    target_ms: str | None,
    draft_ms: str | None,
    pipe_ms: float | None,
    overhead_ms: float | None,
    devices: int,
) -> Machine:
    if devices not in (1, 2):
        raise ConfigError(f"devices must be 1 or 2, got {devices}")
    pipe, overhead = _seconds("pipe-ms", pipe_ms), _seconds("overhead-ms", overhead_ms)
    if profile is None:
        target = parse_curve(target_ms or _TARGET_MS, "target-ms")
        draft = parse_curve(draft_ms or _DRAFT_MS, "draft-ms")
        machine = Machine(target, draft, target(1), pipe or 0.0)
    else:
        _check_unused(
            "--profile, which has these times,",
            target_ms=target_ms,
            draft_ms=draft_ms,
            pipe_ms=pipe_ms,
        )
        machine = read_machine(profile)
    if overhead is not None:
        machine = replace(machine, overhead_seconds=overhead)
    return replace(machine, devices=devices)


def _seconds(name: str, milliseconds: float | None) -> float | None:
    if milliseconds is not None and not 0 <= milliseconds < math.inf:
        raise ConfigError(f"{name} must be milliseconds from 0 up, got {milliseconds}")
    return None if milliseconds is None else milliseconds / 1e3


def _compare(files: Files, question: Question, console: Console) -> dict[str, Any]:
    with _bar("simulating") as progress:
        found = ask(files, question, progress)
    console.print(_table(found, question.machine))
    return {"results": _results(found)}


def _advise(files: Files, question: Question, console: Console) -> dict[str, Any]:
    with _bar("simulating") as progress:
        name, outcomes = recommend(files, question, progress)
    row, gamma = means(outcomes.values()), next(iter(outcomes.values())).gamma
    settings = "" if gamma is None else f" with gamma {gamma}"
    console.print(
        f"recommended: {name}{settings}, {row['speedup']:.2f} times plain decoding, "
        f"{row['mean_accepted_length']:.2f} tokens a step",
        style="bold",
    )
    return {"recommended": {"method": name, "gamma": gamma}, "results": _results({name: outcomes})}


def _sweep(
    files: Files,
    question: Question,
    console: Console,
    axis: str,
    values: list[float],
    html: Path | None,
) -> dict[str, Any]:
    values = values or list(SWEEPS.get(axis, ()))
    questions = sweep_questions(question, axis, values)
    with _bar("simulating") as progress:
        answers = ask_all(files, questions, progress)
    curves = {
        name: [means(answer[name].values())["speedup"] for answer in answers]
        for name in question.names
    }
    table = Table(axis, *question.names, title="speed-up over plain decoding, mean of files")
    flat = [name for name in question.names if not uses_gamma(name, question.machine)]
    if axis == "gamma" and flat:
        table.caption = f"gamma does not count for {', '.join(flat)}."
    for i, value in enumerate(values):
        table.add_row(f"{value:g}", *(f"{curves[name][i]:.2f}" for name in question.names))
    console.print(table)
    if html is not None:
        from doublespec.bench.report import sweep_page  # needs the extra `bench`

        write_output(html, sweep_page(axis, values, curves))
    results = [{axis: v, "results": _results(a)} for v, a in zip(values, answers, strict=True)]
    return {"sweep": axis, "values": values, "curves": curves, "points": results}


def _validate(
    files: Files, question: Question, console: Console, runs: list[Run]
) -> dict[str, Any]:
    traces = [trace for traces in files.values() for trace in traces]
    found = validate(runs, traces, question.machine, question.second, question.gamma)
    table = Table(
        Column("method", no_wrap=True),
        *("tokens/s", "differs", "ratio", "differs", "M", "ms a step"),
        title="simulated / measured",
        box=SIMPLE,
        caption="Without the first step of each answer, which reads the prompt. Ratios are to "
        "'ar'. M: mean accepted length (tokens a step).",
    )
    for name, compared in found.items():
        both = compared.simulated, compared.measured
        table.add_row(
            name,
            " / ".join(f"{speed.tokens_per_second:.0f}" for speed in both),
            f"{compared.difference:+.0%}",
            " / ".join(f"{speed.ratio:.2f}" for speed in both),
            f"{compared.ratio_difference:+.0%}",
            " / ".join(f"{speed.mean_accepted_length:.2f}" for speed in both),
            " / ".join(f"{speed.step_milliseconds:.2f}" for speed in both),
        )
    console.print(table)
    return {"validation": {name: asdict(compared) for name, compared in found.items()}}


def _table(found: Mapping[str, Outcomes], machine: Machine) -> Table:
    files = list(next(iter(found.values())))
    table = Table(
        "method",
        "gamma",
        *(name.rpartition(".")[2] for name in files),
        "mean",
        "M",
        "bubbles",
        "foreseen",
        "ceiling",
        title="speed-up over plain decoding, in virtual time",
        caption=f"c = {machine.ratio:.1f}, the ceiling of PSD; the ceiling of a draft whose "
        "forwards settle more than one token is c times that. gamma: draft forwards a "
        "step, - where none is set. M: mean accepted length (tokens a step). bubbles: steps "
        "without a drafted token to judge. foreseen: the draft's mistakes "
        "whose correction it had gone on from.",
    )
    for name, outcomes in found.items():
        row = means(outcomes.values())
        drafts = name.partition("@")[0] not in ("ar", "lookup")
        table.add_row(
            name,
            str(next(iter(outcomes.values())).gamma or "-"),
            *(f"{outcome.speedup:.2f}" for outcome in outcomes.values()),
            f"{row['speedup']:.2f}",
            f"{row['mean_accepted_length']:.2f}",
            f"{row['bubbles']:.0%}" if drafts else "-",
            f"{row['foreseen']:.0%}" if row["foreseen"] else "-",
            f"{row['ceiling']:.1f}" if drafts else "-",
        )
    return table


def _results(found: Mapping[str, Outcomes]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            **{file: asdict(outcome) for file, outcome in outcomes.items()},
            "mean": {**means(outcomes.values()), "gamma": next(iter(outcomes.values())).gamma},
        }
        for name, outcomes in found.items()
    }


def _provenance(files: Files, question: Question) -> dict[str, Any]:
    agreement = question.agreement
    return {
        **provenance(),
        "answers": {name: len(traces) for name, traces in files.items()},
        "agreement": {name: mean_agreement(traces) for name, traces in files.items()}
        if agreement is None
        else agreement,
        "machine": asdict(question.machine),
        "second_choice": question.second,
        "seed": question.seed,
    }


def _write_json(path: Path, report: Mapping[str, Any]) -> None:
    options.write_json(path, report)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must be from 0 to 1, got {value}")
    return value


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{name} must be a whole number from 1 up, got {value}")
    return value


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"values must be numbers like 2,4,6, got {text!r}") from error


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    with options.progress_bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
