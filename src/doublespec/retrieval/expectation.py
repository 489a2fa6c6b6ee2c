"""How many tokens of a run will hold, and how many are worth showing. Knows matches and the text
that came after them; not models, and not what was accepted."""

from collections.abc import Sequence
from typing import NamedTuple

from doublespec.retrieval.base import Match
from doublespec.tokens import Tokens

# What a match's likeness adds to its depth as evidence.
LIKENESS_WEIGHT = 12.0
# The share of run tokens that were the text's own, by evidence: 0-1, 2-3, ... 30-31, then 32-63,
# 64-127, 128 and more. Measured on answers of Llama-3.1-8B-Instruct to four kinds of prompts, after
# the first 60 of each kind (November 2026).
PRIOR = tuple(
    percent / 100
    for percent in (40, 46, 55, 62, 69, 74, 77, 82, 82, 83, 86, 87, 88, 89, 91, 91, 94, 97, 99)
)
PRIOR_WEIGHT = 32.0  # tokens that the prior counts for
MEMORY = 1024.0  # tokens after which what was learnt counts half
CLASSES = len(PRIOR)  # of evidence

MOST_TOKENS = 255  # of a run, as `config` bounds it
MOST_EVIDENCE = 128  # more says no more


def _cell(evidence: float) -> int:
    if evidence < 32:
        return int(evidence) // 2
    return min(int(evidence).bit_length() + 10, len(PRIOR) - 1)


GRAIN = 4  # parts of evidence that are told apart
STRIDE = 6  # parts that each token of a run that has held adds to it
CELLS = bytes(_cell(part / GRAIN) for part in range(MOST_EVIDENCE * GRAIN + MOST_TOKENS * STRIDE))


class Run(NamedTuple):
    """How much of a match to show, and what a step that shows it settles per unit of time."""

    length: int
    rate: float


class Ahead(NamedTuple):
    """What stands before a run in the same forward: how many tokens, how many of them are likely
    to be settled (with the target's own choice), and how likely all of them hold."""

    shown: int
    settled: float
    reach: float


NOTHING = Ahead(0, 1.0, 1.0)


def drafted_ahead(count: int, kept: float) -> Ahead:
    """So many drafted tokens, each holding with chance `kept` where those before it do."""
    return Ahead(count, sum(kept**place for place in range(count + 1)), kept**count)


class Expectation:
    """Learns how often the tokens of one source's runs are the text's own."""

    def __init__(self) -> None:
        self._held = [chance * PRIOR_WEIGHT for chance in PRIOR]
        self._seen = [PRIOR_WEIGHT] * len(PRIOR)
        self._chances = list(PRIOR)  # held / seen

    def best_run(self, match: Match, costs: Sequence[float], ahead: Ahead = NOTHING) -> Run:
        """The length of run that settles most per unit of time; `costs[n]` is the time of a
        forward that shows n tokens, those `ahead` of the run included."""
        shown, settled, reach = ahead
        chances, most = self._chances, min(len(match.tokens), len(costs) - 1 - shown)
        length, rate = 0, settled / costs[shown]
        chance, left = match.share * reach, most
        for cell in _cells(match)[:most]:
            cost = costs[shown + most - left + 1]
            if settled + chance * left <= rate * cost:
                break  # not even if every further token held as often as this one
            chance *= chances[cell]
            settled += chance
            left -= 1
            if settled > rate * cost:
                length, rate = most - left, settled / cost
        return Run(length, rate)

    def holds_on(self, match: Match, place: int) -> float:
        """How many of its tokens from `place` on are likely the text's own, if all before are."""
        held, chance = 0.0, 1.0
        for cell in _cells(match)[place : len(match.tokens)]:
            chance *= self._chances[cell]
            held += chance
        return held

    def learn(self, match: Match, after: Tokens) -> None:
        """Take in what the text turned out to be `after` the place where `match` was found."""
        held, seen, expected = self._held, self._seen, match.share
        for token, actual, cell in zip(match.tokens, after, _cells(match), strict=False):
            seen[cell] += expected
            held[cell] += token == actual
            if seen[cell] > MEMORY:
                seen[cell] /= 2
                held[cell] /= 2
            self._chances[cell] = held[cell] / seen[cell]
            if token != actual:
                return
            expected = 1.0


def evidence_at(match: Match, place: int) -> int:
    """The class of what speaks for a token of a match's run, if all before it are right."""
    return _cells(match)[place]


def _cells(match: Match) -> bytes:
    """For each token of a match's run the place in PRIOR of what speaks for it."""
    first = round(GRAIN * (match.depth + LIKENESS_WEIGHT * match.likeness))
    return CELLS[min(first, MOST_EVIDENCE * GRAIN) :: STRIDE]
