"""Time as it is drawn: what takes far longer than the rest is shortened."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from doublespec.trace.lanes import TargetEvent


class Ruler:
    """Where a moment lies, in seconds, when no stretch between two moments of the target (begin,
    forward, wait, next begin) may be longer than `longest`."""

    def __init__(self, events: Sequence[TargetEvent], longest: float) -> None:
        self._longest = longest
        self._moments = sorted({moment for event in events for moment in _moments(event)})
        lengths = (min(b - a, longest) for a, b in pairwise(self._moments))
        self._places = list(accumulate(lengths, initial=0.0))

    def __call__(self, moment: float) -> float:
        number = bisect_right(self._moments, moment) - 1
        if number < 0:
            return moment - self._moments[0]
        passed = moment - self._moments[number]
        return self._places[number] + passed * self._slope(number)

    def is_shortened(self, start: float, stop: float) -> bool:
        """Whether the stretch is drawn shorter than it was."""
        return self(stop) - self(start) < (stop - start) * 0.999

    def _slope(self, number: int) -> float:
        if number + 1 == len(self._moments):
            return 1.0
        return min(1.0, self._longest / (self._moments[number + 1] - self._moments[number]))


def _moments(event: TargetEvent) -> tuple[float, ...]:
    return (event.begun, event.retrieval[0], *event.judging, event.ended)
