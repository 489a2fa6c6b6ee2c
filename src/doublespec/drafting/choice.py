"""Whether to draft before the target at all: not where a retrieved run promises more."""

from collections.abc import Callable

from doublespec.drafting.base import Drafter
from doublespec.retrieval.base import TokenIndex
from doublespec.sampling import Request
from doublespec.tokens import Tokens

_EXPECTED = 0.7  # of drafted tokens hold, before anything was learnt
_PRIOR_STEPS = 8.0  # steps that this counts for
_MEMORY = 64.0  # steps after which what was learnt counts half
_TAIL = 16  # tokens by which a text is known again
_MARGIN = 1.25  # by which a run must be better: what a draft is worth there is not learnt then


class RunOrDraft:
    """Compares what a step settles in its time with a run that an index finds and with a draft of
    `steps` forwards that take `seconds` in all, in forwards of the target.

    A draft that is right five times out of six cuts a run of forty right tokens short; then it
    pays to show the run as it is. What a drafted step settles is learnt from the text. The index
    must be one that nobody else asks: it learns, too, and from settled text alone.
    """

    def __init__(self, index: TokenIndex, steps: int, seconds: float) -> None:
        self._index = index
        self._seconds = seconds
        self._steps = _PRIOR_STEPS
        self._settled = _PRIOR_STEPS * (1.0 + _EXPECTED * steps)
        self._drafted_at = 0  # the length of the text that was drafted after last (0: none)
        self._tail: Tokens = []

    def takes_run(self, tokens: Tokens, limit: int) -> bool:
        """Whether to show a run of at most `limit` tokens after `tokens` and draft nothing."""
        self._learn(tokens)
        match = self._index.lookup(tokens, limit) if limit > 0 else None
        drafting = self._settled / self._steps / (1.0 + self._seconds)
        takes_run = match is not None and match.rate > _MARGIN * drafting
        self._drafted_at, self._tail = 0 if takes_run else len(tokens), tokens[-_TAIL:]
        return takes_run

    def _learn(self, tokens: Tokens) -> None:
        """Takes in how much was settled after the text that was drafted after last."""
        stop = self._drafted_at
        if 0 < stop < len(tokens) and tokens[max(0, stop - _TAIL) : stop] == self._tail:
            self._steps += 1.0
            self._settled += len(tokens) - stop
            if self._steps > _MEMORY:
                self._steps, self._settled = self._steps / 2, self._settled / 2


Choice = Callable[[int], RunOrDraft]  # by the tenant's number


class DraftUnlessRun:
    """Drafts where that is the better choice, else leaves it to the retrieved run."""

    def __init__(self, drafter: Drafter, choice: Choice) -> None:
        self._drafter = drafter
        self._choice = choice

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        if self._choice(request.tenant).takes_run(tokens, limit):
            return []
        return self._drafter.propose(tokens, limit, request)
