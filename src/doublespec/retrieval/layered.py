"""Several sources as one: whose run to show, and how much of it. Knows no models."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from doublespec.ratio import Ratio
from doublespec.retrieval.base import Match, QuickIndex, TokenIndex, is_quick
from doublespec.retrieval.expectation import NOTHING, Ahead, Expectation, Run
from doublespec.retrieval.recurrence import MOST_GUESSED, Recurrence, can_guess_ahead
from doublespec.tokens import Tokens, common_prefix

LONGEST_RUN = 96
ROW_COST = 0.015  # of a forward, where no profile says better: 2.7 rows a token on the traces
TAIL = 16  # tokens by which a text is known again
# Where lookups do not pay, one of so many is made, and of twice as many while that finds nothing,
# until they take a negligible share of the time.
_SPACING = 8
_BARREN, _SELDOM = 32, 4  # steps without promise, after which one of so many is looked at
_MEMORY = 0.9  # of what lookups have gained, with each
_NEGLIGIBLE = 0.01  # of a forward: what takes less is always done, as a run may begin anywhere


def steady_rows(row_cost: float, most: int) -> list[float]:
    """Times of forwards that show 0 to `most` tokens, each of which adds as much."""
    return [1.0 + row_cost * n for n in range(most + 1)]


@dataclass(slots=True)
class Prices:
    """Of a forward that shows n tokens (`rows[n]`; `chained[n]`, where a model goes on by itself:
    another object if they change), and of a lookup; the unit is a forward that shows nothing. They
    may change while an index reckons with them."""

    rows: list[float] = field(default_factory=lambda: steady_rows(ROW_COST, LONGEST_RUN))
    search: float = 0.0
    chained: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not self.chained:
            self.chained = tuple(self.rows[: MOST_GUESSED + 1])


class Asking:
    """Whether lookups of one kind gain what they cost: while they do not, one of several is due."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._gained = Ratio(max(1.0, 2 * prices.search), 4.0, _MEMORY)
        self._left_out, self._spacing = 0, _SPACING

    def is_due(self) -> bool:
        cost = self._prices.search
        if cost <= self._gained.value:
            self._left_out, self._spacing = 0, _SPACING
            return True
        self._left_out += 1
        if self._left_out < self._spacing:
            return False
        largest = max(_SPACING, round(cost / _NEGLIGIBLE))
        self._left_out, self._spacing = 0, min(2 * self._spacing, largest)
        return True

    def learn(self, gained: float) -> None:
        """A lookup has gained so much."""
        self._gained.learn(gained, 1)


class Asked(NamedTuple):
    """What the sources found for a text of `length` tokens that ended with `tail`, by a lookup of
    some kind; and what was shown of it (`run`), whose every token is `worth` so much time, and
    which `costs` some."""

    asking: Asking
    length: int
    tail: Tokens
    matches: list[Match]
    run: Tokens
    worth: float
    costs: float


_NEVER: tuple[Tokens, int, int] = ((), 0, 0)


class Sources:
    """Several sources, each asked once for what several indexes want to know. A list that only ever
    grows is known again by its length."""

    def __init__(self, sources: Sequence[TokenIndex]) -> None:
        self._sources = sources
        self._quick = [source for source in sources if is_quick(source)]
        self._asked = _NEVER
        self._found: list[Match] = []

    def promising(self, tokens: Tokens) -> QuickIndex | None:
        """The first of those that say at almost no cost whether they have likely seen the end of a
        text before, and have."""
        return next((source for source in self._quick if source.may_know(tokens)), None)

    def guess_ahead(self, tokens: Tokens, costs: Sequence[float], most: int) -> Recurrence | None:
        """By the first of those that can (`recurrence.py`)."""
        able = next(filter(can_guess_ahead, self._sources), None)
        return able.guess_ahead(tokens, costs, most) if able is not None else None

    def find(self, tokens: Tokens, limit: int) -> list[Match]:
        """A run of at most `limit` tokens from each that has one."""
        text, length, most = self._asked
        if text is tokens and length == len(tokens) and 0 < limit <= most:
            return [_cut(match, limit) for match in self._found]
        self._asked = _NEVER  # should what follows be interrupted
        found = [source.lookup(tokens, limit) for source in self._sources]
        self._found = [match for match in found if match is not None]
        self._asked = tokens, len(tokens), limit
        return self._found


def _cut(match: Match, limit: int) -> Match:
    return match if len(match.tokens) <= limit else match._replace(tokens=match.tokens[:limit])


class LayeredIndex:
    """Asks all sources and shows the run that settles most per unit of time, if that is more than
    showing none.

    How far runs hold it learns from the texts themselves, source by source: the next text it is
    handed says what followed the last one, also where the run was not shown. So it learns, too, how
    much time runs gain: while that is less than it takes to look for them, it seldom does. Where a
    source has likely seen the end of the text before, that is learnt for itself, for each source.
    """

    def __init__(
        self, sources: Sources | Sequence[TokenIndex], prices: Prices | None = None
    ) -> None:
        self._sources = sources if isinstance(sources, Sources) else Sources(sources)
        self._barren = 0  # lookups since one promised much
        self._prices = prices or Prices()
        # Of lookups that a source promises something of, and (None) of others.
        self._asking = defaultdict[QuickIndex | None, Asking](partial(Asking, self._prices))
        self._expectations: defaultdict[str, Expectation] = defaultdict(Expectation)
        self._asked: Asked | None = None

    @property
    def is_costly(self) -> bool:
        """Whether a lookup is; others are always made."""
        return self._prices.search > _NEGLIGIBLE

    def lookup(self, tokens: Tokens, limit: int, ahead: Ahead = NOTHING) -> Match | None:
        """The run of the best source, as much of it as pays behind what is shown `ahead` of it
        (the last of `tokens`)."""
        self._learn(tokens)
        asking = self._asking[self._promising(tokens) if self.is_costly else None]
        if self.is_costly and not asking.is_due():
            return None
        rows = self._prices.rows
        most = min(limit, len(rows) - 1 - ahead.shown)
        matches = self._sources.find(tokens, most)
        best, (length, rate) = None, Run(0, 0.0)
        for match in matches:
            run = self._expectations[match.source].best_run(match, rows, ahead)
            if run.rate > rate:
                best, (length, rate) = match, run
        shown = best.tokens[:length] if best is not None else ()
        costs = rows[ahead.shown + length] - rows[ahead.shown]
        worth = rows[ahead.shown] / ahead.settled  # the time in which as much is settled
        self._asked = Asked(asking, len(tokens), tokens[-TAIL:], matches, shown, worth, costs)
        return best._replace(tokens=shown, rate=rate) if best is not None and shown else None

    def guess_ahead(self, tokens: Tokens, most: int) -> Recurrence | None:
        """Guesses while a model goes on by itself, for `most` tokens, if a source can."""
        return self._sources.guess_ahead(tokens, self._prices.chained, most)

    def holds_on(self, match: Match, place: int) -> float:
        """How many tokens of a run that it has found are likely to hold from `place` on, if all
        before do."""
        return self._expectations[match.source].holds_on(match, place)

    def _promising(self, tokens: Tokens) -> QuickIndex | None:
        """The source that promises something of a lookup. Where none has promised anything for
        long, even that is looked at in few steps only."""
        self._barren += 1
        if self._barren > _BARREN and self._barren % _SELDOM:
            return None
        source = self._sources.promising(tokens)
        if source is not None:
            self._barren = 0
        return source

    def _learn(self, tokens: Tokens) -> None:
        """Compare what was found last with what the text has become."""
        if self._asked is None:
            return
        (asking, length, tail, matches, run, worth, costs), self._asked = self._asked, None
        goes_on = len(tokens) > length
        if tokens[max(0, length - TAIL) : length] != tail:
            asking.learn(-costs)
        elif goes_on:
            after = tokens[length : length + LONGEST_RUN]
            asking.learn(common_prefix(run, after) * worth - costs)
            for match in matches:
                self._expectations[match.source].learn(match, after)
