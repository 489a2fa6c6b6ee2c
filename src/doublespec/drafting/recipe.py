"""The recipe of a draft: plain values from which this process, or another one, builds it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, TypeGuard

from doublespec.config import DraftStyle, RetrievalSettings
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.base import Drafter, NoDrafter
from doublespec.drafting.confident import ConfidentDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.retrieved import History, Retrieval
from doublespec.drafting.worker import Draft, Worker
from doublespec.models.base import ChainingModel, LanguageModel, can_chain
from doublespec.models.choice import choose_dtype
from doublespec.models.devices import find_device
from doublespec.models.load import (
    ForwardCost,
    chained_seconds,
    load_model,
    share_cores,
    undisturbed_seconds,
)
from doublespec.models.vocabulary import CommonVocabulary
from doublespec.models.weights import Source
from doublespec.retrieval.history import open_history
from doublespec.retrieval.linking import linking

_MOST_STEPS = 16
LIKELY_KEPT = 0.85  # of drafted tokens, before anything is known of the text
LONGEST_LIKELY = 16  # draft
_FOLLOW_SECONDS = 8e-5  # what a step hears of a draft beside it, and tells it (docs/log.md)
_BETWEEN_SECONDS = 7e-5  # what that draft spends between two forwards (docs/log.md),
_SHARED = 1.6  # and how many times as long these take as alone: caches and memory are shared
_SHORT_FORWARD = 2e-3  # of a draft, seconds, of which what is between two takes a good part


@dataclass(frozen=True, slots=True)
class DraftRecipe:
    """A draft model: where its weights are, and where it runs. `target_seconds` is the time of one
    forward of the target, `gamma` the number of draft forwards in it (None: to be measured).
    `history` is the descriptor of earlier answers, which a child process must inherit; `wrap` is
    put around the model once it is read, and importable by name."""

    source: Source
    device: str | None
    dtype: str | None
    vocab_size: int
    max_length: int
    gamma: int | None
    target_seconds: float
    history: int | None = None
    wrap: Callable[[LanguageModel], LanguageModel] | None = None
    graphs: bool = True
    kernels: str | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that a child process must inherit."""
        return () if self.history is None else (self.history,)

    def load(self, usual_threads: int | None = None) -> LanguageModel:
        """Reads the model. One that works in turns with a target on the CPU takes all cores where
        these are faster (`models/threads.py`), and else that usual number of threads."""
        device = find_device(self.device)
        dtype = choose_dtype(self.dtype, self.kernels, self.source.config, [device])
        model = load_model(
            self.source,
            device,
            dtype,
            canonical=False,
            max_length=self.max_length,
            graphs=self.graphs,
            kernels=self.kernels,
        )
        if usual_threads is not None:
            share_cores(model, usual_threads)
        common = CommonVocabulary(model, self.vocab_size)
        return common if self.wrap is None else self.wrap(common)

    def __call__(self) -> Worker:
        """The draft beside the target."""
        model, history = self.load(), self._history()
        linking()  # is compiled: else the first lookup would
        seconds = undisturbed_seconds(model)

        def make(style: DraftStyle) -> Draft:
            ahead = DraftAhead(model, _helper(style.retrieval, history, seconds), style.forks)
            return Draft(ahead, style.gamma or self._steps(seconds) if style.lockstep else None)

        return Worker(make)

    def drafter(
        self,
        model: LanguageModel,
        retrieval: RetrievalSettings | None,
        target_side: Retrieval,
        target_seconds: float,
        row_cost: float,
    ) -> "SerialDraft":
        """The draft before a target whose forwards take `target_seconds` then, and longer by the
        share `row_cost` for each token that they are shown, around a model that is loaded already.
        With retrieval (in what the target's side searches) and no given gamma, it makes as many
        forwards as are worth their time; else so many that most is settled a second if 85 of a
        hundred drafted tokens hold."""
        seconds = undisturbed_seconds(model)
        helper: Drafter = NoDrafter()
        if retrieval is not None:
            helper = target_side.shared(retrieval, seconds).lookup()
        share = seconds / target_seconds
        chains = goes_on_by_itself(model, seconds)
        if retrieval is not None and retrieval.ngram is None and self.gamma is None:
            confident = ConfidentDrafter(
                model,
                helper,
                share,
                row_cost=retrieval.row_cost or 0.0,
                clock=perf_counter,
                unit=target_seconds,
                chains=chains,
            )
            return SerialDraft(confident, confident.steps, confident.steps * share)
        if retrieval is None and goes_on_by_itself(model, seconds):
            share = chained_seconds(model) / target_seconds
        steps = self.gamma or _best_length(share, row_cost)
        drafter = ModelDrafter(model, steps, helper, chains=chains and retrieval is None)
        return SerialDraft(drafter, steps, steps * share)

    def _history(self) -> History | None:
        return None if self.history is None else open_history(self.history)

    def _steps(self, seconds: float) -> int:
        """As many forwards, each of which takes `seconds`, as a forward of the target is long."""
        return self.gamma or max(1, min(round(self.target_seconds / seconds), _MOST_STEPS))


def likely_settled(drafted: float, kept: float = LIKELY_KEPT) -> float:
    """How many tokens a step settles that is shown so many drafted ones, each of which holds with
    such a chance (below 1) where those before it do (arXiv 2211.17192, eq. 1)."""
    return (1.0 - math.pow(kept, drafted + 1.0)) / (1.0 - kept)


def likely_rate(seconds: Callable[[int], float], kept: float) -> float:
    """Tokens per second at the best length of draft, of which each token holds with such a chance;
    a step with so many drafted tokens takes so many `seconds`."""
    return max(likely_settled(n, kept) / seconds(n) for n in range(1, LONGEST_LIKELY + 1))


def likely_speeds(
    cost: ForwardCost, single: float, chained: float, kept: float
) -> dict[str, float]:
    """How many times as fast as plain decoding a draft is before the target, with all cores for
    each, and beside it, by the names of the methods, if such a share of its choices hold: by the
    times of forwards alone, at the best length of draft for either. Those of the draft take
    `single` seconds on the cores that it has beside the target, and `chained` where it goes on by
    itself before it."""
    lengths = range(1, LONGEST_LIKELY + 1)
    before = likely_rate(lambda n: cost.of_alone(n + 1) + n * chained, kept)
    steps = [cost.of(n + 1) + _FOLLOW_SECONDS for n in lengths]
    forward = _SHARED * single + _BETWEEN_SECONDS
    beside = (
        likely_settled(min(n, step / forward), kept) / step
        for n, step in zip(lengths, steps, strict=True)
    )
    plain = cost.of_plain
    return {"double-serial": plain * before, "double": plain * max(beside)}


def _best_length(seconds: float, row_cost: float) -> int:
    """Of a draft of which a token takes so many forwards of the target, and a row in that one."""
    lengths = range(1, LONGEST_LIKELY + 1)
    return max(lengths, key=lambda n: likely_settled(n) / (1.0 + n * (row_cost + seconds)))


def goes_on_by_itself(model: LanguageModel, seconds: float) -> TypeGuard[ChainingModel]:
    """Whether a draft before the target whose forwards take `seconds` does, where it may: a longer
    call would hold up an interrupt, for nothing."""
    return can_chain(model) and seconds < _SHORT_FORWARD


class SerialDraft(NamedTuple):
    """A draft before the target: how many forwards it is likely to make, and how long they take,
    in forwards of the target."""

    drafter: Drafter
    steps: int
    seconds: float


def _helper(
    retrieval: RetrievalSettings | None, history: History | None, seconds: float
) -> Drafter:
    """Retrieval for a draft whose forwards take `seconds`."""
    if retrieval is None:
        return NoDrafter()
    return Retrieval(retrieval, history, seconds).lookup()
