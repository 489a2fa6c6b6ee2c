"""Which of several equally deep matches to follow. Knows two texts, not whose they are.

Measured on the traces (docs/retrieval.md): the latest match, or the most frequent continuation, is
little better than the first match; what tells them apart is the text *before* the match. After an
edit inside a copied passage it still agrees place by place, when the last token alone says nothing.
"""

from operator import eq
from typing import NamedTuple

WINDOW = 16  # tokens before the run that are compared


class Choice(NamedTuple):
    """The place to go on from, and the two marks it got (see `Match`)."""

    stop: int
    likeness: float
    share: float


def most_alike(text: list[int], tokens: list[int], stops: list[int]) -> Choice:
    """Of the places `stops` in `tokens` the one most like the end of `text`.

    Of equals the first, so pass the latest first. Every stop has a token after it.
    """
    end = text[-WINDOW:]
    end.reverse()
    vocabulary = frozenset(end)
    following = [tokens[stop] for stop in stops]
    best, best_score = (0, 0.0, 0.0), -1.0
    for stop in stops:
        before = tokens[stop - WINDOW if stop > WINDOW else 0 : stop]
        before.reverse()
        in_place, anywhere = sum(map(eq, end, before)), len(vocabulary.intersection(before))
        likeness = (in_place + anywhere / 2) / (1.5 * WINDOW)
        share = following.count(tokens[stop]) / len(following)
        if likeness + share / 3 > best_score:
            best, best_score = (stop, likeness, share), likeness + share / 3
    return Choice(*best)
