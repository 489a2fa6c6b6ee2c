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

_Numbers = npt.NDArray[np.float64]

_MEMORY = 0.85  # of what was learnt, with each lot of cases
_LOT = 16  # cases, after which what was learnt of them is told
_PRIOR = 0.1  # cases that each expectation counts for, always: cases alone may be of one size only
_LONGEST = 2.0  # times as long as was known, and no longer counts a case: the machine was stopped
_INSTANT = 1e-9  # seconds, where no time passes
_SEARCHES = 8.0  # cases that the expected time of a search counts for
_FAR = 15  # tokens shown, at which a forward's time is expected besides that of none


class Case(NamedTuple):
    """A call of so many forwards, the first of which shows so many tokens."""

    forwards: int
    shown: int
    seconds: float


class CallTimes:
    """seconds = call + each x forwards + row x shown, by least squares of the share of itself that
    each case is off: of those `expected`, as much longer as all have turned out to take, and of
    those seen, the later ones of which count more. Cases are taken in by lots."""

    def __init__(self, *expected: Case) -> None:
        self._expected = _PRIOR * _products(expected, [case.seconds for case in expected])
        self._seen = np.zeros_like(self._expected)
        self._wanted = self._found = _solved(self._expected)
        self._slowness = Ratio(1.0, _PRIOR, _MEMORY)
        self._lot: list[Case] = []

    def learn(self, case: Case) -> bool:
        """Whether a lot is complete, so that what is told changes."""
        longest = _LONGEST * self.seconds(case.forwards, case.shown)
        self._lot.append(case._replace(seconds=min(case.seconds, longest)))
        if len(self._lot) < _LOT:
            return False
        lot, self._lot = self._lot, []
        wanted = [_at(self._wanted, case.forwards, case.shown) for case in lot]
        self._seen = _MEMORY * self._seen + _products(lot, wanted)
        shares = (case.seconds / one for case, one in zip(lot, wanted, strict=True))
        self._slowness.learn(sum(shares), len(lot))
        expected = self._expected.copy()
        expected[:3, 3] *= self._slowness.value
        self._found = _solved(expected + self._seen)
        return True

    def seconds(self, forwards: int, shown: int) -> float:
        return _at(self._found, forwards, shown)


_Line = tuple[float, float, float]  # call, each, row


def _at(line: _Line, forwards: int, shown: int) -> float:
    call, each, row = line
    return max(call + each * forwards + row * shown, _INSTANT)


def _products(cases: Sequence[Case], scales: Sequence[float]) -> _Numbers:
    """(4, 4): of (1, forwards, shown, seconds) of each case, in parts of its scale, with itself."""
    numbers = np.array([(1.0, case.forwards, case.shown, case.seconds) for case in cases])
    numbers /= np.maximum(scales, _INSTANT)[:, None]
    return np.asarray(numbers.T @ numbers)


def _solved(products: _Numbers) -> _Line:
    """None is below 0; where cases leave them open, the smallest."""
    found = np.linalg.lstsq(products[:3, :3], products[:3, 3], rcond=1e-9)[0]
    call, each, row = (max(0.0, number) for number in found.tolist())
    return call, each, row


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
        self._calls = CallTimes(
            Case(1, 0, single),
            Case(at_once, 0, single + (at_once - 1) * plain),
            Case(1, _FAR, single * (1.0 + row_cost * _FAR)),
        )
        self._search = Ratio(search, _SEARCHES)
        self.prices = Prices([1.0] * (most + 1))
        self._refresh()

    def learn(self, shown: int, forwards: int, searching: float, computing: float) -> None:
        """A search took so many seconds, and forwards after it, the first of which shows so many
        tokens."""
        self._search.learn(min(searching, _LONGEST * self._search.value), 1)
        self._learn(Case(forwards, shown, computing))

    def learn_plain(self, forwards: int, seconds: float) -> None:
        """A call of plain decoding made so many forwards, which take as long as those that follow a
        search in vain."""
        self._learn(Case(forwards, 0, seconds))

    def _learn(self, case: Case) -> None:
        if self._calls.learn(case):
            self.are_seen = True
            self._refresh()

    def seconds(self, shown: int, forwards: int) -> float:
        """Of a search and so many forwards, the first of which shows so many tokens."""
        return self._search.value + self._calls.seconds(forwards, shown)

    def of_call(self, forwards: int) -> float:
        """How many times as long a step of plain decoding takes in a call of so many forwards as in
        one of the most that come at once."""
        return self._calls.seconds(forwards, 0) / forwards / self._plain

    def of_search(self) -> float:
        """What a search that finds nothing costs in all, in steps of plain decoding, which would be
        made in one call but for it."""
        apart = self._calls.seconds(1, 0) - self._plain
        return (self._search.value + max(0.0, apart)) / self._plain

    def of_showing(self, shown: int) -> float:
        """What so many shown tokens add to a forward by itself, in steps of plain decoding."""
        calls = self._calls
        return (calls.seconds(1, shown) - calls.seconds(1, 0)) / self._plain

    @property
    def _plain(self) -> float:
        return self._calls.seconds(self._at_once, 0) / self._at_once

    def _refresh(self) -> None:
        plain, rows = self._plain, self.prices.rows
        if self._at_once == 1:  # else there are pauses between searches
            self.prices.search = self._search.value / plain
        shown = range(1, len(rows))
        rows[1:] = [max(1.0, self._calls.seconds(1, n) / plain) for n in shown]
