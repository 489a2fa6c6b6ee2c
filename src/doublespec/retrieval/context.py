"""The text of this request, as a source of runs. Knows nothing of models and acceptance.

`context_sources` makes the ones to use; `NgramIndex` is the published search order, the baseline.
"""

from collections.abc import Sequence

from doublespec.retrieval.base import Match, TokenIndex
from doublespec.retrieval.chains import MOST_PLACES, NOWHERE, Chains, Places
from doublespec.retrieval.ranking import follow_most_alike
from doublespec.retrieval.recurrence import Recurrence
from doublespec.tokens import Tokens, as_list, common_prefix

RECENT = 128  # tokens at the end of the text that every lookup compares
SAMPLES = 32  # tokens of the rest that it compares
_NOT_YET = -1


def context_sources() -> list[TokenIndex]:
    """The sources over one request's text, which share its chains."""
    text = RequestText()
    return [ContextIndex(text), EditIndex(text)]


class RequestText:
    """The chained text of a request, as it was last handed over, and where its end occurs in it."""

    def __init__(self) -> None:
        self.chains = Chains()
        self.recurrence = Recurrence()
        self._text: list[int] = []  # the list that was handed over last
        self._places = self._places_of_rest = NOWHERE
        self._searched = _NOT_YET  # the length of the text that they are of
        self._calls = 0

    def follow(self, tokens: Tokens) -> list[int]:
        """Make the chained text equal to `tokens`, and return them. The list that was handed over
        last is taken to have only grown, as those of the loops do."""
        text, known = as_list(tokens), len(self.chains.tokens)
        has_grown = text is self._text and len(text) >= known
        agreed = known if has_grown else self._agreed(text)
        if not agreed == known == len(text):
            self._text = []  # should what follows be interrupted
            try:
                self._become(text, agreed)
            except BaseException:  # an interrupt, anywhere: half of the chains are of neither text
                self.chains, self._searched = Chains(), _NOT_YET
                raise
        self._text = text
        return text

    def places(self) -> Places:
        """Those of the whole text."""
        self._search()
        return self._places

    def places_of_rest(self) -> Places:
        """Those of the text without its last token."""
        self._search()
        return self._places_of_rest

    def _become(self, text: list[int], agreed: int) -> None:
        """Follow a text of which so many tokens are known."""
        if agreed < len(self.chains.tokens):
            self.chains.cut(agreed)
        if agreed < self._searched:
            self._searched = _NOT_YET
        self.chains.extend(text[agreed:])

    def _search(self) -> None:
        length = len(self.chains.tokens)
        if self._searched == length:
            return
        start, places = self._searched, self._places
        if start == _NOT_YET:
            start, places = 0, NOWHERE
        last = max(0, length - 1)
        self._searched = _NOT_YET  # should what follows be interrupted
        self._places_of_rest = self._go_on(start, places, last)
        self._places = self._go_on(last, self._places_of_rest, length)
        self._searched = length

    def _go_on(self, start: int, places: Places, stop: int) -> Places:
        """The places of the first `stop` tokens, from those of the first `start` if they go on
        alike: copying a passage then costs no search. Nothing deeper can have come in between."""
        tokens, more = self.chains.tokens, stop - start
        new = tokens[start:stop] if places.stops else []
        stops = [place + more for place in places.stops if tokens[place : place + more] == new]
        if stops and len(places.stops) in (len(stops), *range(MOST_PLACES)):
            return Places(stops, places.depth + more)
        return self.chains.earlier(stop)

    def _agreed(self, text: list[int]) -> int:
        """How many leading tokens of `text` are those of the last call.

        Comparing all of 100,000 tokens would cost ten times the search. So the latest tokens are
        compared all, and of the others every n-th, from another start each time; only a
        difference calls for the whole comparison. A text changed far back and nowhere else
        may thus be noticed some lookups late: until then the old text may decide what is shown.
        """
        mine = self.chains.tokens
        stop = min(len(mine), len(text))
        recent = max(0, stop - RECENT)
        self._calls += 1
        stride = recent // SAMPLES + 1
        start = self._calls % stride
        if mine[start:recent:stride] != text[start:recent:stride]:
            return common_prefix(mine, text)
        mine_recent, text_recent = mine[recent:stop], text[recent:stop]
        if mine_recent == text_recent:
            return stop
        if mine_recent[0] != text_recent[0]:
            return common_prefix(mine, text)
        return recent + common_prefix(mine_recent, text_recent)


class ContextIndex:
    """The longest suffix of the text that occurred in it before, of any length.

    Of equally long matches it follows the one most like the text's end (`ranking`). A text that
    has gone round in a circle is expected to go on so: the run may be longer than the circle.
    """

    def __init__(self, text: RequestText | None = None) -> None:
        self._text = text or RequestText()

    def may_know(self, tokens: Tokens) -> bool:
        """See `base.py`."""
        self._text.follow(tokens)
        return self._text.chains.ends_as_before()

    def guess_ahead(self, tokens: Tokens, costs: Sequence[float], most: int) -> Recurrence:
        """See `recurrence.py`."""
        self._text.follow(tokens)
        return self._text.recurrence.begin(self._text.chains, costs, most)

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        """What followed the longest suffix of `tokens` that occurs in them before."""
        text = self._text.follow(tokens)
        stops, depth = self._text.places()
        if not stops or limit < 1:
            return None
        run, choice = follow_most_alike(text, text, stops, limit)
        if len(run) < min(limit, depth + 1):  # it ends with the text, which repeated all of it
            run = (run * (limit // len(run) + 1))[:limit]
        return Match(tuple(run), depth, "context", choice.likeness, choice.share)


class EditIndex:
    """A passage that is being copied with changes: the last token stands in place of another.

    Matches the text before its last token and goes on one token further. Worth as much as all
    other ideas together where text is edited (docs/retrieval.md).
    """

    def __init__(self, text: RequestText | None = None) -> None:
        self._text = text or RequestText()

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        """What followed the token that the last of `tokens` replaces; the match has depth 0."""
        text = self._text.follow(tokens)
        last = len(text) - 1
        replaced = [stop for stop in self._text.places_of_rest().stops if text[stop] != text[last]]
        stops = [stop + 1 for stop in replaced if stop + 1 < last]
        if not stops or limit < 1:
            return None
        run, choice = follow_most_alike(text, text, stops, limit)
        return Match(tuple(run), 0, "edit", choice.likeness, choice.share)


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
        """Take over `tokens`; entries of text that is gone are forgotten. (After an interrupt some
        may stay: each is proved when it is used.)"""
        keep = common_prefix(self._tokens, tokens)
        for stop in range(len(self._tokens), keep, -1):
            for ngram in self._ngrams(stop):
                if self._first.get(ngram) == stop:
                    del self._first[ngram]
            del self._tokens[-1]
        for token in tokens[keep:]:
            self._tokens.append(token)
            for ngram in self._ngrams(len(self._tokens)):
                if self._end_of(ngram) is None:
                    self._first[ngram] = len(self._tokens)

    def _ngrams(self, stop: int) -> list[tuple[int, ...]]:
        """The n-grams that end at `stop`, which may be cut short by the text's beginning."""
        return [tuple(self._tokens[max(0, stop - size) : stop]) for size in self._sizes]

    def _end_of(self, ngram: tuple[int, ...]) -> int | None:
        """Where the first match of `ngram` ends, if the text there still says so."""
        end = self._first.get(ngram)
        if end is None or tuple(self._tokens[end - len(ngram) : end]) != ngram:
            return None
        return end
