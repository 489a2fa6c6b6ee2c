"""Whether to draft before the target at all: not where a retrieved run promises more."""

from collections.abc import Callable

from doublespec.drafting.base import Drafter
from doublespec.retrieval.base import TokenIndex
from doublespec.sampling import Request
from doublespec.tokens import Tokens

_EXPECTED = 0.7  # of drafted tokens hold, before anything was learnt
_PRIOR_STEPS = 8.0  # steps that this counts for
_MEMORY = 64.0  # steps after which what was learnt counts half
_LONGEST = 4.0  # times as long as drafts usually take: more was not the draft
_MARGIN = 1.25  # by which a run must be better: what a draft is worth there is not learnt then


class RunOrDraft:
    """Compares what a step settles in its time with a run that an index finds and with a draft,
    which is expected to take `steps` forwards and `seconds` in all, in forwards of the target.

    A draft that is right five times out of six cuts a run of forty right tokens short; then it
    pays to show the run as it is. What a drafted step settles is learnt from the text, and what it
    takes from the drafts: those that judge long runs take longer, and so does a forward that is
    shown them (`row_cost` for each token). The index must be one that nobody else asks: it learns,
    too, and from settled text alone.
    """

    def __init__(
        self, index: TokenIndex, steps: int, seconds: float, row_cost: float = 0.0
    ) -> None:
        self._index = index
        self._seconds = seconds
        self._row_cost = row_cost
        self._steps = _PRIOR_STEPS
        self._settled = _PRIOR_STEPS * (1.0 + _EXPECTED * steps)
        self._drafting = _PRIOR_STEPS * seconds  # time of drafts,
        self._rows = 0.0  # and of showing them
        self._text: Tokens = []  # that was drafted after last, as a list that grows,
        self._length = 0  # how long it was then (0: another step was made since),
        self._draft = 0, 0.0  # how many tokens were drafted, and how long that took

    def takes_run(self, tokens: Tokens, limit: int) -> bool:
        """Whether to show a run of at most `limit` tokens after `tokens` and draft nothing."""
        self._learn(tokens)
        match = self._index.lookup(tokens, limit) if limit > 0 else None
        return match is not None and match.rate > _MARGIN * self.rate

    def drafted(self, tokens: Tokens, count: int, seconds: float) -> None:
        """So many tokens were drafted after `tokens`, and that took so long, in forwards of the
        target."""
        self._text, self._length, self._draft = tokens, len(tokens), (count, seconds)

    @property
    def rate(self) -> float:
        """Tokens that a drafted step settles in the time of a forward of the target."""
        return self._settled / (self._steps + self._drafting + self._rows)

    def _learn(self, tokens: Tokens) -> None:
        """Takes in how much was settled after the text that was drafted after last."""
        stop, self._length = self._length, 0
        if tokens is not self._text or not 0 < stop < len(tokens):
            return
        count, seconds = self._draft
        self._settled += len(tokens) - stop
        usual = max(self._seconds, self._drafting / self._steps)
        self._drafting += min(seconds, _LONGEST * usual)
        self._rows += count * self._row_cost
        self._steps += 1.0
        if self._steps > _MEMORY:
            self._steps, self._settled = self._steps / 2, self._settled / 2
            self._drafting, self._rows = self._drafting / 2, self._rows / 2


Clock = Callable[[], float]
Choice = Callable[[int], RunOrDraft]  # by the tenant's number


class DraftUnlessRun:
    """Drafts where that is the better choice, else leaves it to the retrieved run."""

    def __init__(self, drafter: Drafter, choice: Choice, clock: Clock, unit: float) -> None:
        """By the `clock`, a forward of the target takes a `unit`."""
        self._drafter = drafter
        self._choice = choice
        self._clock, self._unit = clock, unit

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        choice = self._choice(request.tenant)
        if choice.takes_run(tokens, limit) or limit <= 0:
            return self._drafter.propose(tokens, 0, request)  # it learns what became of the text
        begun = self._clock()
        drafted = self._drafter.propose(tokens, limit, request)
        choice.drafted(tokens, len(drafted), (self._clock() - begun) / self._unit)
        return drafted
