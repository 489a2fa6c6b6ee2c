"""The same loops and methods on replayed models, in virtual time. No clock is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from doublespec.bench.machine import Curve, Machine
from doublespec.bench.replay import Replay, ReplayedModel
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
from doublespec.drafting.choice import DraftUnlessRun
from doublespec.drafting.confident import ConfidentDrafter
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.lookup import Helper
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.odds import Odds
from doublespec.drafting.pauses import Pauses
from doublespec.drafting.recipe import LIKELY_KEPT, goes_on_by_itself, likely_speeds
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
from doublespec.models.load import ForwardCost
from doublespec.sampling import Request, SamplingParams
from doublespec.scheduling.scheduler import Scheduler
from doublespec.stats import summarise
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens

BEST = "best"  # the project's own settings, by the method that suits the devices
SERIAL_GAMMAS = (3, 5, 8)  # what is tried for a draft that the target waits for


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
    kept = _Kept(plan, machine)
    steps = [step for trace in traces for step in _Parts(plan, machine, trace, kept).answer()]
    return _outcome(plan, machine, steps, kept)


def answers(plan: Plan, machine: Machine, traces: Sequence[Replay]) -> list[list[Step]]:
    """The Steps of every answer with a plan."""
    kept = _Kept(plan, machine)
    return [list(_Parts(plan, machine, trace, kept).answer()) for trace in traces]


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
    speeds = _draft_speeds(machine, LIKELY_KEPT)
    return candidates(
        has_draft=True,
        beside=beside,
        same_device=not beside or machine.beside_draft is not None,
        in_turns=speeds["double-serial"] > speeds["double"],
    )


def _draft_speeds(machine: Machine, kept: float) -> dict[str, float]:
    """By the times of forwards, as `Engine` has them."""
    single = machine.draft(1)
    return likely_speeds(machine.cost, single, machine.draft_chained_seconds or single, kept)


class _Kept:
    """What is kept from one answer to the next: the clock, the draft before the target, indexes by
    side, and all that is learnt. Made as `engine.py` makes it."""

    def __init__(self, plan: Plan, machine: Machine) -> None:
        self._machine = machine
        self._gamma = plan.gamma
        self.clock = VirtualClock()
        self.odds = Odds()
        self.drafted, self.drafts = 0, list[TimedModel]()
        cost, self._settings = machine.cost, plan.retrieval
        self._row_cost = cost.row_share(beside=False)
        self._target_side = Retrieval(plan.retrieval, None, machine.target(1))
        self.costs = LookupCosts(
            cost.of_plain,
            machine.target(1),
            self._row_cost,
            machine.lookup_seconds,
            cost.at_once,
            plan.guess_tokens,
        )
        foreseen = plan.retrieval.ngram is None and cost.at_once > 1
        self.pauses = Pauses(self.costs.of_search, self.costs.of_showing, foreseen=foreseen)
        self.scheduler = Scheduler(
            _candidates(machine),
            {"ar": 1.0 / cost.of_plain},
            HINDSIGHT,
            sounded=not SERIAL_DRAFT.isdisjoint(_candidates(machine)),
        )
        self.hindsight = Hindsight(
            HINDSIGHT,
            self._target_side.lookup(self._row_cost, prices=self.costs.prices),
            plan.guess_tokens,
            self.costs.seconds,
            self.pauses,
            cost.at_once,
            lambda: self.costs.are_seen,
        )
        row_cost = cost.row_share(beside=True)
        beside = Retrieval(replace(plan.retrieval, row_cost=row_cost), None, machine.draft(1))
        self.draft_side = beside.lookup()
        self._before: TimedModel | None = None  # the draft before the target
        self._was_target = True  # what has worked last
        self._lookups: dict[DraftKind | None, Helper] = {}
        self._serial: dict[bool, Drafter] = {}

    @property
    def cost(self) -> ForwardCost:
        return self._machine.cost

    def draft_before(self, replayed: ReplayedModel) -> TimedModel:
        """The draft before the target, which replays that from now on."""
        if self._before is None:
            spared = _spared(self._machine.draft, self._machine.draft_chained_seconds)
            self._before = TimedModel(replayed, self._draft_seconds, self.clock, spared=spared)
            self.drafts.append(self._before)
        self._before.model = replayed
        return self._before

    def lookup(self, behind: DraftKind | None) -> Helper:
        if behind not in self._lookups:
            beside, machine, spared = behind == "beside", self._machine, self.target_spared or 0.0
            row_cost = machine.cost.row_share(beside=beside)
            prices = None if behind else self.costs.prices
            helper = self._target_side.lookup(row_cost, beside=beside, prices=prices)

            def judging(shown: int) -> float:
                return max(0.0, machine.target(shown + 1) - spared)

            seconds, clock = machine.lookup_seconds, self.clock
            self._lookups[behind] = TimedCompleter(helper, seconds, clock, judging)
        return self._lookups[behind]

    def draft(self, model: LanguageModel, *, retrieval: bool) -> Drafter:
        if retrieval not in self._serial:
            made = self._make_draft(model, retrieval=retrieval)
            self._serial[retrieval] = _Counted(made, self)
        return self._serial[retrieval]

    def _make_draft(self, model: LanguageModel, *, retrieval: bool) -> Drafter:
        machine, row_cost = self._machine, self._row_cost
        settings, unit, gamma = self._settings, machine.target(1), self._gamma
        seconds, share = machine.draft(1), machine.draft(1) / unit
        chains = goes_on_by_itself(model, seconds)
        helper: Drafter = NoDrafter()
        if retrieval:
            shared = self._target_side.shared(replace(settings, row_cost=row_cost), seconds)
            helper = shared.lookup()  # of what the target's side has searched just now: at no cost
        if gamma is not None:
            made: Drafter = ModelDrafter(model, gamma, helper, chains=chains and not retrieval)
        else:
            made = ConfidentDrafter(
                model, helper, share, self.odds, row_cost, self.clock, unit, chains
            )
            gamma = made.steps
        choice = self._target_side.choice(gamma, gamma * share, row_cost) if retrieval else None
        if choice is None:
            return made
        either = DraftUnlessRun(made, choice, self.clock, unit)
        return TimedDrafter(either, machine.lookup_seconds, self.clock)

    @property
    def target_spared(self) -> float | None:
        return _spared(self._machine.target, self._machine.chained_seconds)

    def target_seconds(self, rows: int) -> float:
        """Of a forward of the target: after one of the draft before it, or of its own."""
        curve = self._machine.target if self._was_target else self._machine.after_draft
        self._was_target = True
        return (curve or self._machine.target)(rows)

    def _draft_seconds(self, rows: int) -> float:
        curve = self._machine.draft_after if self._was_target else self._machine.draft
        self._was_target = False
        return (curve or self._machine.draft)(rows)


def _spared(curve: Curve, chained: float | None) -> float | None:
    """What is spared of a forward by one before it in the same call."""
    return None if chained is None else curve(1) - chained


class _Parts:
    """What methods are made of, around the models that replay one trace."""

    def __init__(self, plan: Plan, machine: Machine, trace: Replay, kept: _Kept) -> None:
        self._plan = plan
        self._machine = machine
        self._trace = trace
        self._kept = kept
        self._link: VirtualLink | None = None
        self._remote: RemoteDrafter | None = None
        self._replayed_draft = trace.draft()
        self.clock: Clock = kept.clock
        self.scheduler = kept.scheduler
        self.hindsight = kept.hindsight
        self.sounding: Sounding | None = None
        if not SERIAL_DRAFT.isdisjoint(_candidates(machine)):
            self.sounding = Sounding(self._serial_draft, partial(_draft_speeds, machine))
        self.guess_tokens = plan.guess_tokens
        self.at_once, self.plain_seconds = kept.cost.at_once, kept.cost.of_plain
        self.pauses = kept.pauses
        self.lookup_costs = kept.costs
        self.target: LanguageModel = TimedModel(
            trace.target(),
            self._target_seconds,
            kept.clock,
            self._share,
            spared=kept.target_spared,
        )

    def _serial_draft(self) -> LanguageModel:
        """The draft before the target, which replays this trace now."""
        return self._kept.draft_before(self._replayed_draft)

    def answer(self) -> Iterator[Step]:
        """The Steps of the answer, in virtual time."""
        trace = self._trace
        stop = StopRule(len(trace.answer))
        request = Request(SamplingParams(max_tokens=len(trace.answer)), len(trace.prompt))
        settled: list[int] = []
        for step in METHODS[self._plan.method](self, trace.prompt, request, stop):
            settled += step.new
            self._kept.drafted += sum(len(forward.tokens) for forward in step.forwards)
            yield step
        assert settled == trace.answer

    def forward_seconds(self, shown: int, *, beside: bool) -> float:
        return self._machine.target(shown + 1)

    def is_draft_ready(self, may_take: Callable[[float], bool]) -> bool:
        return True

    def lookup(self, behind: DraftKind | None = None) -> Helper:
        return self._kept.lookup(behind)

    def draft(self, *, retrieval: bool) -> Drafter:
        return self._kept.draft(self._serial_draft(), retrieval=retrieval)

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
            seconds, per_branch = machine.draft_beside or machine.draft, machine.branch_seconds
            model = TimedModel(self._trace.draft(), seconds, beside, branch_seconds=per_branch)
            self._kept.drafts.append(model)
            lookup = TimedDrafter(self._kept.draft_side, machine.lookup_seconds, beside)

            def make(style: DraftStyle) -> Draft:
                helper: Drafter = NoDrafter() if style.retrieval is None else lookup
                return Draft(DraftAhead(model, helper, style.forks, odds), style.gamma)

            delay = machine.pipe_seconds / 2
            worker = Worker(make, beside)
            self._link = link = VirtualLink(
                worker, self._kept.clock, beside, delay, machine.follow_seconds
            )
            self._remote = RemoteDrafter(lambda: link, Patience(), self._kept.clock)
        return self._remote

    def _target_seconds(self, rows: int) -> float:
        alone = self._kept.target_seconds(rows)
        return alone + self._lost_beside(rows, alone) + self._machine.overhead_seconds

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

    def __init__(self, drafter: Drafter, kept: _Kept) -> None:
        self._drafter = drafter
        self._kept = kept

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        drafted = self._drafter.propose(tokens, limit, request)
        self._kept.drafted += len(drafted)
        return drafted


def _outcome(plan: Plan, machine: Machine, steps: Sequence[Step], kept: _Kept) -> Outcome:
    stats = summarise(steps)
    forwards = sum(model.forwards for model in kept.drafts)
    per_forward = kept.drafted / forwards if forwards else 1.0
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
