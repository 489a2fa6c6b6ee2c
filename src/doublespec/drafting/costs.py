"""What the steps of prompt lookup take, as it is seen in the midst of answers.

How much a run must promise depends on how much longer a forward takes that shows one, and how often
to search on what a search takes, both in steps of plain decoding. These differ by several times
between machines, and from what can be measured at load, when caches hold the model and nothing else
is at work (docs/log.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from doublespec.ratio import Ratio
from doublespec.retrieval.expectation import MOST_TOKENS
from doublespec.retrieval.layered import Prices
from doublespec.retrieval.recurrence import Judged

_Numbers = npt.NDArray[np.float64]

_MEMORY = 0.85  # of what was learnt, with each lot of cases
_LOT = 16  # cases, after which what was learnt of them is told
_PRIOR = 0.1  # cases that each expectation counts for, always: cases alone may be of one size only
_LONGEST = 2.0  # times as long as was known, and no longer counts a case: the machine was stopped
_INSTANT = 1e-9  # seconds, where no time passes
_SEARCHES = 8.0  # cases that the expected time of a search counts for
_FAR = 15  # tokens shown, at which a forward's time is expected besides that of none
_LATEST = 4  # forwards with a guess in a call, that are learnt of
_ALIKE = 0.1  # parts by which what rows cost must change to be told


class Case(NamedTuple):
    """A call with a number of forwards, or of tokens that its only forward shows."""

    number: int
    seconds: float


class CallTimes:
    """seconds = call + each x number, by least squares of the share of itself that each case is
    off: of those `expected`, as many times as long as the `slowness` says, and of those seen, the
    later ones of which count more. Cases are taken in by lots."""

    def __init__(self, slowness: Ratio, *expected: Case) -> None:
        self._expected = _PRIOR * _products(expected, [case.seconds for case in expected])
        self._seen = np.zeros_like(self._expected)
        self._wanted = self._found = _solved(self._expected)
        self._slowness = slowness
        self._lot: list[Case] = []

    def learn(self, case: Case) -> bool:
        """Whether a lot is complete, so that what is told changes."""
        longest = _LONGEST * self.seconds(case.number)
        self._lot.append(case._replace(seconds=min(case.seconds, longest)))
        if len(self._lot) < _LOT:
            return False
        lot, self._lot = self._lot, []
        wanted = [_at(self._wanted, case.number) for case in lot]
        self._seen = _MEMORY * self._seen + _products(lot, wanted)
        shares = (case.seconds / one for case, one in zip(lot, wanted, strict=True))
        self._slowness.learn(sum(shares), len(lot))
        self.refresh()
        return True

    def refresh(self) -> None:
        """Takes in how slow all have turned out to be."""
        expected = self._expected.copy()
        expected[:2, 2] *= self._slowness.value
        self._found = _solved(expected + self._seen)

    def seconds(self, number: int) -> float:
        return _at(self._found, number)

    def as_shares(self, count: int, whole: float) -> list[float]:
        """What 1 to `count` of the number take, in parts of a whole that none is less than."""
        call, each = (seconds / whole for seconds in self._found)
        return [max(1.0, call + each * number) for number in range(1, count + 1)]


_Line = tuple[float, float]  # call, each


def _at(line: _Line, number: int) -> float:
    call, each = line
    return max(call + each * number, _INSTANT)


def _products(cases: Sequence[Case], scales: Sequence[float]) -> _Numbers:
    """(3, 3): of (1, number, seconds) of each case, in parts of its scale, with itself."""
    numbers = np.array([(1.0, case.number, case.seconds) for case in cases])
    numbers /= np.maximum(scales, _INSTANT)[:, None]
    return np.asarray(numbers.T @ numbers)


def _solved(products: _Numbers) -> _Line:
    """None is below 0; where cases leave them open, the smallest."""
    found = np.linalg.lstsq(products[:2, :2], products[:2, 2], rcond=1e-9)[0]
    call, each = (max(0.0, number) for number in found.tolist())
    return call, each


class LookupCosts:
    """Learns what a search takes, and calls of forwards, by how many there are and how many tokens
    the first one shows; `prices` are what an index is to reckon with, and are kept up."""

    def __init__(
        self,
        plain: float,
        single: float,
        row_cost: float,
        search: float,
        at_once: int,
        most: int = MOST_TOKENS,
    ) -> None:
        """What to expect: seconds of a forward that follows another one in the same call, of one
        by itself, the share of that which each shown token adds, and seconds of a search. At most
        `at_once` forwards come in one call, and one shows at most so many tokens."""
        self._at_once = at_once
        self.are_seen = False  # in the midst of answers, not only expected
        # Apart: how long a call is, and how many rows a forward has, tell nothing of each other.
        slowness = Ratio(1.0, _PRIOR, _MEMORY)
        together = Case(at_once, single + (at_once - 1) * plain)
        longer = 1.0 + row_cost * _FAR
        self._calls = CallTimes(slowness, Case(1, single), together)
        self._shows = CallTimes(slowness, Case(0, single), Case(_FAR, single * longer))
        self._chained = CallTimes(slowness, Case(0, plain), Case(_FAR, plain * longer))
        self._search = Ratio(search, _SEARCHES)
        self.prices = Prices([1.0] * (most + 1))
        self._refresh()
        self._tell_chained()

    def learn(
        self,
        forwards: int,
        computing: float,
        judged: Sequence[Judged] = (),
        searching: float | None = None,
    ) -> None:
        """So many forwards in one call, some of which have judged a guess, took so many seconds;
        a search in vain before it (None: there was none) so many others."""
        if searching is not None:
            self._learn_search(searching)
        guesses = [guess for guess in judged if guess.shown]
        for place, shown, seconds in guesses:  # what the first one took is not known by itself
            computing -= seconds if place else self._chained.seconds(len(shown))
        if forwards > len(guesses):
            self._learn(0, forwards - len(guesses), max(computing, _INSTANT))
        cases = [Case(len(guess.shown), guess.seconds) for guess in judged if guess.place]
        if sum(map(self._chained.learn, cases[-_LATEST:])):
            self._tell_chained()

    def learn_shown(self, shown: int, searching: float, computing: float) -> None:
        """A search has found a run, and one forward shows so many tokens of it."""
        self._learn_search(searching)
        self._learn(shown, 1, computing)

    def _learn_search(self, seconds: float) -> None:
        self._search.learn(min(seconds, _LONGEST * self._search.value), 1)

    def learn_plain(self, forwards: int, seconds: float) -> None:
        """A call of plain decoding made so many forwards, which take as long as those that follow a
        search in vain."""
        self._learn(0, forwards, seconds)

    def _learn(self, shown: int, forwards: int, seconds: float) -> None:
        times, other = (self._shows, self._calls) if shown else (self._calls, self._shows)
        if times.learn(Case(shown or forwards, seconds)):
            other.refresh()
            self.are_seen = True
            self._refresh()

    def seconds(self, shown: Sequence[int], searched: bool) -> float:
        """Of forwards in one call, which show so many tokens each, possibly behind a search: of
        what that has found, there is only one."""
        search = self._search.value if searched else 0.0
        if (searched or self._at_once == 1) and shown[0]:  # else it was guessed ahead
            return search + self._shows.seconds(shown[0])
        guessed = sum(self._chained.seconds(count) for count in shown if count)
        return search + self._calls.seconds(shown.count(0)) + guessed

    def of_call(self, forwards: int) -> float:
        """How many times as long a step of plain decoding takes in a call of so many forwards as in
        one of the most that come at once."""
        return self._calls.seconds(forwards) / forwards / self._plain

    def of_search(self) -> float:
        """What a search that finds nothing costs in all, in steps of plain decoding, which would be
        made in one call but for it."""
        apart = self._calls.seconds(1) - self._plain
        return (self._search.value + max(0.0, apart)) / self._plain

    def of_showing(self, shown: int) -> float:
        """What so many shown tokens add to a forward by itself, in steps of plain decoding."""
        return (self._shows.seconds(shown) - self._calls.seconds(1)) / self._plain

    @property
    def _plain(self) -> float:
        return self._calls.seconds(self._at_once) / self._at_once

    def _refresh(self) -> None:
        plain, rows = self._plain, self.prices.rows
        if self._at_once == 1:  # else there are pauses between searches
            self.prices.search = self._search.value / plain
        rows[1:] = self._shows.as_shares(len(rows) - 1, plain)

    def _tell_chained(self) -> None:
        """What rows cost where a model goes on by itself, unless it is known."""
        one, told = self._chained.seconds(0), self.prices.chained
        chained = tuple(self._chained.seconds(n) / one for n in range(len(told)))
        if abs(chained[-1] - told[-1]) > _ALIKE * told[-1]:
            self.prices.chained = chained
