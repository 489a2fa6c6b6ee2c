"""How often something happens, or how much it brings, of late."""

_MEMORY = 0.98  # of what was learnt before a case


class Ratio:
    """Of two sums, the later amounts counting more (how often something happens, of late); `prior`
    before anything was seen, which weighs as much as `weight` cases."""

    def __init__(self, prior: float, weight: float) -> None:
        self._amount, self._cases = prior * weight, weight

    def learn(self, amount: float, cases: float) -> None:
        self._amount = _MEMORY * self._amount + amount
        self._cases = _MEMORY * self._cases + cases

    @property
    def value(self) -> float:
        return self._amount / self._cases
