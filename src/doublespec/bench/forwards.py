"""Forwards and plain decoding of one model after long texts, and which kernels they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter
from typing import Any

import torch

from doublespec.bench.profile import forward_seconds
from doublespec.decoding import Step, decode_serial
from doublespec.drafting.base import NoDrafter
from doublespec.models.base import LanguageModel
from doublespec.models.graphs import MEETINGS
from doublespec.sampling import Request, SamplingParams
from doublespec.stopping import StopRule

WARM_UPS = MEETINGS + 2  # steps in which kernels are made ready and recorded


@dataclass(frozen=True, slots=True)
class Decoded:
    """Plain decoding after `context` tokens. `prompt_seconds` is the first step's, which reads
    `read` tokens of them (None: the model does not tell); `warm_up_seconds` is what the next few
    take longer than those that count, recording included. The others are of a token."""

    context: int
    read: int | None
    prompt_seconds: float
    warm_up_seconds: float
    seconds: float
    mean_seconds: float
    slowest_seconds: float
    host_seconds: float  # of a step besides its forward and choice
    tokens: int


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Seconds of a forward with its choices, by rows, after `context` tokens."""

    context: int
    seconds: dict[int, float]

    def share(self, rows: int) -> float:
        """In forwards over the fewest rows."""
        return self.seconds[rows] / self.seconds[min(self.seconds)]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel took of a step on the device, all its launches together."""

    name: str
    seconds: float
    launches: float


def decode_plain(model: LanguageModel, context: int, tokens: int) -> Decoded:
    """Times `tokens` steps."""
    prompt = _prompt(context)
    unread = getattr(model, "unread", None)
    read = None if unread is None else unread(prompt, context)
    steps = _plain_steps(model, context, WARM_UPS + tokens)
    first, warm, counted = steps[0], steps[1:WARM_UPS], steps[WARM_UPS:]
    usual = median(step.seconds for step in counted)
    return Decoded(
        context=context,
        read=read,
        prompt_seconds=first.seconds,
        warm_up_seconds=sum(step.seconds - usual for step in warm),
        seconds=usual,
        mean_seconds=fmean(step.seconds for step in counted),
        slowest_seconds=max(step.seconds for step in counted),
        host_seconds=median(step.seconds - step.target_seconds for step in counted),
        tokens=tokens,
    )


def time_rows(
    model: LanguageModel, context: int, row_counts: Sequence[int], repeats: int
) -> RowTimes:
    """Medians; all row counts in turns, so that a disturbance falls on all of them."""
    times: dict[int, list[float]] = {rows: [] for rows in row_counts}
    for attempt in range(WARM_UPS + repeats):
        for rows, found in times.items():
            found.append(forward_seconds(model, rows, context, attempt))
    return RowTimes(context, {rows: median(found[WARM_UPS:]) for rows, found in times.items()})


def hottest_kernels(
    model: LanguageModel, context: int, steps: int, most: int = 12
) -> tuple[float, list[Kernel]]:
    """Seconds of a step of plain decoding while it is being watched, and the kernels that take most
    of it on a GPU."""
    for attempt in range(WARM_UPS):
        forward_seconds(model, 1, context, attempt)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as watched:
        begun = perf_counter()
        for attempt in range(steps):
            forward_seconds(model, 1, context, attempt)
        seconds = (perf_counter() - begun) / steps
    return seconds, _hottest(watched.key_averages(), steps, most)


def _hottest(events: Any, steps: int, most: int) -> list[Kernel]:
    found = [
        Kernel(event.key, event.self_device_time_total / 1e6 / steps, event.count / steps)
        for event in events
        if event.device_type.name != "CPU"
    ]
    return sorted(found, key=lambda kernel: -kernel.seconds)[:most]


def _plain_steps(model: LanguageModel, context: int, tokens: int) -> list[Step]:
    prompt, nobody = _prompt(context), NoDrafter()
    request, stop = Request(SamplingParams(), context), StopRule(tokens)
    return list(decode_serial(model, nobody, nobody, prompt, request, stop, 0))


def _prompt(length: int) -> list[int]:
    """The text that `forward_seconds` is measured after, too, so that it is read once."""
    return [1 + i % 7 for i in range(length)]
