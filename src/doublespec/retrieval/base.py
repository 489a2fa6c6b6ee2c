"""What every source of retrieved text answers: a run of tokens, and how well it matched."""

from typing import NamedTuple, Protocol, TypeGuard

from doublespec.tokens import Tokens


class Match(NamedTuple):  # of which every step makes several: cheap to make
    """A retrieved run: the `tokens` that once followed the last `depth` tokens of the text.

    `likeness` (0 to 1) says how alike the two texts are a little further back, `share` (0 to 1)
    how many of the equally deep matches went on with the same token, and `rate` what a step that
    shows the run is expected to settle in the time of a forward over one row (0: nobody knows).
    """

    tokens: tuple[int, ...]
    depth: int
    source: str
    likeness: float = 1.0
    share: float = 1.0
    rate: float = 0.0


class TokenIndex(Protocol):
    """A source of runs. It is handed the whole text each time and finds out itself what changed."""

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        """What followed the longest suffix of `tokens` seen before: 1 to `limit` tokens."""
        ...


class QuickIndex(TokenIndex, Protocol):
    """One that knows, in a hundredth of the time of a lookup, whether that is likely to be worth
    it."""

    def may_know(self, tokens: Tokens) -> bool:
        """Whether several of the last of `tokens` were seen before, one after the other."""
        ...


def is_quick(index: TokenIndex) -> TypeGuard[QuickIndex]:
    return hasattr(index, "may_know")
