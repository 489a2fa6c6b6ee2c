"""`doublespec doctor`: what this machine can do, and whether the promise holds on it."""

from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.table import Table

from doublespec.bench.exactness import OTHER_THREADS, Trial, check_model
from doublespec.bench.outputs import check_file
from doublespec.bench.pair import measure_pair
from doublespec.bench.profile import (
    CONTEXT,
    ROW_COUNTS,
    Profile,
    measure_forwards,
    merged,
    profile_row_counts,
    save_profile,
)
from doublespec.cli import options
from doublespec.cli.options import terminal
from doublespec.llm import BUNDLED, LLM
from doublespec.models.devices import (
    all_devices,
    describe,
    usable_cores,
)

_MOST_ROUNDS = 3  # of the whole measurement, none of which is begun after
_LONG_SECONDS = 20.0


def doctor(
    target: options.Target = BUNDLED,
    draft: options.Draft = None,
    random_weights: options.Random = None,
    trials: Annotated[int, typer.Option(help="Random texts in the exactness test.")] = 24,
    context: Annotated[int, typer.Option(help="Tokens before the measured rows.")] = CONTEXT,
    save: Annotated[Path | None, typer.Option(help="Write the profile to this JSON file.")] = None,
    target_device: options.TargetDevice = None,
    draft_device: options.DraftDevice = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    kernels: options.Kernels = None,
    graphs: options.Graphs = True,
    threads: options.Threads = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure forwards, alone and beside each other, and test bit-exactness; exit code 1 if bits
    differ."""
    check_file(save, force=force)
    options.check_count("context", context)
    options.check_count("trials", trials)
    settings = {
        "target_device": target_device,
        "draft_device": draft_device,
        "dtype": dtype,
        "quantize": quantize,
        "kernels": kernels,
        "graphs": graphs,
        "threads": threads,
    }
    target, draft = options.model_names(target, draft, random_weights)
    with options.loaded(target, draft, **settings) as llm:
        found = list(check_model(llm.target, trials))
        if llm.threads is not None:  # it tries which number is faster for each count of rows
            measure_forwards([llm.target], profile_row_counts(llm.target.row_counts), context)
        begun, rounds = perf_counter(), [measure_pair(llm, context)]
        while len(rounds) < _MOST_ROUNDS and perf_counter() - begun < _LONG_SECONDS:
            rounds.append(measure_pair(llm, context))
        profile = merged(rounds)
        if save is not None:
            save_profile(profile, save)
        if as_json:
            options.print_json(_as_json(llm, profile, found))
        else:
            _print(llm, profile, found)
    if _broken(llm, found):
        raise typer.Exit(1)


def _slower_beside(profile: Profile) -> dict[str, float] | None:
    """How many times as long a forward over one row takes while the other model works; None
    without a draft."""
    if profile.draft is None or profile.beside is None:
        return None
    return {
        "target": profile.beside.target.seconds[1] / profile.target.seconds[1],
        "draft": profile.beside.draft.seconds[1] / profile.draft.seconds[1],
    }


def _print(llm: LLM, profile: Profile, found: list[Trial]) -> None:
    for device in all_devices():
        terminal.print(f"device {device}: {describe(device)}")
    kind = str(llm.target.dtype).removeprefix("torch.")
    kind += f" ({llm.settings.quantize} layers)" if llm.settings.quantize else ""
    ranks = len(llm.settings.target_devices)
    divided = f" and {ranks - 1} more, a rank each," if ranks > 1 else ""
    terminal.print(
        f"target on {llm.target.device}{divided} in {kind}, by {_kernels(llm)}; CPU threads "
        f"{profile.threads} of {usable_cores()} cores"
    )
    terminal.print(f"threads: {llm.engine.explain_threads()}")
    table = Table("milliseconds a forward, by rows", *(str(rows) for rows in ROW_COUNTS))
    times = {"target": profile.target, "target, fastest shape": profile.fastest}
    if profile.draft is not None:
        times["draft"] = profile.draft
    if profile.in_turns is not None:
        times["target, after a draft"] = profile.in_turns.target
    if profile.beside is not None:
        times["target, beside a draft"] = profile.beside.target
        times["draft, beside the target"] = profile.beside.draft
    for name, row in times.items():
        shown = [row.seconds.get(rows) for rows in ROW_COUNTS]
        table.add_row(name, *("-" if s is None else f"{s * 1e3:.2f}" for s in shown))
    terminal.print(table)
    chained = {"target": profile.target_chained_seconds, "draft": profile.draft_chained_seconds}
    for name, seconds in chained.items():
        if seconds is not None:
            terminal.print(
                f"{name}: {seconds * 1e3:.2f} milliseconds over one row, behind another forward of "
                "the same call"
            )
    terminal.print(f"a retrieval {profile.lookup_seconds * 1e6:.0f} microseconds")
    if profile.pipe_seconds is not None:
        terminal.print(f"pipe round trip {profile.pipe_seconds * 1e6:.0f} microseconds")
    failed = _broken(llm, found)
    if failed:
        places = ", ".join(f"{trial.name} (position {trial.differs_at})" for trial in failed)
        terminal.print(
            f"NOT bit-exact: {len(failed)} of {len(found)} texts differ: {places}. Answers may "
            "differ from plain decoding where two tokens are nearly as likely.",
            style="bold red",
        )
    else:
        terminal.print(f"bit-exact: all {len(found)} random texts, however split and cached")
    if any(trial.differs_at is not None for trial in found if trial.name == OTHER_THREADS):
        terminal.print("bits depend on the number of CPU threads here: keep --threads the same")
    beside = _slower_beside(profile)
    if profile.ratio is not None and beside is not None:
        terminal.print(
            f"c = {profile.ratio:.1f}: in a forward of the target the draft makes "
            f"{profile.ratio:.1f} of its own; while both work, the target's takes "
            f"{beside['target']:.1f} and the draft's {beside['draft']:.1f} times as long as alone"
        )
    terminal.print(
        f"method: {llm.method}, the default; which one is the fastest depends on the text, too, "
        "and auto finds it out while it runs",
        style="bold",
    )


def _kernels(llm: LLM) -> str:
    """Of the target; and why a row's bits depend on nothing else."""
    if llm.kernels == "native":
        return "native kernels, in which no row knows of another"
    return f"PyTorch's kernels, rows of an answer in {llm.target.row_counts}"


def _broken(llm: LLM, found: list[Trial]) -> list[Trial]:
    """The trials in which the promise is not kept. Where the number of threads never changes, it
    may change bits."""
    changes = llm.threads is not None and llm.threads.may_change
    failed = [trial for trial in found if trial.differs_at is not None]
    return [trial for trial in failed if changes or trial.name != OTHER_THREADS]


def _as_json(llm: LLM, profile: Profile, found: list[Trial]) -> dict[str, object]:
    return {
        "device": describe(llm.target.device),
        "ranks": len(llm.settings.target_devices),
        "dtype": str(llm.target.dtype).removeprefix("torch."),
        "quantize": llm.settings.quantize,
        "kernels": llm.kernels,
        "graphs": llm.settings.graphs,
        "profile": asdict(profile),
        "threads": llm.engine.explain_threads(),
        "exact": not _broken(llm, found),
        "trials": len(found),
        "method": llm.method,
        "c": profile.ratio,
        "slower_beside": _slower_beside(profile),
    }
