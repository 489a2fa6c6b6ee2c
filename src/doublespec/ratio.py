"""How often something happens, how much it brings, or how long it takes, of late."""

_WEIGHT = 0.1  # of the latest value in a running mean


class Ratio:
    """Of two sums, the later amounts counting more: `memory` is what each case leaves of those
    before it. `prior` before anything was seen, which weighs as much as `weight` cases."""

    def __init__(self, prior: float, weight: float, memory: float = 0.98) -> None:
        self._amount, self._cases = prior * weight, weight
        self._memory = memory

    def learn(self, amount: float, cases: float) -> None:
        self._amount = self._memory * self._amount + amount
        self._cases = self._memory * self._cases + cases

    @property
    def value(self) -> float:
        return self._amount / self._cases


def running_mean(mean: float, value: float) -> float:
    """The mean (0: of nothing yet) with another value; a single outlier (a prompt's own forward)
    moves it little."""
    return mean + _WEIGHT * (min(value, 4 * mean) - mean) if mean else value
