"""How many tokens of a run will hold, and how many are worth showing. Knows matches and the text
that came after them; not models, and not what was accepted."""

from collections.abc import Sequence
from dataclasses import dataclass

from doublespec.retrieval.base import Match
from doublespec.tokens import Tokens

# What a match's likeness, and each token of a run that has held, add to its depth as evidence.
LIKENESS_WEIGHT = 12.0
TOKEN_WEIGHT = 1.5
# The share of run tokens that were the text's own, by evidence: 0-1, 2-3, ... 30-31, then 32-63,
# 64-127, 128 and more. Measured on answers of Llama-3.1-8B-Instruct to four kinds of prompts, after
# the first 60 of each kind (November 2026).
PRIOR = tuple(
    percent / 100
    for percent in (40, 46, 55, 62, 69, 74, 77, 82, 82, 83, 86, 87, 88, 89, 91, 91, 94, 97, 99)
)
PRIOR_WEIGHT = 32.0  # tokens that the prior counts for
MEMORY = 1024.0  # tokens after which what was learnt counts half


@dataclass(frozen=True, slots=True)
class Run:
    """How much of a match to show, and what a step that shows it settles per unit of time."""

    length: int
    rate: float


class Expectation:
    """Learns how often the tokens of one source's runs are the text's own."""

    def __init__(self) -> None:
        self._held = [chance * PRIOR_WEIGHT for chance in PRIOR]
        self._seen = [PRIOR_WEIGHT] * len(PRIOR)

    def best_run(self, match: Match, costs: Sequence[float]) -> Run:
        """The length of run that settles most per unit of time; `costs[n]` is the time of a
        forward that shows n tokens."""
        best = Run(0, 1.0 / costs[0])
        chance, settled, evidence = match.share, 1.0, evidence_of(match)
        most = min(len(match.tokens), len(costs) - 1)
        for length in range(1, most + 1):
            if settled + chance * (most - length + 1) <= best.rate * costs[length]:
                break  # not even if every further token held as often as this one
            cell = _cell(evidence)
            chance *= self._held[cell] / self._seen[cell]
            settled += chance
            evidence += TOKEN_WEIGHT
            if settled / costs[length] > best.rate:
                best = Run(length, settled / costs[length])
        return best

    def learn(self, match: Match, after: Tokens) -> None:
        """Take in what the text turned out to be `after` the place where `match` was found."""
        evidence, expected = evidence_of(match), match.share
        for token, actual in zip(match.tokens, after, strict=False):
            cell = _cell(evidence)
            self._seen[cell] += expected
            self._held[cell] += token == actual
            if self._seen[cell] > MEMORY:
                self._seen[cell] /= 2
                self._held[cell] /= 2
            if token != actual:
                return
            evidence, expected = evidence + TOKEN_WEIGHT, 1.0


def evidence_of(match: Match) -> float:
    """How much speaks for the first token of a match."""
    return match.depth + LIKENESS_WEIGHT * match.likeness


def _cell(evidence: float) -> int:
    if evidence < 32:
        return int(evidence) // 2
    return min(int(evidence).bit_length() + 10, len(PRIOR) - 1)
