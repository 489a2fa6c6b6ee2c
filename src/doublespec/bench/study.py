"""Many simulations at once, shared out among the cores; and which of them to recommend.

The results do not depend on how many processes there are.
"""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch

from doublespec.bench.machine import Machine
from doublespec.bench.replay import Replay
from doublespec.bench.simulate import Outcome, Plan, mean_speedup, plans, simulate, uses_gamma
from doublespec.bench.traces import Trace, with_agreement
from doublespec.errors import ConfigError
from doublespec.methods import DRAFTLESS
from doublespec.models.devices import usable_cores

Files = Mapping[str, Sequence[Trace]]
Outcomes = dict[str, Outcome]  # by file
Progress = Callable[[int, int], None]  # done, in all

SWEEPS: dict[str, tuple[float, ...]] = {
    "c": (2, 4, 6, 8, 10, 12, 16),
    "agreement": (0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
    "gamma": (1, 2, 4, 6, 8, 10, 12),
    "run-length": (2, 5, 10, 20, 40, 80),
}
WORTH_PROCESSES = 400  # answers times plans, from which on processes are worth their start
_CANDIDATES = ("lookup", "sd", "double-serial", "psd", "double")


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be simulated: names of methods on a machine with a draft of that agreement, whose
    second choice is right in a share `second` of the places where its first is wrong."""

    names: tuple[str, ...]
    machine: Machine
    agreement: float | None
    second: float = 0.5
    seed: int = 0
    gamma: int | None = None
    run_length: int | None = None
    guess_tokens: int = 96


def ask(files: Files, question: Question, progress: Progress | None = None) -> dict[str, Outcomes]:
    """The outcomes by name and file; of several gammas, those of the one with the best mean."""
    return ask_all(files, [question], progress)[0]


def ask_all(
    files: Files, questions: Sequence[Question], progress: Progress | None = None
) -> list[dict[str, Outcomes]]:
    """The outcomes of several questions. Raises ConfigError before anything runs."""
    jobs = [
        _Job(number, name, plan, file, question)
        for number, question in enumerate(questions)
        for name in question.names
        for plan in _plans(question, name)
        for file in files
    ]
    outcomes: dict[_Job, Outcome] = {}
    for done, (job, outcome) in enumerate(_run(files, jobs), start=1):
        outcomes[job] = outcome
        if progress is not None:
            progress(done, len(jobs))
    found: dict[tuple[int, str], dict[Plan, Outcomes]] = {}
    for job in jobs:  # not in the order in which they were done
        plans_of = found.setdefault((job.number, job.name), {})
        plans_of.setdefault(job.plan, {})[job.file] = outcomes[job]
    return [
        {name: max(found[number, name].values(), key=mean_speedup) for name in question.names}
        for number, question in enumerate(questions)
    ]


def sweep_questions(question: Question, axis: str, values: Sequence[float]) -> list[Question]:
    """The question at each value of an axis; raises ConfigError on an unknown one, a value that
    it cannot have, or where it counts for no method."""
    if axis not in SWEEPS:
        raise ConfigError(f"sweep must be one of {', '.join(SWEEPS)}, got {axis!r}")
    for value in values:
        _check_value(axis, value)
    if axis == "gamma":
        check_gamma(question)
    return [_at(question, axis, value) for value in values or SWEEPS[axis]]


def check_gamma(question: Question) -> None:
    """Raises ConfigError if gamma counts for none of the methods."""
    if not any(uses_gamma(name, question.machine) for name in question.names):
        raise ConfigError(
            "gamma counts for sd, double-serial and a draft in lock-step (psd@lock-step, "
            f"double@paper), and for none of {', '.join(question.names)}"
        )


def recommend(
    files: Files, question: Question, progress: Progress | None = None
) -> tuple[str, Outcomes]:
    """The best of the candidates on the machine, each with its best gamma if one counts, and its
    outcomes."""
    answer = ask(files, replace(question, names=_CANDIDATES), progress)
    return max(answer.items(), key=lambda pair: mean_speedup(pair[1]))


@dataclass(frozen=True, slots=True)
class _Job:
    number: int
    name: str
    plan: Plan
    file: str
    question: Question


def _plans(question: Question, name: str) -> list[Plan]:
    return plans(name, question.machine, question.gamma, question.run_length, question.guess_tokens)


def _check_value(axis: str, value: float) -> None:
    if axis == "c":
        expected, is_fine = "numbers above 0", 0 < value < math.inf
    elif axis == "agreement":
        expected, is_fine = "from 0 to 1", 0 <= value <= 1
    else:
        expected, is_fine = "whole numbers from 1 up", value >= 1 and value % 1 == 0
    if not is_fine:
        raise ConfigError(f"values of {axis} must be {expected}, got {value:g}")


def _at(question: Question, axis: str, value: float) -> Question:
    if axis == "agreement":
        return replace(question, agreement=value)
    if axis == "gamma":
        return replace(question, gamma=int(value))
    if axis == "run-length":
        return replace(question, run_length=int(value))
    return replace(question, machine=question.machine.with_ratio(value))


# -- processes -----------------------------------------------------------------------------------

_files: Files = {}
_replays: dict[tuple[float | None, float, int], dict[str, list[Replay]]] = {}


def _begin(files: Files) -> None:
    """Hands a process the traces, once."""
    global _files
    torch.set_num_threads(1)
    _files = files
    _replays.clear()


def _begin_process(files: Files) -> None:
    """The same for a process that does nothing else: there is next to no garbage in cycles, and to
    look for it often takes a tenth of the time."""
    _begin(files)
    gc.freeze()
    gc.set_threshold(200_000)


def _play(job: _Job) -> tuple[_Job, Outcome]:
    key = job.question.agreement, job.question.second, job.question.seed
    if key not in _replays:
        _replays.clear()  # one agreement at a time is enough to keep
        agreement, second, seed = key
        changed = _files if agreement is None else with_agreement(_files, agreement, seed)
        _replays[key] = {
            name: [Replay(trace, second, seed) for trace in traces]
            for name, traces in changed.items()
        }
    return job, simulate(job.plan, job.question.machine, _replays[key][job.file])


def _run(files: Files, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, Outcome]]:
    answers = sum(len(traces) for traces in files.values())
    workers = min(usable_cores(), len(jobs))
    if workers < 2 or answers * len(jobs) < WORTH_PROCESSES:
        _begin(files)
        yield from map(_play, jobs)
        return
    size = {name: sum(len(trace.answer) for trace in traces) for name, traces in files.items()}
    longest_first = sorted(jobs, key=lambda job: -size[job.file] * _cost(job.plan))
    with _pool(files, workers) as pool:
        yield from pool.map(_play, longest_first)


def _cost(plan: Plan) -> int:
    """Roughly how long a plan takes: forks and the longest match cost most, by far."""
    drafts = plan.method not in DRAFTLESS or plan.method == "auto"
    return 1 + 2 * drafts + 7 * (drafts and plan.retrieval.ngram is None)


@contextmanager
def _pool(files: Files, workers: int) -> Iterator[Executor]:
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_process, (files,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def means(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """The means over files that reports give."""
    rows = list(outcomes)
    fields = (
        "speedup",
        "mean_accepted_length",
        "bubbles",
        "ceiling",
        "rows_per_token",
        "foreseen",
    )
    return {name: sum(getattr(row, name) for row in rows) / len(rows) for name in fields}
