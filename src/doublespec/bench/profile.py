"""How long forwards take on this machine: what a choice of method is made from.

Times are of forwards as the loops make them, choices included; for a target that works with a
draft they are measured with the draft at work: its forwards before each of the target's, or in a
process beside it. That is what a simulation of this machine needs to be right about it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import torch

from doublespec.bench.outputs import replace_file
from doublespec.config import DEFAULT_FORKS, DraftStyle, ForkSettings, RetrievalSettings
from doublespec.decoding import Step
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.background import RemoteDrafter, StyledDrafter
from doublespec.drafting.base import NoDrafter
from doublespec.drafting.links import ProcessLink
from doublespec.drafting.retrieved import Retrieval
from doublespec.drafting.worker import Draft, Worker
from doublespec.models.base import LanguageModel, Worth, can_chain, can_settle
from doublespec.models.toy import ToyModel
from doublespec.oracle import advance
from doublespec.sampling import Request, SamplingParams

ROW_COUNTS = (1, 2, 4, 8, 16, 32)  # what is shown to people
CONTEXT = 200  # tokens before the rows, by default
PROFILE_VERSION = 4
_MOST_ROWS = 64
_REPEATS = 6
_FEWEST_REPEATS = 2  # of these, where forwards are so slow that all take longer than
_LONG_SECONDS = 3.0
# Forwards of which the last counts, so many at least and for so long: it finds the machine as a
# loop leaves it. (After forwards over many rows others take longer, for milliseconds: docs/log.md.)
_IN_A_ROW, _SETTLED_SECONDS = 3, 6e-3
_GOING_ON = 16  # forwards in a call,
_CALLS, _MOST_CALLS = 12, 40  # and so many calls, of those that were made
_INSTANT = 1e-9  # seconds, where the clock sees none
_SPREAD = 32  # places over which contexts are spread: some rows stand at a border of key lengths

LoadDraft = Callable[[], LanguageModel]  # importable by name, so that a child can have it


@dataclass(frozen=True, slots=True)
class ForwardTimes:
    """Seconds of a forward by the number of new rows, after about `context` tokens: means of the
    middle half, all longer by what the mean of all forwards is longer than that. (On a busy machine
    some forwards are interrupted, whatever their rows; answers are as slow as the mean.) Fewer rows
    than one of the counts take as long as these."""

    context: int
    seconds: dict[int, float]


@dataclass(frozen=True, slots=True)
class PairTimes:
    """Forwards of both models of a pair, measured together."""

    target: ForwardTimes
    draft: ForwardTimes


@dataclass(frozen=True, slots=True)
class Profile:
    """What a pair of models costs on a machine. Times are in seconds.

    The `chained` ones are of a forward over one row that follows another one in the same call
    (None: the model does not go on by itself). `branch_seconds` is what a correction drafted in
    advance adds to a forward of the draft besides its rows. `in_turns`: a forward of the draft
    before each of the target; `beside`: the draft's in another process at the same time.
    `lookup_seconds` is a retrieval, `step_seconds`
    what a step costs besides forwards and retrievals, `follow_seconds` what it costs the target to
    hear and tell a draft beside it, `pipe_seconds` a round trip to a draft's process.
    """

    target: ForwardTimes
    fastest: ForwardTimes  # the target in its fastest shapes, as the baseline runs
    draft: ForwardTimes | None
    in_turns: PairTimes | None
    beside: PairTimes | None
    branch_seconds: float | None
    pipe_seconds: float | None
    follow_seconds: float | None
    lookup_seconds: float
    step_seconds: float
    threads: int
    target_chained_seconds: float | None = None
    fastest_chained_seconds: float | None = None
    draft_chained_seconds: float | None = None
    version: int = PROFILE_VERSION

    @property
    def ratio(self) -> float | None:
        """c = t_T / t_D, both over one row."""
        return None if self.draft is None else self.target.seconds[1] / self.draft.seconds[1]


def measure_forwards(
    models: Sequence[LanguageModel],
    row_counts: Sequence[int],
    context: int = CONTEXT,
    repeats: int = _REPEATS,
) -> list[ForwardTimes]:
    """Forwards of the models in turns, so that each finds the caches as the others left them; and
    over all row counts in turns, so that a disturbance falls on all of them. What stands before
    them is of various lengths around `context`. Slow forwards are repeated less often."""
    room = min(model.max_length for model in models)
    counts = [rows for rows in row_counts if rows <= max(1, room // 2)]
    context = min(context, room - counts[-1])
    places = cycle(range(max(1, context - _SPREAD // 2), min(context + _SPREAD // 2, room) + 1, 5))
    times: list[dict[int, list[float]]] = [{rows: [] for rows in counts} for _ in models]
    begun = perf_counter()
    for attempt in range(repeats + 1):
        if attempt > _FEWEST_REPEATS and perf_counter() - begun > _LONG_SECONDS:
            break
        for rows in counts:
            length = min(next(places), room - rows)
            latest = _settled_seconds(models, rows, length, attempt)
            for seconds, found in zip(times, latest, strict=True):
                seconds[rows].append(found)
    # The first round reads the prompt, too.
    rounds = [{rows: found[1:] for rows, found in seconds.items()} for seconds in times]
    return [_forward_times(context, seconds) for seconds in rounds]


def _settled_seconds(
    models: Sequence[LanguageModel], rows: int, context: int, attempt: int
) -> list[float]:
    """Of the latest of several forwards of the models in turns."""
    begun, number = perf_counter(), 0
    while True:
        turn = _IN_A_ROW * attempt + number
        found = [forward_seconds(model, rows, context, turn) for model in models]
        number += 1
        if number >= _IN_A_ROW and perf_counter() - begun >= _SETTLED_SECONDS:
            return found


def measure_chained(model: LanguageModel, context: int = CONTEXT) -> float | None:
    """Seconds of a forward over one row that follows another one in the same call; None for a model
    that does not go on by itself."""
    context = max(1, min(context, model.max_length - _GOING_ON - 1))
    text = [1 + i % 7 for i in range(context)]
    request = Request(SamplingParams(), context)

    def go_on(forwards: int, attempt: int) -> tuple[int, float]:
        tokens, made = [*text, 1 + attempt % 11], 0
        begun = perf_counter()
        if can_settle(model):
            made = len(advance(model, tokens, [], request, forwards).tokens)
        elif can_chain(model):
            made = len(model.chain(tokens, forwards, model.vocab_size, (), Worth()).tokens)
        return made, perf_counter() - begun

    if not can_settle(model) and not can_chain(model):
        return None
    found: list[float] = []
    for attempt in range(_MOST_CALLS):
        (_, one), (made, many) = go_on(1, attempt), go_on(_GOING_ON, attempt)
        if attempt and made == _GOING_ON:  # the first reads the text; a trial of threads makes one
            found.append(max(_INSTANT, (many - one) / (made - 1)))
        if len(found) == _CALLS:
            break
    return _middle_mean(found) if found else None


def _forward_times(context: int, times: Mapping[int, Sequence[float]]) -> ForwardTimes:
    usual = {rows: _middle_mean(found) for rows, found in times.items()}
    stretch = sum(fmean(found) for found in times.values()) / sum(usual.values())
    return ForwardTimes(context, {rows: stretch * seconds for rows, seconds in usual.items()})


def _middle_mean(values: Sequence[float]) -> float:
    """The mean of the middle half."""
    left_out = len(values) // 4
    return fmean(sorted(values)[left_out : len(values) - left_out])


def measure_beside(
    target: LanguageModel,
    load_draft: LoadDraft,
    row_counts: Sequence[int],
    threads: int,
    context: int = CONTEXT,
) -> PairTimes:
    """The target's forwards while a draft works in a process of so many threads, and those."""
    with _busy_draft(load_draft, row_counts, threads, context) as stop:
        (mine,) = measure_forwards([target], row_counts, context)
        draft = stop()
    return PairTimes(mine, draft)


def measure_branch(draft: LanguageModel, alone: ForwardTimes) -> float:
    """What each branch adds to a forward of the draft, besides its rows; `alone` are forwards
    without branches."""
    context, most = alone.context, max(alone.seconds)
    added = []
    for attempt in range(_REPEATS):
        ahead = DraftAhead(draft, NoDrafter(), ForkSettings(DEFAULT_FORKS))
        text = [1 + i % 7 for i in range(context)] + [1 + attempt]
        ahead.begin(text, min(12, draft.max_length - len(text)), Request(SamplingParams(), context))
        while ahead.has_work():
            begun = perf_counter()
            progress = ahead.forward()
            seconds = perf_counter() - begun
            if progress.branches:
                rows = min((n for n in alone.seconds if n >= progress.rows), default=most)
                added.append((seconds - alone.seconds[rows]) / progress.branches)
    return max(0.0, median(added)) if added else 0.0


def measure_pipe(context: int = CONTEXT, repeats: int = 200) -> float:
    """The median round trip of a step's messages to a draft process whose model takes no time."""
    remote = RemoteDrafter(lambda: ProcessLink(_ToyDraft(1), 1))
    background = StyledDrafter(remote, DraftStyle(lockstep=True))
    request = Request(SamplingParams(), 1)
    tokens = list(range(context))
    times = []
    try:
        background.follow(tokens, 8, request)
        for token in range(repeats):
            tokens.append(token)
            begun = perf_counter()
            background.follow(tokens, 0, request)
            times.append(perf_counter() - begun)
    finally:
        background.close()
    return median(times)


def measure_follow(
    model: LanguageModel, forwards: int, context: int = CONTEXT, repeats: int = 60
) -> float:
    """The median time that a target spends on the messages of a step in which a free draft makes so
    many forwards: after a forward of the model, which leaves other things in the processor's
    caches."""
    remote = RemoteDrafter(lambda: ProcessLink(_ToyDraft(None), 1))
    background = StyledDrafter(remote, DraftStyle())
    context = min(context, model.max_length - repeats - 2)
    request = Request(SamplingParams(), 1)
    tokens, times = [1 + i % 7 for i in range(context)], []
    try:
        for attempt in range(repeats):
            tokens.append(1 + attempt % 5)
            forward_seconds(model, 1, context, attempt)
            begun = perf_counter()
            background.follow(tokens, forwards, request)
            times.append(perf_counter() - begun)
    finally:
        background.close()
    return median(times)


def measure_lookup(model: LanguageModel, context: int = CONTEXT, repeats: int = 100) -> float:
    """The median time of a retrieval in a text that grows by three tokens a step, after a forward
    of the model, which leaves other things in the processor's caches."""
    lookup = Retrieval(RetrievalSettings()).lookup()
    text = [(i * i + i // 7) % 512 for i in range(context + 3 * repeats)]
    request, times = Request(SamplingParams(), context), []
    for number, stop in enumerate(range(context, len(text), 3)):
        forward_seconds(model, 1, min(context, model.max_length - 1), number)
        begun = perf_counter()
        lookup.propose(text[:stop], 48, request)
        times.append(perf_counter() - begun)
    return median(times[1:])


def step_seconds(steps: Sequence[Step]) -> float:
    """What a step of plain decoding took besides its forward, to make text of it included."""
    return max(0.0, _middle_mean([step.seconds - step.target_seconds for step in steps]))


def merged(profiles: Sequence[Profile]) -> Profile:
    """The medians of profiles that were measured one after the other: a disturbance that lasted
    for one of them is left out."""
    return Profile(**_merged([asdict(profile) for profile in profiles]))


def _merged(values: Sequence[Any]) -> Any:
    """The median of numbers; of records, of each of their entries."""
    first = values[0]
    if isinstance(first, dict):
        found = {key: _merged([value[key] for value in values]) for key in first}
        if found.keys() == {"context", "seconds"}:
            return ForwardTimes(**found)
        return PairTimes(**found) if found.keys() == {"target", "draft"} else found
    if first is None or isinstance(first, int):
        return first
    return median(values)


def save_profile(profile: Profile, path: Path) -> None:
    """Writes a profile as JSON: whole, or not at all."""
    replace_file(path, (json.dumps(asdict(profile), indent=2) + "\n").encode())


def profile_row_counts(row_counts: Sequence[int]) -> tuple[int, ...]:
    """The row counts to measure of a target whose blocks are padded to `row_counts`, with those
    that are shown to people."""
    kept = {rows for rows in row_counts if rows <= _MOST_ROWS}
    return tuple(sorted({*ROW_COUNTS, *kept, _MOST_ROWS}))


def forward_seconds(model: LanguageModel, rows: int, context: int, attempt: int) -> float:
    text = [1 + i % 7 for i in range(context)] + [1 + attempt % 11]
    guess = [1 + (attempt + i) % 13 for i in range(rows - 1)]
    request = Request(SamplingParams(), context)
    begun = perf_counter()
    advance(model, text, guess, request)
    return perf_counter() - begun


@contextmanager
def _busy_draft(
    load_draft: LoadDraft, row_counts: Sequence[int], threads: int, context: int
) -> Iterator[Callable[[], ForwardTimes]]:
    """A draft at work in another process; what is yielded ends it and says how long its forwards
    took."""
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    settings = (load_draft, row_counts, threads, context)
    child = spawn.Process(target=_be_busy, args=(theirs, *settings))
    child.daemon = True
    child.start()
    theirs.close()

    def stop() -> ForwardTimes:
        ours.send("stop")
        times: ForwardTimes = ours.recv()
        return times

    try:
        ours.recv()  # it is loaded
        yield stop
    finally:
        ours.close()
        child.terminate()
        child.join()


def _be_busy(
    end: Connection,
    load_draft: LoadDraft,
    row_counts: Sequence[int],
    threads: int,
    context: int,
) -> None:
    torch.set_num_threads(threads)
    draft = load_draft()
    measure_forwards([draft], row_counts, context, repeats=1)
    end.send("ready")
    found: list[ForwardTimes] = []
    while not found or not end.poll():
        found += measure_forwards([draft], row_counts, context, repeats=3)
    rounds = {rows: [times.seconds[rows] for times in found] for rows in found[0].seconds}
    end.send(_forward_times(found[0].context, rounds))


@dataclass(frozen=True, slots=True)
class _ToyDraft:
    """A recipe that can be sent to a process, of a draft that makes so many forwards a step (None:
    as many as are of use)."""

    steps: int | None

    def __call__(self) -> Worker:
        draft = Draft(DraftAhead(ToyModel(), NoDrafter(), ForkSettings()), self.steps)
        return Worker(lambda style: draft)
