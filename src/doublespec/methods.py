"""The methods by name, each a composition of the same parts. The only file that knows the names.

To add one, write a function and put it into METHODS; the losslessness test picks it up.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

from doublespec.config import PRESETS
from doublespec.decoding import (
    Clock,
    Steps,
    decode_by_lookup,
    decode_in_turns,
    decode_parallel,
    decode_plain,
    decode_serial,
)
from doublespec.drafting.base import BackgroundDrafter, Completer, Drafter, NoDrafter
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.lookup import Helper
from doublespec.drafting.pauses import Pauses
from doublespec.drafting.sounding import Sounding
from doublespec.errors import ConfigError
from doublespec.models.base import LanguageModel
from doublespec.sampling import Request
from doublespec.scheduling.scheduler import Scheduler
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens

DraftKind = Literal["serial", "beside"]  # a draft before the target, or beside it


class Parts(Protocol):
    """What methods are made of. Parts with state are kept from one answer to the next."""

    target: LanguageModel
    guess_tokens: int
    at_once: int  # forwards of plain decoding that may be made before the first is yielded
    clock: Clock
    plain_seconds: float  # of a step of it, as far as is known before
    pauses: Pauses  # between searches of prompt lookup
    lookup_costs: LookupCosts
    scheduler: Scheduler
    hindsight: Hindsight
    sounding: Sounding | None  # None: no draft in this process

    def lookup(self, behind: DraftKind | None = None) -> Helper:
        """Retrieval in the text so far: alone, or behind a draft of one kind or the other. Each
        learns for itself how far its runs hold, since behind a draft other places are left."""
        ...

    def draft(self, *, retrieval: bool) -> Drafter:
        """The draft model in this process, its forwards judging retrieved runs or not."""
        ...

    def background(self, *, retrieval: bool) -> BackgroundDrafter:
        """The draft model beside the target."""
        ...

    def forward_seconds(self, shown: int, *, beside: bool) -> float:
        """What a forward of the target that shows so many tokens takes, as far as is known before
        it: beside a draft at work, or alone."""
        ...

    def is_draft_ready(self, may_take: Callable[[float], bool]) -> bool:
        """Whether the draft beside the target is loaded. If it never was, loading begins where it
        `may_take` so many seconds from answers; a lost one comes back by itself."""
        ...


Method = Callable[[Parts, Tokens, Request, StopRule], Steps]

_NOTHING = NoDrafter()


def ar(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Autoregressive decoding: one token a forward."""
    return _plain(parts, prompt, request, stop, lambda: parts.at_once)


def lookup(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Prompt lookup: the target judges a retrieved run."""
    return _lookup(parts, prompt, request, stop, lambda: parts.at_once)


def sd(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Speculative decoding (arXiv 2211.17192): draft, then judge."""
    return _serial(parts, parts.draft(retrieval=False), _NOTHING, prompt, request, stop)


def double_serial(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Speculative decoding with both of Double's retrievals, for models that share a device."""
    return _serial(
        parts, parts.draft(retrieval=True), parts.lookup("serial"), prompt, request, stop
    )


def psd(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Parallel speculative decoding (PEARL, arXiv 2408.11850): draft while judging."""
    return _parallel(parts, parts.background(retrieval=False), _NOTHING, prompt, request, stop)


def double(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Double (arXiv 2601.05524): PSD with retrieval on both sides."""
    background = parts.background(retrieval=True)
    return _parallel(parts, background, parts.lookup("beside"), prompt, request, stop)


def double_target_only(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Double without draft-side retrieval (the paper's ablation)."""
    background = parts.background(retrieval=False)
    return _parallel(parts, background, parts.lookup("beside"), prompt, request, stop)


def double_draft_only(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Double without target-side retrieval (the paper's ablation)."""
    return _parallel(parts, parts.background(retrieval=True), _NOTHING, prompt, request, stop)


def auto(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Steps:
    """Whichever of the others is the fastest here, found by trying."""

    def begin(name: str, tokens: Tokens, left: Callable[[], int]) -> Steps:
        if name in ("ar", "lookup"):
            begun = partial(_plain, costs=parts.lookup_costs) if name == "ar" else _lookup
            return begun(parts, tokens, request, stop, lambda: min(parts.at_once, left()))
        return METHODS[name](parts, tokens, request, stop)

    def can_run(name: str) -> bool:
        return name not in BESIDE or parts.is_draft_ready(partial(parts.scheduler.affords, name))

    def expected(name: str, shown: int, forwards: int) -> float:
        if name == "ar":
            return parts.plain_seconds * parts.lookup_costs.of_call(forwards)
        first = parts.forward_seconds(shown, beside=name in BESIDE)
        return (first + (forwards - 1) * parts.plain_seconds) / forwards

    learnt, clock, sounding = (parts.scheduler, parts.hindsight), parts.clock, parts.sounding
    return decode_in_turns(begin, can_run, *learnt, prompt, request, expected, clock, sounding)


METHODS: dict[str, Method] = {
    "auto": auto,
    "ar": ar,
    "lookup": lookup,
    "sd": sd,
    "psd": psd,
    "double": double,
    "double-serial": double_serial,
    "double-target-only": double_target_only,
    "double-draft-only": double_draft_only,
}
DRAFTLESS = frozenset({"auto", "ar", "lookup"})  # methods that can do without a draft
SERIAL_DRAFT = frozenset({"sd", "double-serial"})  # with a draft before the target
HINDSIGHT = "lookup"  # it can be judged by text that another one has settled
BESIDE = frozenset({"psd", "double", "double-target-only", "double-draft-only"})  # beside it


def candidates(
    *, has_draft: bool, beside: bool, same_device: bool, in_turns: bool = False
) -> list[str]:
    """What `auto` chooses from, the likely best first. `beside`: the draft can work while the
    target does, on a device or a core of its own. `in_turns`: it had better work before it."""
    names = ["double"] * (has_draft and beside) + ["double-serial"] * (has_draft and same_device)
    return [*(names[::-1] if in_turns else names), "lookup", "ar"]


def split_name(name: str) -> tuple[str, str | None]:
    """A method's name and its preset, "double@paper" being ("double", "paper"). Raises
    ConfigError on unknown ones."""
    method, _, preset = str(name).partition("@")
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    if preset and preset not in PRESETS:
        raise ConfigError(f"the preset after @ must be one of {', '.join(PRESETS)}, got {name!r}")
    if preset and method == "ar":
        raise ConfigError(f"plain decoding takes no preset, got {name!r}; give ar")
    return method, preset or None


def check_method(name: str, *, has_draft: bool) -> str:
    """The name as it is written in one way; raises ConfigError where it is unknown or needs a draft
    that is not there."""
    method, preset = split_name(name)
    if method not in DRAFTLESS and not has_draft:
        raise ConfigError(f"method {method!r} needs a draft model; give one, or use lookup")
    return "@".join(filter(None, (method, preset)))


def _plain(
    parts: Parts,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
    at_once: Callable[[], int],
    costs: LookupCosts | None = None,
) -> Steps:
    return decode_plain(parts.target, prompt, request, stop, at_once, parts.clock, costs)


def _lookup(
    parts: Parts, prompt: Tokens, request: Request, stop: StopRule, at_once: Callable[[], int]
) -> Steps:
    parts_of_it = parts.target, parts.lookup(), parts.pauses, parts.lookup_costs
    return decode_by_lookup(
        *parts_of_it, prompt, request, stop, parts.guess_tokens, at_once, parts.clock
    )


def _serial(
    parts: Parts,
    drafter: Drafter,
    helper: Completer,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
) -> Steps:
    return decode_serial(
        parts.target, drafter, helper, prompt, request, stop, parts.guess_tokens, parts.clock
    )


def _parallel(
    parts: Parts,
    drafter: BackgroundDrafter,
    helper: Completer,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
) -> Steps:
    return decode_parallel(
        parts.target, drafter, helper, prompt, request, stop, parts.guess_tokens, parts.clock
    )
