"""How often a target chooses a draft's first, second or third choice, by how close they were.

Knows rankings and what was chosen; not why.
"""

import math
from bisect import bisect_right

from doublespec.sampling import Ranking

# How far a second choice lies behind: steps of a factor of two.
EDGES = tuple(2.0**power for power in range(-3, 4))
_BINS = len(EDGES) + 1
_PRIOR_WEIGHT = 8.0  # choices that the prior counts for
_MEMORY = 512.0  # choices after which what was learnt counts half
_SECOND, _THIRD = 0.6, 0.15  # of the target's departures, before anything was learnt


class Odds:
    """Learns from every choice of the target where the draft had chosen before."""

    def __init__(self) -> None:
        self._counts = [_prior(place) for place in range(_BINS)]

    def of(self, ranking: Ranking, order: int) -> float:
        """The chance that the target chooses the token that stands there in the ranking."""
        counts = self._counts[_bin(ranking)]
        return counts[order] / sum(counts)

    def of_first(self) -> list[float]:
        """The chance that the target chooses the first token, by how many of the EDGES the second
        one lies behind it."""
        return [counts[0] / sum(counts) for counts in self._counts]

    def learn(self, ranking: Ranking, token: int) -> None:
        """The target chose `token`."""
        counts = self._counts[_bin(ranking)]
        order = ranking.tokens.index(token) if token in ranking.tokens else len(counts) - 1
        counts[min(order, len(counts) - 1)] += 1.0
        if sum(counts) > _MEMORY:
            counts[:] = [count / 2 for count in counts]


def _bin(ranking: Ranking) -> int:
    """By how far the second choice lies behind the first."""
    return bisect_right(EDGES, ranking.behind[1]) if len(ranking.behind) > 1 else _BINS - 1


def _prior(place: int) -> list[float]:
    """Counts of first, second, third and other choices: a draft whose logits are as sure as they
    should be departs from its second choice in 1 of 1 + e^behind cases."""
    departs = 1.0 / (1.0 + math.exp(2.0 ** (place - 3.5)))
    shares = (1.0 - departs, departs * _SECOND, departs * _THIRD)
    return [_PRIOR_WEIGHT * share for share in (*shares, 1.0 - sum(shares))]
