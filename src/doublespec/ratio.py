"""How often something happens, or how much it brings, of late."""


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
