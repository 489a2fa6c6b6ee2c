"""What a step costs outside the models: the engine on toys whose forwards take almost no time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter

from torch import Tensor

from doublespec.config import DraftStyle, ForkSettings, RetrievalSettings
from doublespec.decoding import Steps, decode_parallel, decode_serial
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.background import RemoteDrafter, StyledDrafter
from doublespec.drafting.choice import DraftUnlessRun
from doublespec.drafting.links import InlineLink
from doublespec.drafting.messages import FromDraft, ToDraft
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.retrieved import Retrieval
from doublespec.drafting.worker import Draft, Worker
from doublespec.models.devices import use_threads
from doublespec.models.toy import ToyModel
from doublespec.sampling import Request, SamplingParams
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens

_MOST = 48  # tokens that the target is shown in a step
_STEP_SECONDS = 0.005  # of the target that a step is thought to be of


@dataclass(frozen=True, slots=True)
class Overhead:
    """Median seconds a step outside model forwards, with a context of so many tokens: those that
    make a step longer, and those of a draft beside it."""

    loop: str
    context: int
    seconds: float
    beside_seconds: float


class _Timed:
    """A model that counts the time spent in it."""

    def __init__(self, model: ToyModel) -> None:
        self._model = model
        self.vocab_size = model.vocab_size
        self.max_length = model.max_length
        self.seconds = 0.0

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        begun = perf_counter()
        logits = self._model.logits(tokens, last, prompt_length)
        self.seconds += perf_counter() - begun
        return logits


class _TimedWorker(Worker):
    """A draft that counts the time spent in it, its model's included."""

    seconds = 0.0

    def take(self, message: ToDraft) -> list[FromDraft]:
        begun = perf_counter()
        replies = super().take(message)
        self.seconds += perf_counter() - begun
        return replies

    def work(self) -> FromDraft:
        begun = perf_counter()
        drafted = super().work()
        self.seconds += perf_counter() - begun
        return drafted


def measure_overhead(contexts: tuple[int, ...], steps: int) -> list[Overhead]:
    """The overhead of both loops with both retrievals and one draft forward a step. The toys run in
    one thread: several that wait for a busy core would be measured instead. The draft beside the
    target is made to work in this process, so that the way of its messages is not counted
    (`profile.measure_pipe` does)."""
    use_threads(1)
    return [
        measure(context, steps) for context in contexts for measure in (_before_target, _beside)
    ]


def _before_target(context: int, steps: int) -> Overhead:
    target, draft = _Timed(ToyModel(512)), _Timed(ToyModel(512, agreement=0.8))
    settings = RetrievalSettings()
    target_side = Retrieval(settings)
    draft_side, choice = target_side.shared(settings, math.inf), target_side.choice(1, 0.1)
    assert choice is not None
    model = ModelDrafter(draft, 1, draft_side.lookup())
    drafter = DraftUnlessRun(model, choice, perf_counter, _STEP_SECONDS)
    parts = target, drafter, target_side.lookup()
    events = decode_serial(*parts, *_answer(context, steps), _MOST)
    spent = _spent(events, steps, lambda: target.seconds + draft.seconds)
    return Overhead("double-serial", context, median(spent), 0.0)


def _beside(context: int, steps: int) -> Overhead:
    target, draft = _Timed(ToyModel(512)), _Timed(ToyModel(512, agreement=0.8))
    settings = RetrievalSettings()
    one = Draft(DraftAhead(draft, Retrieval(settings).lookup(), ForkSettings()), 1)
    worker = _TimedWorker(lambda style: one)
    remote = RemoteDrafter(lambda: InlineLink(lambda: worker))
    background = StyledDrafter(remote, DraftStyle(lockstep=True))
    parts = target, background, Retrieval(settings).lookup()
    events = decode_parallel(*parts, *_answer(context, steps), _MOST)
    drafting: list[float] = []

    def elsewhere() -> float:
        drafting.append(worker.seconds - draft.seconds)
        return target.seconds + worker.seconds

    spent = _spent(events, steps, elsewhere)
    beside = [after - before for before, after in pairwise(drafting[1:])]
    return Overhead("double", context, median(spent), median(beside))


def _answer(context: int, steps: int) -> tuple[list[int], Request, StopRule]:
    prompt = [(i * i + i // 7) % 512 for i in range(context)]
    return prompt, Request(SamplingParams(), context), StopRule(8 * steps)


def _spent(events: Steps, steps: int, elsewhere: Callable[[], float]) -> list[float]:
    """Seconds of each step after the first, less those spent elsewhere."""
    times, before = [], elsewhere()
    for _ in range(steps):
        begun = perf_counter()
        if next(events, None) is None:
            break
        seconds, after = perf_counter() - begun, elsewhere()
        times.append(seconds - (after - before))
        before = after
    return times[1:]
