"""The text of this request, as a source of runs. Knows nothing of models and acceptance.

`NgramIndex` is the search order of the published code, kept as the baseline.
"""

from doublespec.retrieval.base import Match
from doublespec.tokens import Tokens, common_prefix


class NgramIndex:
    """The published search: n-grams from `longest` down to `shortest`, the first match in the text.

    Where the published scan finds nothing it shows a dummy token; this one shows nothing.
    """

    def __init__(self, longest: int = 3, shortest: int = 1) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._first: dict[tuple[int, ...], int] = {}  # n-gram -> where its first match ends

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        """What followed the first match of the longest n-gram that ends `tokens`."""
        self._follow(list(tokens))
        for size in self._sizes:
            end = self._end_of(tuple(self._tokens[-size:]))
            run = tuple(self._tokens[end : end + limit]) if end else ()
            if run:
                return Match(run, size, "context")
        return None

    def _follow(self, tokens: list[int]) -> None:
        """Take over `tokens`. Entries of text that is gone stay: each is proved when it is used."""
        del self._tokens[common_prefix(self._tokens, tokens) :]
        for token in tokens[len(self._tokens) :]:
            self._tokens.append(token)
            for size in self._sizes:
                ngram = tuple(self._tokens[-size:])
                if self._end_of(ngram) is None:
                    self._first[ngram] = len(self._tokens)

    def _end_of(self, ngram: tuple[int, ...]) -> int | None:
        """Where the first match of `ngram` ends, if the text there still says so."""
        end = self._first.get(ngram)
        if end is None or tuple(self._tokens[end - len(ngram) : end]) != ngram:
            return None
        return end
