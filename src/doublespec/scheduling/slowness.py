"""How slow forwards are here and now."""

from collections import deque
from collections.abc import Collection

from doublespec.ratio import Ratio

_SLOWNESS_STEPS = 256  # whose forwards say how long one takes
_OWN_STEPS = 16  # of them, of methods whose rate is known: enough to ask no others
_LONGEST_FORWARD = 8  # times as long as their mean, and no longer counts one of them
_COMPARED, _COMPARED_STEPS = 32, 4  # forwards before a change to or from plain decoding, and after
_MEMORY = 0.9  # of the changes before, with each one: a single one says little


class Slowness:
    """How many times as long forwards take here and now as was to be expected beforehand.

    What was expected need not be wrong alike for all methods: one may make several forwards at
    once, and another one's follow those of a draft. The methods whose rate is known tell of
    themselves, where a few of the latest steps are theirs. Else the others tell of them: the
    machine is the same just before and just after a change of methods, so that each change says
    how these compare.
    """

    def __init__(self, known: Collection[str]) -> None:
        self._known = known
        # Steps in a row, as they were told, and how many; then the sums of all by name: what was
        # told, and steps.
        self._latest: deque[tuple[str, float, int]] = deque()
        self._sums: dict[str, tuple[float, int]] = {}
        self._sum, self._steps = 0.0, 0
        self._told: dict[str, deque[float]] = {}  # since a method began last
        self._name = self._before = ""  # the one at work, and the one before it
        # Of what is told of a method, what it is for those known. (Means on both sides: of a method
        # that makes forwards of several kinds, the middle one may be far from the mean.)
        self._share: dict[str, Ratio] = {}

    def add(self, name: str, slowness: float, steps: int) -> None:
        """Forwards of so many steps in a row. None counts as longer than `_LONGEST_FORWARD` times
        what they take on average."""
        if self._steps:
            slowness = min(slowness, _LONGEST_FORWARD * self._sum / self._steps)
        if name != self._name:
            self._before, self._name = self._name, name
            self._told[name] = deque(maxlen=_COMPARED)
        told = self._told[name]
        before = len(told)
        told.extend([slowness] * steps)
        if before < _COMPARED_STEPS <= len(told):
            self._compare(name, self._before)
        self._latest.append((name, slowness, steps))
        self._count(name, slowness, steps)
        while self._steps > _SLOWNESS_STEPS:
            name, slowness, steps = self._latest.popleft()
            leave = min(steps, self._steps - _SLOWNESS_STEPS)
            if leave < steps:
                self._latest.appendleft((name, slowness, steps - leave))
            self._count(name, slowness, -leave)

    def _count(self, name: str, slowness: float, steps: int) -> None:
        total, counted = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + steps * slowness, counted + steps
        self._sum += steps * slowness
        self._steps += steps

    @property
    def of_known(self) -> float:
        """Of the latest steps, as if the methods whose rate is known had made them."""
        total, steps = 0.0, 0
        for name in self._known:
            own, counted = self._sums.get(name, (0.0, 0))
            total, steps = total + own, steps + counted
        if steps >= _OWN_STEPS:
            return total / steps
        for name, (other, counted) in self._sums.items():
            if name not in self._known:
                share = self._share.get(name)
                total += other * share.value if share else other
                steps += counted
        return total / steps if steps else 1.0

    def _compare(self, name: str, before: str) -> None:
        """A method with the one before it. Of two whose rate is not known the last one may tell of
        the next."""
        if len(self._told.get(before, ())) < _COMPARED_STEPS:
            return
        told, other = _mean(self._told[name]), _mean(self._told[before])
        if not told or not other:  # no time passes, by this clock
            return
        if name in self._known:
            name, told, other = before, other, told
        elif before not in self._known:
            if before in self._share:
                of_next = other / told * self._share[before].value
                self._share.setdefault(name, Ratio(of_next, 1.0, _MEMORY))
            return
        if name not in self._known:
            self._share.setdefault(name, Ratio(1.0, 0.0, _MEMORY)).learn(other, told)


def _mean(told: Collection[float]) -> float:
    return sum(told) / len(told)
