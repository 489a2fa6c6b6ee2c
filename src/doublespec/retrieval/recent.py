"""Prompt lookup as it is usually published: the most recent match of the longest n-gram. A baseline
for measurements."""

from doublespec.retrieval.base import Match
from doublespec.tokens import Tokens, common_prefix


class RecentNgramIndex:
    """N-grams from `longest` down to `shortest`, the last match before the text's end."""

    def __init__(self, longest: int, shortest: int) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}  # n-gram -> where its matches end

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        """What followed the last match of the longest n-gram that ends `tokens`."""
        self._follow(list(tokens))
        for size in self._sizes:
            ends = self._ends.get(tuple(self._tokens[-size:]), ())
            if len(ends) > 1 and limit > 0:
                run = tuple(self._tokens[ends[-2] : ends[-2] + limit])
                return Match(run, size, "context")
        return None

    def _follow(self, tokens: list[int]) -> None:
        """Take over `tokens`; n-grams of text that is gone are forgotten."""
        try:
            self._become(tokens, common_prefix(self._tokens, tokens))
        except BaseException:  # an interrupt, anywhere: some n-grams are of neither text
            self._tokens, self._ends = [], {}
            raise

    def _become(self, tokens: list[int], keep: int) -> None:
        for stop in range(len(self._tokens), keep, -1):
            for ngram in self._ngrams(stop):
                self._ends[ngram].pop()
                if not self._ends[ngram]:
                    del self._ends[ngram]
        self._tokens[keep:] = tokens[keep:]
        for stop in range(keep + 1, len(tokens) + 1):
            for ngram in self._ngrams(stop):
                self._ends.setdefault(ngram, []).append(stop)

    def _ngrams(self, stop: int) -> list[tuple[int, ...]]:
        """The n-grams that end at `stop`."""
        return [tuple(self._tokens[stop - size : stop]) for size in self._sizes if size <= stop]
