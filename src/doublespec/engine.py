"""A target with its drafts and indexes, kept from one answer to the next.

Builds the parts that methods are made of, each when it is first needed, and closes them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from time import perf_counter

from doublespec.config import (
    PRESETS,
    DraftStyle,
    ForkSettings,
    Preset,
    RetrievalSettings,
    Settings,
)
from doublespec.decoding import Clock, Steps, ready_steps
from doublespec.drafting.background import Link, Patience, RemoteDrafter, StyledDrafter
from doublespec.drafting.base import BackgroundDrafter, Drafter, Pending
from doublespec.drafting.choice import DraftUnlessRun
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.links import InlineLink, ProcessLink, ThreadLink
from doublespec.drafting.lookup import Helper
from doublespec.drafting.pace import Pace
from doublespec.drafting.pauses import Pauses
from doublespec.drafting.recipe import (
    LIKELY_KEPT,
    DraftRecipe,
    goes_on_by_itself,
    likely_speeds,
)
from doublespec.drafting.retrieved import ASKING_SECONDS, Retrieval
from doublespec.drafting.sounding import Sounding
from doublespec.methods import (
    BESIDE,
    HINDSIGHT,
    METHODS,
    SERIAL_DRAFT,
    DraftKind,
    candidates,
    check_method,
    split_name,
)
from doublespec.models.base import LanguageModel
from doublespec.models.devices import (
    find_device,
    find_devices,
    keep_threads,
    usable_cores,
    use_threads,
)
from doublespec.models.load import (
    ForwardCost,
    LocalDecoder,
    chained_seconds,
    undisturbed_seconds,
)
from doublespec.models.threads import Threads
from doublespec.mutex import Mutex
from doublespec.retrieval.history import History
from doublespec.retrieval.linking import linking
from doublespec.sampling import Request
from doublespec.scheduling.scheduler import Measured, Scheduler
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens

# Unread tokens of a prompt from which on it is read with all cores before a draft begins. The first
# guess comes later then, which costs about two steps (docs/log.md).
_LONG_PROMPT = 256
_START_SECONDS = 2.5  # of that draft's process, before it reads its model (docs/log.md)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What decides how an answer is decoded: seconds of a forward of the target over one row, the
    share of it that each further row adds, seconds of a draft's forward beside the target (None:
    none was made), for how many drafted tokens a step waits, the methods `auto` chooses from, the
    fastest first, and how many threads the target uses, and why."""

    target_seconds: float
    row_cost: float
    draft_seconds: float | None
    waits_for: int
    methods: tuple[Measured, ...]
    threads: str


class Engine:
    """Decodes with any method. Several answers may be under way at once, also from several threads:
    each step is handed its whole text, and one step runs at a time."""

    def __init__(
        self,
        target: LanguageModel,
        recipe: DraftRecipe | None,
        settings: Settings,
        cost: ForwardCost,
        threads: Threads | None = None,
    ) -> None:
        """`cost` is that of the target's forwards, `threads` chooses their number for it."""
        self._target = target
        self._settings = settings
        self.cost = cost
        self.threads = threads
        self.history = History(settings.history_bytes) if settings.history_bytes else None
        if recipe is not None and self.history is not None:
            recipe = replace(recipe, history=self.history.descriptor)
        self._recipe = recipe
        self._mutex = Mutex()
        self._draft_model: LanguageModel | None = None
        self._reading_seconds = 0.0  # of that model
        self._draft_seconds: tuple[float, float] | None = None  # of a forward, alone and in a chain
        self._parts: dict[_Choice, _Parts] = {}
        self._background: RemoteDrafter | None = None

    def decode(
        self, prompt: Tokens, request: Request, stop: StopRule, method: str, tenant: str = ""
    ) -> Steps:
        """Yields the Steps of one answer, which later ones of the same tenant may be guessed from.
        Raises ConfigError if the method cannot run here."""
        name, preset = split_name(check_method(method, has_draft=self._recipe is not None))
        choice = self._choice(PRESETS[preset] if preset else Preset())
        if self.history is not None:
            request = replace(request, tenant=self.history.number_of(tenant))
        with self._mutex.lock:  # a method may read and measure its draft
            if choice not in self._parts:
                self._parts[choice] = _Parts(self, self._target, choice)
            begun = METHODS[name](self._parts[choice], prompt, request, stop)
        self._mutex.catch_up()
        steps = self._locked(begun)
        if self.history is None:
            return steps
        return _kept(steps, self.history, prompt if self._settings.history_prompts else (), tenant)

    def explain(self) -> Explanation:
        """What was measured here, and what `auto` has made of it."""
        with self._mutex.lock:
            parts = self._parts.get(self._choice(Preset()))
            scheduler = parts.scheduler if parts else self.make_scheduler()
            pace = self._background.pace if self._background else Pace()
        return Explanation(
            target_seconds=self.cost.seconds,
            row_cost=self.cost.row_cost,
            draft_seconds=pace.draft_seconds or None,
            waits_for=pace.worth_waiting_for,
            methods=tuple(scheduler.explain()),
            threads=self.explain_threads(),
        )

    def explain_threads(self) -> str:
        """How many threads the target uses on the CPU, and why."""
        if self.threads is not None:
            return self.threads.explain()
        return "always the same number"

    def make_scheduler(self) -> Scheduler:
        """For `auto`: the methods that can run here."""
        expected = {"ar": 1.0 / self.cost.of_plain}
        return Scheduler(self._candidates(), expected, HINDSIGHT, sounded=self._has_serial_draft)

    def make_sounding(self) -> Sounding | None:
        """Of the draft in this process, if `auto` may use one."""
        if not self._has_serial_draft:
            return None
        return Sounding(self.draft_model, self._draft_speeds)

    def prepare(self, method: str, *, wait: bool = False) -> None:
        """Loads what the method will need; the draft's process behind the scenes unless to `wait`
        for it, and for `auto` only if a draft beside the target is likely the best."""
        name, _ = split_name(method)
        linking()  # is compiled: else the first lookup would
        with self._mutex.lock:
            names = self._candidates() if name == "auto" else [name]
            if self._recipe is not None and not SERIAL_DRAFT.isdisjoint(names):
                self.draft_model()
                if name == "auto":  # is measured, while the other draft is not loaded yet
                    names = self._candidates()
            beside = not BESIDE.isdisjoint(names if wait else names[:1])  # `auto` may do without
            if self._recipe is not None and beside:
                self.background().launch()
                if wait:
                    self.wait_for_draft()
        self._mutex.catch_up()

    def wait_for_draft(self) -> bool:
        """Waits until the draft beside the target is loaded; whether it is."""
        with self._mutex.lock:
            return self.background().wait_until_ready()

    def is_draft_ready(self, may_take: Callable[[float], bool]) -> bool:
        """As `methods.Parts.is_draft_ready`."""
        drafter = self.background()
        return (drafter.was_begun or may_take(self._lost_by_loading)) and drafter.is_ready()

    def wait_if_loading(self) -> None:
        """Waits for a draft beside the target that is being loaded, which takes a core."""
        with self._mutex.lock:
            if self._background is not None:
                self._background.wait_until_ready()

    def _candidates(self) -> list[str]:
        targets = find_devices(self._settings.target_devices)
        draft = find_device(self._settings.draft_runs_on)
        own_core = draft.type == "cpu" and usable_cores() > targets.count(draft)
        return candidates(
            has_draft=self._recipe is not None,
            beside=self._settings.background != "inline" and (draft not in targets or own_core),
            same_device=draft in targets,
            in_turns=self._draft_model is not None and self._is_faster_in_turns(),
        )

    @property
    def _has_serial_draft(self) -> bool:
        return not SERIAL_DRAFT.isdisjoint(self._candidates())

    def _is_faster_in_turns(self) -> bool:
        """Whether a draft before the target, with all cores for each, settles more per second than
        one beside it."""
        speeds = self._draft_speeds(LIKELY_KEPT)
        return speeds["double-serial"] > speeds["double"]

    def _draft_speeds(self, kept: float) -> dict[str, float]:
        """How many times as fast as plain decoding the methods with a draft are, if such a share of
        its choices hold."""
        if self._draft_seconds is None:
            self._draft_seconds = _measure_draft(self.draft_model())
        return likely_speeds(self.cost, *self._draft_seconds, kept)

    def close(self) -> None:
        """Ends background drafters; what is asked for later starts them again."""
        with self._mutex.lock:
            if self._background is not None:
                self._background.close()
        self._mutex.catch_up()

    def retrieval(self, settings: RetrievalSettings) -> Retrieval:
        """Retrieval on the target's side."""
        history = None if self.history is None else self.history.index_of
        return Retrieval(settings, history, self.cost.of_alone(1))

    def draft_model(self) -> LanguageModel:
        """The draft model in this process, read when it is first needed."""
        assert self._recipe is not None
        if self._draft_model is None:
            usual, begun = None if self.threads is None else self._settings.threads, perf_counter()
            self._draft_model = self._recipe.load(usual)
            self._reading_seconds = perf_counter() - begun
        return self._draft_model

    @property
    def _lost_by_loading(self) -> float:
        """Seconds that answers take longer while the draft beside the target is loaded, which needs
        a core of those that the target may use."""
        return (_START_SECONDS + self._reading_seconds) * (1.0 - self.cost.alone)

    def drafter(self, retrieval: RetrievalSettings | None, target_side: Retrieval) -> Drafter:
        """A draft before the target. With retrieval, it is left out where the target had better
        be shown a run of its own side."""
        assert self._recipe is not None
        model, target_seconds = self.draft_model(), self.cost.of_alone(1)
        row_cost = self.cost.row_share(beside=False)
        drafter, steps, seconds = self._recipe.drafter(
            model, retrieval, target_side, target_seconds, row_cost
        )
        choice = None if retrieval is None else target_side.choice(steps, seconds, row_cost)
        if choice is None:
            return drafter
        return DraftUnlessRun(drafter, choice, perf_counter, target_seconds)

    def background(self) -> RemoteDrafter:
        """The draft beside the target, of the kind that the settings name; one for all methods."""
        assert self._recipe is not None
        if self._background is None:
            timeout = self._settings.draft_timeout
            patience = Patience(load_seconds=20 * timeout, answer_seconds=timeout)
            link = self._link(self._recipe)
            self._background = RemoteDrafter(link, patience, loads=self._draft_loads)
        return self._background

    def governors(self) -> list[Threads]:
        """What chooses the threads of models that share cores with a draft beside the target."""
        draft: Threads | None = getattr(self._draft_model, "threads", None)
        return [threads for threads in (self.threads, draft) if threads is not None]

    def _draft_loads(self, is_loading: bool) -> None:
        for threads in self.governors():
            threads.draft_loads(is_loading)

    def _link(self, recipe: DraftRecipe) -> Callable[[], Link]:
        if self._settings.background == "process":
            return lambda: ProcessLink(recipe, self._settings.draft_threads)
        kind = ThreadLink if self._settings.background == "thread" else InlineLink
        return lambda: kind(recipe)

    @property
    def guess_tokens(self) -> int:
        return self._settings.guess_tokens

    def _choice(self, preset: Preset) -> "_Choice":
        retrieval = preset.retrieval or self._settings.retrieval
        lockstep = (preset.schedule or self._settings.schedule) == "lock-step"
        forks = self._settings.forks if preset.forks is None else preset.forks
        if self._settings.background == "inline":  # it drafts only when it is waited for
            lockstep = True
        return _Choice(retrieval, lockstep, ForkSettings(0 if lockstep else forks))

    def _locked(self, steps: Steps) -> Steps:
        threads: int | None = None
        try:
            while True:
                with self._mutex.lock:
                    if threads is None:
                        threads = use_threads(self._settings.threads)
                    else:
                        keep_threads(threads)
                    if self._background is not None:
                        self._background.hear_if_loading()
                    made = ready_steps(steps)
                self._mutex.catch_up()
                if not made:
                    return
                yield from made
        finally:
            self._mutex.tidy(steps.close)


def _kept(steps: Steps, history: History, prompt: Tokens, tenant: str) -> Steps:
    """The steps of an answer, which is kept when it ends or is cancelled."""
    text = list(prompt)
    try:
        for step in steps:
            text += step.new
            yield step
    finally:
        steps.close()
        history.add(text, tenant)


def _measure_draft(model: LanguageModel) -> tuple[float, float]:
    """Seconds of a forward on the cores of a draft beside the target, and of one of those with
    which a draft before it goes on by itself, if it does, on the cores that it has."""
    threads: Threads | None = getattr(model, "threads", None)
    with nullcontext() if threads is None else threads.fixed(threads.usual):
        single = undisturbed_seconds(model)
    own = single if threads is None else undisturbed_seconds(model)
    return single, chained_seconds(model) if goes_on_by_itself(model, own) else own


class _Announced:
    """A draft beside the target of one answer, which leaves its core to it while it rests: also
    while the target reads a long prompt, when nothing is shown to it yet (`decoding.py`)."""

    def __init__(
        self,
        drafter: BackgroundDrafter,
        governors: Callable[[], list[Threads]],
        unread: Callable[[Tokens, int], int],
    ) -> None:
        """`governors` choose threads. `unread` says how many tokens of a text the target has still
        to read, given the length of the prompt."""
        self._drafter = drafter
        self._governors = governors
        self._unread = unread
        self._works = False
        self._told: list[Threads] = []  # that it works

    def follow(self, tokens: Tokens, limit: int, request: Request) -> Pending:
        if not self._works:
            is_prompt = len(tokens) == request.prompt_length
            if is_prompt and self._unread(tokens, request.prompt_length) >= _LONG_PROMPT:
                return Pending([])
            self._works, self._told = True, self._governors()
            for threads in self._told:
                threads.draft_begins()
        return self._drafter.follow(tokens, limit, request)

    def wait(self, pending: Pending, shown: int, limit: int) -> list[int]:
        return self._drafter.wait(pending, shown, limit) if self._works else pending.tokens

    def rest(self) -> None:
        try:
            self._drafter.rest()
        finally:
            if self._works:
                self._works = False
                for threads in self._told:
                    threads.draft_rests()

    def close(self) -> None:
        self._drafter.close()


@dataclass(frozen=True, slots=True)
class _Choice:
    """Settings that parts are made with."""

    retrieval: RetrievalSettings
    lockstep: bool
    forks: ForkSettings


class _Parts:
    """The parts with one choice of settings."""

    def __init__(self, engine: Engine, target: LanguageModel, choice: _Choice) -> None:
        self.target = target
        self.guess_tokens = engine.guess_tokens
        self.at_once = engine.cost.at_once
        self.plain_seconds = engine.cost.of_plain
        self.clock: Clock = perf_counter
        self._engine = engine
        self._choice = choice
        self.scheduler = engine.make_scheduler()
        self.sounding = engine.make_sounding()
        self._target_side = engine.retrieval(choice.retrieval)
        cost = engine.cost
        row_cost = cost.row_share(beside=False)
        self.lookup_costs = LookupCosts(
            cost.of_plain,
            cost.of_alone(1),
            row_cost,
            ASKING_SECONDS,
            cost.at_once,
            self.guess_tokens,
        )
        searching = self.lookup_costs.of_search, self.lookup_costs.of_showing
        is_all = engine.history is None and not choice.retrieval.datastores
        foreseen = is_all and choice.retrieval.ngram is None and cost.at_once > 1
        self.pauses = Pauses(*searching, foreseen=foreseen)
        self.hindsight = Hindsight(
            HINDSIGHT,
            self._target_side.lookup(row_cost, prices=self.lookup_costs.prices),
            engine.guess_tokens,
            self.lookup_costs.seconds,
            self.pauses,
            self.at_once,
            lambda: self.lookup_costs.are_seen,
        )
        self._lookups: dict[DraftKind | None, Helper] = {}
        self._drafts: dict[bool, Drafter] = {}

    def lookup(self, behind: DraftKind | None = None) -> Helper:
        if behind not in self._lookups:
            beside = behind == "beside"
            row_cost = self._engine.cost.row_share(beside=beside)
            prices = None if behind else self.lookup_costs.prices
            self._lookups[behind] = self._target_side.lookup(row_cost, beside=beside, prices=prices)
        return self._lookups[behind]

    def draft(self, *, retrieval: bool) -> Drafter:
        if retrieval not in self._drafts:
            wanted = self._retrieval(retrieval, beside=False)
            self._drafts[retrieval] = self._engine.drafter(wanted, self._target_side)
        return self._drafts[retrieval]

    def background(self, *, retrieval: bool) -> BackgroundDrafter:
        choice = self._choice
        settings = self._retrieval(retrieval, beside=True)
        style = DraftStyle(settings, choice.lockstep, None, choice.forks)
        drafter = StyledDrafter(self._engine.background(), style)
        governors = self._engine.governors
        if self._engine.threads is None:
            return drafter
        if isinstance(self.target, LocalDecoder):
            return _Announced(drafter, governors, self.target.unread)
        return _Announced(drafter, governors, lambda tokens, _: len(tokens))  # it does not tell

    def forward_seconds(self, shown: int, *, beside: bool) -> float:
        cost = self._engine.cost
        return cost.of(shown + 1) if beside else cost.of_alone(shown + 1)

    def is_draft_ready(self, may_take: Callable[[float], bool]) -> bool:
        return self._engine.is_draft_ready(may_take)

    def _retrieval(self, wanted: bool, *, beside: bool) -> RetrievalSettings | None:
        """On the draft's side, for a target that it works beside or before."""
        settings = self._choice.retrieval
        if wanted and settings.row_cost is None:
            return replace(settings, row_cost=self._engine.cost.row_share(beside=beside))
        return settings if wanted else None
