"""How slow forwards are here and now."""

import math
from collections import deque
from collections.abc import Collection
from statistics import median

_SLOWNESS_STEPS = 128  # whose forwards say how long one takes
_LONGEST_FORWARD = 8  # times as long as their mean, and no longer counts one of them
_COMPARED, _COMPARED_STEPS = 32, 4  # forwards before a change to or from plain decoding, and after


class Slowness:
    """How many times as long forwards take here and now as was to be expected beforehand.

    What was expected need not be wrong alike for all methods: one may make several forwards at
    once, and another one's follow those of a draft. The machine is the same just before and just
    after a change of methods, so that each change tells; in the end all is told as it would be of
    the methods whose rate is known.
    """

    def __init__(self, known: Collection[str]) -> None:
        self._known = known
        # Steps in a row, as they were told, and how many; then the sums of all by name, and in all.
        self._latest: deque[tuple[str, float, int]] = deque([("", 1.0, 1)])
        self._sums = {"": 1.0}
        self._sum = 1.0
        self._steps = 1
        self._told: dict[str, deque[float]] = {}  # since a method began last
        self._name = self._before = ""  # the one at work, and the one before it
        # Of what is told of a method, what it is for those known.
        self._share: dict[str, float] = {}

    def add(self, name: str, slowness: float, steps: int) -> None:
        """Forwards of so many steps in a row. None counts as longer than `_LONGEST_FORWARD` times
        what they take on average."""
        if name != self._name:
            self._before, self._name = self._name, name
            self._told[name] = deque(maxlen=_COMPARED)
            self._sums.setdefault(name, 0.0)
        told, latest = self._told[name], self._latest
        before = len(told)
        told.extend([slowness] * steps)
        if before < _COMPARED_STEPS <= len(told):
            self._compare(name, self._before)
        slowness = min(slowness, _LONGEST_FORWARD * self._sum / self._steps)
        latest.append((name, slowness, steps))
        self._sums[name] += steps * slowness
        self._sum += steps * slowness
        self._steps += steps
        while self._steps > _SLOWNESS_STEPS:
            left, slowness, steps = latest.popleft()
            leave = min(steps, self._steps - _SLOWNESS_STEPS)
            if leave < steps:
                latest.appendleft((left, slowness, steps - leave))
            self._sums[left] -= leave * slowness
            self._sum -= leave * slowness
            self._steps -= leave

    @property
    def of_known(self) -> float:
        """Of the latest steps, as if the methods whose rate is known had made them."""
        total = sum(self._of(name) * told for name, told in self._sums.items())
        return total / self._steps

    def _of(self, name: str) -> float:
        return 1.0 if name in self._known else self._share.get(name, 1.0)

    def _compare(self, name: str, before: str) -> None:
        """A method with the one before it. Of two whose rate is not known the last one may tell of
        the next."""
        if len(self._told.get(before, ())) < _COMPARED_STEPS:
            return
        told, other = median(self._told[name]), median(self._told[before])
        if not told or not other:  # no time passes, by this clock
            return
        share = other / told
        if name in self._known:
            name, share = before, 1.0 / share
        elif before not in self._known:
            if before in self._share:
                self._share.setdefault(name, share * self._share[before])
            return
        known = self._share.get(name)
        self._share[name] = share if known is None else math.sqrt(known * share)
