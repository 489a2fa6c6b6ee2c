"""The same loops and methods on replayed models, in virtual time. No clock is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from doublespec.bench.machine import Curve, Machine
from doublespec.bench.replay import Replay
from doublespec.bench.virtual import (
    TimedCompleter,
    TimedDrafter,
    TimedModel,
    VirtualClock,
    VirtualLink,
)
from doublespec.config import (
    DEFAULT_FORKS,
    PRESETS,
    DraftStyle,
    ForkSettings,
    Preset,
    RetrievalSettings,
    Schedule,
)
from doublespec.decoding import Clock, Step
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.background import Patience, RemoteDrafter, StyledDrafter
from doublespec.drafting.base import BackgroundDrafter, Drafter, NoDrafter
from doublespec.drafting.choice import Choice, DraftUnlessRun
from doublespec.drafting.confident import ConfidentDrafter
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.lookup import Helper
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.odds import Odds
from doublespec.drafting.pauses import Pauses
from doublespec.drafting.recipe import likely_rate
from doublespec.drafting.retrieved import Retrieval
from doublespec.drafting.sounding import Sounding
from doublespec.drafting.worker import Draft, Worker
from doublespec.errors import ConfigError
from doublespec.methods import (
    BESIDE,
    HINDSIGHT,
    METHODS,
    SERIAL_DRAFT,
    DraftKind,
    candidates,
    split_name,
)
from doublespec.models.base import LanguageModel
from doublespec.sampling import Request, SamplingParams
from doublespec.scheduling.scheduler import Scheduler
from doublespec.stats import summarise
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens

BEST = "best"  # the project's own settings, by the method that suits the devices
SERIAL_GAMMAS = (3, 5, 8)  # what is tried for a draft that the target waits for

_AT_ONCE = 1  # forward: nothing is spared by making several in a row


@dataclass(frozen=True, slots=True)
class Plan:
    """A method with its settings: what one simulation runs. `gamma` None: it does not count, or a
    serial draft makes as many forwards as are worth their time."""

    method: str
    gamma: int | None
    retrieval: RetrievalSettings
    guess_tokens: int
    schedule: Schedule = "free"
    forks: int = DEFAULT_FORKS


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan reached on a set of answers.

    `speedup` is over plain decoding in its fastest shape; a bubble is a step that had no drafted
    token to judge; `draft_tokens_per_forward` is 1 + h_D, and the ceiling is c times that.
    `foreseen` is the share of the draft's mistakes whose correction it had gone on from.
    """

    gamma: int | None
    speedup: float
    mean_accepted_length: float
    bubbles: float
    draft_tokens_per_forward: float
    ceiling: float
    rows_per_token: float
    foreseen: float
    tokens: int
    steps: int


def uses_gamma(name: str, machine: Machine) -> bool:
    """Whether a number of draft forwards a step changes what a method does: before the target and
    in lock-step, while a free draft goes on by itself. Raises ConfigError on unknown names."""
    method, preset = _split(name, machine)
    lockstep = preset is not None and PRESETS[preset].schedule == "lock-step"
    chosen = _candidates(machine) if method == "auto" else [method]
    return any(m in SERIAL_DRAFT or (lockstep and m in BESIDE) for m in chosen)


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
    chosen = PRESETS[preset] if preset else Preset()
    retrieval = chosen.retrieval or ours
    if run_length is not None:
        retrieval = replace(retrieval, tokens=run_length)
    if not uses_gamma(name, machine):
        gammas: Sequence[int | None] = (None,)
    elif gamma is not None:
        gammas = (gamma,)
    elif method == "sd":
        gammas = SERIAL_GAMMAS
    elif method in ("double-serial", "auto") and retrieval.ngram is None:
        gammas = (None,)  # a serial draft decides for itself
    else:
        gammas = (max(1, round(machine.ratio)),)
    schedule = chosen.schedule or "free"
    forks = DEFAULT_FORKS if chosen.forks is None else chosen.forks
    return [Plan(method, n, retrieval, guess_tokens, schedule, forks) for n in gammas]


def simulate(plan: Plan, machine: Machine, traces: Sequence[Replay]) -> Outcome:
    """Answers every trace with a plan. The same arguments give the same outcome, to the bit."""
    answers = _answers(plan, machine, traces)
    steps = [step for parts in answers for step in parts.answer()]
    return _outcome(plan, machine, steps, answers)


def answers(plan: Plan, machine: Machine, traces: Sequence[Replay]) -> list[list[Step]]:
    """The Steps of every answer with a plan."""
    return [list(parts.answer()) for parts in _answers(plan, machine, traces)]


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


def _candidates(machine: Machine) -> list[str]:
    """What `auto` chooses from."""
    beside = machine.devices > 1
    return candidates(has_draft=True, beside=beside, same_device=not beside)


def _answers(plan: Plan, machine: Machine, traces: Sequence[Replay]) -> list["_Parts"]:
    target, draft = Retrieval(plan.retrieval), Retrieval(plan.retrieval)
    gamma = plan.gamma or max(1, round(machine.ratio))

    def seconds(shown: Sequence[int], searched: bool) -> float:
        return sum(machine.target(count + 1) for count in shown)

    kept = _Kept(
        {behind: target.lookup(beside=behind == "beside") for behind in (None, "serial", "beside")},
        draft.lookup(),
        target.choice(gamma, gamma / machine.ratio),
        Odds(),
        Scheduler(
            _candidates(machine),
            {"ar": 1.0 / machine.target(1)},
            HINDSIGHT,
            sounded=machine.devices == 1,
        ),
        Hindsight(
            HINDSIGHT,
            target.lookup(),
            plan.guess_tokens,
            seconds,
            _no_pauses(),
            _AT_ONCE,
            is_known=lambda: True,
        ),
    )
    return [_Parts(plan, machine, trace, kept) for trace in traces]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept from one answer to the next: indexes by side, and what was learnt."""

    lookups: dict[DraftKind | None, Helper]  # on the target's side
    draft_side: Drafter
    choice: Choice | None  # where a serial draft is left out
    odds: Odds
    scheduler: Scheduler
    hindsight: Hindsight


def _no_pauses() -> Pauses:
    """Searches cost nothing there."""
    return Pauses(lambda: 0.0)


class _Parts:
    """What methods are made of, around the models that replay one trace."""

    def __init__(self, plan: Plan, machine: Machine, trace: Replay, kept: _Kept) -> None:
        self._plan = plan
        self._machine = machine
        self._trace = trace
        self._kept = kept
        self._now = VirtualClock()
        self._link: VirtualLink | None = None
        self._remote: RemoteDrafter | None = None
        self._before: TimedModel | None = None  # the draft before the target
        self._is_in_turns = False  # a draft works before the target
        self.clock: Clock = self._now
        self.scheduler = kept.scheduler
        self.hindsight = kept.hindsight
        self.sounding = None if machine.devices > 1 else Sounding(self._serial_draft, self._speeds)
        self.guess_tokens = plan.guess_tokens
        self.at_once, self.plain_seconds = _AT_ONCE, machine.target(1)
        self.pauses = _no_pauses()
        self.lookup_costs = LookupCosts(machine.target(1), machine.target(1), 0.0, 0.0, _AT_ONCE)
        self.target: LanguageModel = TimedModel(
            trace.target(), self._target_seconds, self._now, self._share
        )
        self.drafts: list[TimedModel] = []
        self.drafted = 0

    def _serial_draft(self) -> LanguageModel:
        if self._before is None:
            self._before = self._draft(self._machine.draft, self._now)
        return self._before

    def _speeds(self, kept: float) -> dict[str, float]:
        """Of a draft before the target, by the times of forwards, as `Engine` has it."""
        target, draft = self._machine.target, self._machine.draft(1)
        rate = likely_rate(lambda n: target(n + 1) + n * draft, kept)
        return {"double-serial": target(1) * rate}

    def answer(self) -> Iterator[Step]:
        """The Steps of the answer, in virtual time."""
        trace = self._trace
        stop = StopRule(len(trace.answer))
        request = Request(SamplingParams(max_tokens=len(trace.answer)), len(trace.prompt))
        settled: list[int] = []
        for step in METHODS[self._plan.method](self, trace.prompt, request, stop):
            settled += step.new
            self.drafted += sum(len(forward.tokens) for forward in step.forwards)
            yield step
        assert settled == trace.answer

    def forward_seconds(self, shown: int, *, beside: bool) -> float:
        return self._machine.target(shown + 1)

    def is_draft_ready(self, may_take: Callable[[float], bool]) -> bool:
        return True

    def lookup(self, behind: DraftKind | None = None) -> Helper:
        helper = self._kept.lookups[behind]
        return TimedCompleter(helper, self._machine.lookup_seconds, self._now)

    def draft(self, *, retrieval: bool) -> Drafter:
        machine, choice = self._machine, self._kept.choice
        self._is_in_turns = True
        model, helper = self._serial_draft(), self._helper(retrieval, self._now)
        made = (
            ConfidentDrafter(model, helper, 1.0 / machine.ratio, self._kept.odds)
            if self._plan.gamma is None
            else ModelDrafter(model, self._plan.gamma, helper)
        )
        drafter = _Counted(made, self)
        if not retrieval or choice is None:
            return drafter
        either = DraftUnlessRun(drafter, choice, self._now, machine.target(1))
        return TimedDrafter(either, machine.lookup_seconds, self._now)

    def background(self, *, retrieval: bool) -> BackgroundDrafter:
        plan = self._plan
        lockstep = plan.schedule == "lock-step"
        style = DraftStyle(
            plan.retrieval if retrieval else None,
            lockstep,
            (plan.gamma or max(1, round(self._machine.ratio))) if lockstep else None,
            ForkSettings(0 if lockstep else plan.forks),
        )
        return StyledDrafter(self._remote_draft(), style)

    def _remote_draft(self) -> RemoteDrafter:
        """The draft beside the target, one for all styles."""
        if self._remote is None:
            beside, machine, odds = VirtualClock(), self._machine, self._kept.odds
            model = self._draft(machine.draft_beside or machine.draft, beside)

            def make(style: DraftStyle) -> Draft:
                helper = self._helper(style.retrieval is not None, beside)
                return Draft(DraftAhead(model, helper, style.forks, odds), style.gamma)

            delay = machine.pipe_seconds / 2
            worker = Worker(make, beside)
            self._link = link = VirtualLink(
                worker, self._now, beside, delay, machine.follow_seconds
            )
            self._remote = RemoteDrafter(lambda: link, Patience(), self._now)
        return self._remote

    def _draft(self, seconds: Curve, clock: VirtualClock) -> TimedModel:
        per_branch = self._machine.branch_seconds
        model = TimedModel(self._trace.draft(), seconds, clock, branch_seconds=per_branch)
        self.drafts.append(model)
        return self.drafts[-1]

    def _helper(self, retrieval: bool, clock: VirtualClock) -> Drafter:
        if not retrieval:
            return NoDrafter()
        return TimedDrafter(self._kept.draft_side, self._machine.lookup_seconds, clock)

    def _target_seconds(self, rows: int) -> float:
        machine = self._machine
        alone = machine.target(rows)
        if self._is_in_turns and machine.after_draft is not None:
            alone = machine.after_draft(rows)
        return alone + self._lost_beside(rows, alone) + machine.overhead_seconds

    def _lost_beside(self, rows: int, alone: float) -> float:
        """How much longer a forward takes since the draft works at the same time, all the time or
        a part of it."""
        if self._link is None or self._machine.beside_draft is None:
            return 0.0
        beside = max(self._machine.beside_draft(rows), alone)
        return self._link.busy_within(beside) * (1.0 - alone / beside)

    def _share(self) -> None:
        if self._link is not None and self._machine.devices == 1:
            self._link.share_device()


class _Counted:
    """A drafter whose tokens are counted."""

    def __init__(self, drafter: Drafter, parts: _Parts) -> None:
        self._drafter = drafter
        self._parts = parts

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        drafted = self._drafter.propose(tokens, limit, request)
        self._parts.drafted += len(drafted)
        return drafted


def _outcome(
    plan: Plan, machine: Machine, steps: Sequence[Step], answers: Sequence[_Parts]
) -> Outcome:
    stats = summarise(steps)
    forwards = sum(model.forwards for parts in answers for model in parts.drafts)
    per_forward = sum(parts.drafted for parts in answers) / forwards if forwards else 1.0
    departed = [step.foreseen for step in steps if step.foreseen is not None]
    return Outcome(
        gamma=plan.gamma,
        speedup=stats.tokens * machine.baseline_seconds / stats.seconds,
        mean_accepted_length=stats.mean_accepted_length,
        bubbles=sum(not step.num_drafted for step in steps) / len(steps),
        draft_tokens_per_forward=per_forward,
        ceiling=machine.ratio * per_forward,
        rows_per_token=stats.rows_per_token,
        foreseen=sum(departed) / len(departed) if departed else 0.0,
        tokens=stats.tokens,
        steps=stats.steps,
    )
