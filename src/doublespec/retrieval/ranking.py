"""Which of several equally deep matches to follow. Knows two texts, not whose they are.

Measured on the traces (docs/retrieval.md): the latest match, or the most frequent continuation, is
little better than the first match; what tells them apart is the text *before* the match. After an
edit inside a copied passage it still agrees place by place, when the last token alone says nothing.
"""

from operator import eq
from typing import NamedTuple

WINDOW = 16  # tokens before the run that are compared


class Choice(NamedTuple):
    """The number of the place to go on from, and the two marks it got (see `Match`)."""

    number: int
    likeness: float
    share: float


def most_alike(text: list[int], contexts: list[list[int]], following: list[int]) -> Choice:
    """Of several places the one most like the end of `text`, given the tokens before each of them,
    backwards, and the token that follows. Of equals the first, so pass the latest first."""
    end = text[: -WINDOW - 1 : -1]
    vocabulary = frozenset(end)
    best, best_score = (0, 0.0, 0.0), -1.0
    for number, context in enumerate(contexts):
        before = context[:WINDOW]
        in_place, anywhere = sum(map(eq, end, before)), len(vocabulary.intersection(before))
        likeness = (in_place + anywhere / 2) / (1.5 * WINDOW)
        share = following.count(following[number]) / len(following)
        if likeness + share / 3 > best_score:
            best, best_score = (number, likeness, share), likeness + share / 3
    return Choice(*best)


def follow_most_alike(
    text: list[int], tokens: list[int], stops: list[int], limit: int
) -> tuple[list[int], Choice]:
    """What follows that one of the places `stops` in `tokens` which is most like the end of
    `text`. Every stop has a token after it."""
    contexts = [tokens[stop - WINDOW if stop > WINDOW else 0 : stop][::-1] for stop in stops]
    choice = most_alike(text, contexts, [tokens[stop] for stop in stops])
    stop = stops[choice.number]
    return tokens[stop : stop + limit], choice
