"""How long forwards take on this machine: what a choice of method is made from."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from doublespec.bench.outputs import replace_file
from doublespec.config import DraftStyle, ForkSettings
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.background import RemoteDrafter, StyledDrafter
from doublespec.drafting.base import NoDrafter
from doublespec.drafting.links import ProcessLink
from doublespec.drafting.worker import Draft, Worker
from doublespec.models.base import LanguageModel
from doublespec.models.load import forward_seconds
from doublespec.models.toy import ToyModel
from doublespec.sampling import Request, SamplingParams

ROW_COUNTS = (1, 2, 4, 8, 16, 32)
PROFILE_VERSION = 1


@dataclass(frozen=True, slots=True)
class ForwardTimes:
    """Median seconds of a forward by the number of new rows, after `context` tokens."""

    context: int
    seconds: dict[int, float]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a pair of models costs on a machine. Times are in seconds."""

    target: ForwardTimes
    fastest: ForwardTimes  # the target in its fastest shapes, as the baseline runs
    draft: ForwardTimes | None
    pipe_seconds: float | None
    threads: int
    version: int = PROFILE_VERSION

    @property
    def ratio(self) -> float | None:
        """c = t_T / t_D, both over one row."""
        return None if self.draft is None else self.target.seconds[1] / self.draft.seconds[1]


def measure_forwards(model: LanguageModel, context: int) -> ForwardTimes:
    context = min(context, model.max_length - max(ROW_COUNTS))
    return ForwardTimes(
        context, {rows: forward_seconds(model, rows, context, repeats=15) for rows in ROW_COUNTS}
    )


def measure_pipe(context: int = 400, repeats: int = 200) -> float:
    """The median round trip of a step's messages to a draft process whose model takes no time."""
    remote = RemoteDrafter(lambda: ProcessLink(_ToyDraft(), 1))
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


class _ToyDraft:
    """A recipe that can be sent to a process."""

    def __call__(self) -> Worker:
        draft = Draft(DraftAhead(ToyModel(), NoDrafter(), ForkSettings()), 1)
        return Worker(lambda style: draft)


def save_profile(profile: Profile, path: Path) -> None:
    """Writes a profile as JSON: whole, or not at all."""
    replace_file(path, (json.dumps(asdict(profile), indent=2) + "\n").encode())
