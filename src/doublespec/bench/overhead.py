"""What a step costs outside the models: the engine on toys whose forwards take almost no time."""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

from torch import Tensor

from doublespec.config import DraftStyle, ForkSettings, RetrievalSettings
from doublespec.decoding import Step, decode_parallel, decode_serial
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.background import RemoteDrafter, StyledDrafter
from doublespec.drafting.choice import DraftUnlessRun
from doublespec.drafting.links import InlineLink
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.retrieved import Retrieval
from doublespec.drafting.worker import Draft, Worker
from doublespec.models.devices import use_threads
from doublespec.models.toy import ToyModel
from doublespec.sampling import Request, SamplingParams
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Overhead:
    """Median seconds a step outside model forwards, with a context of so many tokens."""

    loop: str
    context: int
    seconds: float


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


def measure_overhead(contexts: tuple[int, ...], steps: int) -> list[Overhead]:
    """The overhead of both loops with both retrievals and one draft forward a step. The toys run in
    one thread: several that wait for a busy core would be measured instead."""
    use_threads(1)
    loops = ("double-serial", "double")
    return [
        Overhead(loop, context, _step_seconds(loop, context, steps))
        for context in contexts
        for loop in loops
    ]


def _step_seconds(loop: str, context: int, steps: int) -> float:
    target, draft = _Timed(ToyModel(512)), _Timed(ToyModel(512, agreement=0.8))
    target_side, draft_side = Retrieval(RetrievalSettings()), Retrieval(RetrievalSettings())
    helper = target_side.lookup()
    prompt = [(i * i + i // 7) % 512 for i in range(context)]
    request, stop = Request(SamplingParams(), context), StopRule(8 * steps)
    if loop == "double":
        one = Draft(DraftAhead(draft, draft_side.lookup(), ForkSettings()), 1)
        remote = RemoteDrafter(lambda: InlineLink(lambda: Worker(lambda style: one)))
        background = StyledDrafter(remote, DraftStyle(lockstep=True))
        events = decode_parallel(target, background, helper, prompt, request, stop, 48)
    else:
        choice = target_side.choice(1, 0.1)
        assert choice is not None
        drafter = DraftUnlessRun(ModelDrafter(draft, 1, draft_side.lookup()), choice)
        events = decode_serial(target, drafter, helper, prompt, request, stop, 48)
    times = []
    for _ in range(steps):
        before = target.seconds + draft.seconds
        begun = perf_counter()
        step: Step | None = next(events, None)
        if step is None:
            break
        times.append(perf_counter() - begun - (target.seconds + draft.seconds - before))
    return median(times[1:])
