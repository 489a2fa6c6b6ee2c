"""Whether to draft before the target at all: not where a retrieved run promises more."""

from doublespec.drafting.base import Drafter
from doublespec.retrieval.base import TokenIndex
from doublespec.sampling import Request
from doublespec.tokens import Tokens

_PRIOR_STEPS = 8.0  # steps that the prior counts for
_MEMORY = 64.0  # steps after which what was learnt counts half


class DraftUnlessRun:
    """Drafts, unless the run that `index` finds is expected to settle more per unit of time.

    A draft that is right five times out of six cuts a run of forty right tokens short; then it
    pays to show the run at once (as if there were no draft) instead of asking the draft about it.
    What a drafted step settles is learnt from the text itself; `seconds` is how long drafting
    takes, in forwards of the target, `settled` what a drafted step is first believed to settle.
    The index must be one that nobody else asks: it learns from settled text alone.
    """

    def __init__(self, drafter: Drafter, index: TokenIndex, seconds: float, settled: float) -> None:
        self._drafter = drafter
        self._index = index
        self._seconds = seconds
        self._steps, self._settled = _PRIOR_STEPS, _PRIOR_STEPS * settled
        self._asked: list[int] = []  # the text that was drafted after last

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        tokens = list(tokens)
        self._learn(tokens)
        self._asked = []
        match = self._index.lookup(tokens, limit) if limit > 0 else None
        if match is not None and match.rate * (1.0 + self._seconds) > self._settled / self._steps:
            return []
        drafted = self._drafter.propose(tokens, limit, request)
        self._asked = tokens if drafted else []
        return drafted

    def _learn(self, tokens: list[int]) -> None:
        """Takes in how much was settled after the text that was drafted after last."""
        asked = len(self._asked)
        if 0 < asked < len(tokens) and tokens[:asked] == self._asked:
            self._steps += 1.0
            self._settled += len(tokens) - asked
            if self._steps > _MEMORY:
                self._steps, self._settled = self._steps / 2, self._settled / 2
