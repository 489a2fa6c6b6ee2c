"""The same loops and methods on replayed models, in virtual time. No clock is read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from doublespec.bench.machine import Machine
from doublespec.bench.replay import Counter, Replay
from doublespec.config import PRESETS, RetrievalSettings
from doublespec.decoding import Step
from doublespec.drafting.background import InlineBackground
from doublespec.drafting.base import BackgroundDrafter, Drafter, NoDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.recipe import make_lookup
from doublespec.errors import ConfigError
from doublespec.methods import METHODS, split_name
from doublespec.models.base import LanguageModel
from doublespec.sampling import Request, SamplingParams
from doublespec.stats import summarise
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens

BEST = "best"  # the project's own settings, by the method that suits the devices
SERIAL_GAMMAS = (3, 5, 8)  # what is tried for a draft that the target waits for
_SERIAL_DRAFTS = ("sd", "double-serial")


@dataclass(frozen=True, slots=True)
class Plan:
    """A method with its settings: what one simulation runs."""

    method: str
    gamma: int
    retrieval: RetrievalSettings
    guess_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan reached on a set of answers.

    `speedup` is over plain decoding in its fastest shape; a bubble is a step that had no drafted
    token to judge; `draft_tokens_per_forward` is 1 + h_D, and the ceiling is c times that.
    """

    gamma: int
    speedup: float
    mean_accepted_length: float
    bubbles: float
    draft_tokens_per_forward: float
    ceiling: float
    rows_per_token: float
    tokens: int
    steps: int


def plans(
    name: str,
    machine: Machine,
    gamma: int | None = None,
    run_length: int | None = None,
    guess_tokens: int = 96,
) -> list[Plan]:
    """What to run for a name: one plan, or one for each gamma that is worth a try. Raises
    ConfigError on unknown names."""
    method, preset = _split(name, machine)
    ours = RetrievalSettings(tokens=guess_tokens, row_cost=min(1.0, machine.row_cost))
    retrieval = PRESETS[preset] if preset else ours
    if run_length is not None:
        retrieval = replace(retrieval, tokens=run_length)
    if gamma is not None:
        gammas: Sequence[int] = (gamma,)
    elif method in _SERIAL_DRAFTS:
        gammas = SERIAL_GAMMAS
    else:
        gammas = (max(1, round(machine.ratio)),)
    return [Plan(method, steps, retrieval, guess_tokens) for steps in gammas]


def simulate(plan: Plan, machine: Machine, traces: Sequence[Replay]) -> Outcome:
    """Answers every trace with a plan. The same arguments give the same outcome, to the bit."""
    lookups = {side: make_lookup(plan.retrieval) for side in ("target", "draft")}
    tally = _Tally()
    steps = [step for trace in traces for step in _answer(plan, machine, trace, lookups, tally)]
    return _outcome(plan, machine, steps, tally)


def mean_speedup(outcomes: Mapping[str, Outcome]) -> float:
    return sum(outcome.speedup for outcome in outcomes.values()) / len(outcomes)


def _split(name: str, machine: Machine) -> tuple[str, str | None]:
    if name == BEST:
        return ("double" if machine.devices > 1 else "double-serial"), None
    try:
        return split_name(name)
    except ConfigError as error:
        known = ", ".join([*METHODS, BEST])
        presets = ", ".join(PRESETS)
        raise ConfigError(
            f"method must be one of {known}, with @ and one of {presets} if you like, got {name!r}"
        ) from error


@dataclass(slots=True)
class _Tally:
    """The draft's forwards, and the tokens they made."""

    forwards: int = 0
    tokens: int = 0


def _answer(
    plan: Plan, machine: Machine, trace: Replay, lookups: Mapping[str, Drafter], tally: _Tally
) -> Iterator[Step]:
    """The timed Steps of one answer."""
    parts = _Parts(plan, trace, lookups, tally)
    stop = StopRule(len(trace.answer))
    request = Request(SamplingParams(max_tokens=len(trace.answer)), len(trace.prompt))
    settled: list[int] = []
    for step in METHODS[plan.method](parts, trace.prompt, request, stop):
        settled += step.new
        serial, beside = parts.serial.take(), parts.beside.take()
        tally.forwards += len(serial) + len(beside)
        yield machine.timed(step, serial, beside)
    assert settled == trace.answer


class _Counted:
    """A drafter whose tokens are counted."""

    def __init__(self, drafter: Drafter, tally: _Tally) -> None:
        self._drafter = drafter
        self._tally = tally

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        drafted = self._drafter.propose(tokens, limit, request)
        self._tally.tokens += len(drafted)
        return drafted


class _Parts:
    """What methods are made of, around the models that replay one trace."""

    def __init__(
        self, plan: Plan, trace: Replay, lookups: Mapping[str, Drafter], tally: _Tally
    ) -> None:
        self.target: LanguageModel = trace.target()
        self.guess_tokens = plan.guess_tokens
        self.serial, self.beside = Counter(), Counter()
        self._plan = plan
        self._trace = trace
        self._lookups = lookups
        self._tally = tally

    def lookup(self) -> Drafter:
        return self._lookups["target"]

    def draft(self, *, retrieval: bool) -> Drafter:
        return self._drafter(retrieval, self.serial)

    def background(self, *, retrieval: bool) -> BackgroundDrafter:
        return InlineBackground(self._drafter(retrieval, self.beside))

    def _drafter(self, retrieval: bool, counter: Counter) -> Drafter:
        helper = self._lookups["draft"] if retrieval else NoDrafter()
        drafter = ModelDrafter(self._trace.draft(counter), self._plan.gamma, helper)
        return _Counted(drafter, self._tally)


def _outcome(plan: Plan, machine: Machine, steps: Sequence[Step], tally: _Tally) -> Outcome:
    stats = summarise(steps)
    per_forward = tally.tokens / tally.forwards if tally.forwards else 1.0
    return Outcome(
        gamma=plan.gamma,
        speedup=stats.tokens * machine.baseline_seconds / stats.seconds,
        mean_accepted_length=stats.mean_accepted_length,
        bubbles=sum(not step.num_drafted for step in steps) / len(steps),
        draft_tokens_per_forward=per_forward,
        ceiling=machine.ratio * per_forward,
        rows_per_token=stats.rows_per_token,
        tokens=stats.tokens,
        steps=stats.steps,
    )
