"""Figures of one answer: pure functions of its Steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from doublespec.decoding import Step
from doublespec.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Stats:
    """What an answer took.

    `mean_accepted_length` is tokens settled per target forward, the target's own included.
    Acceptance rates are tokens kept / tokens shown, None where nothing was shown. Time to first
    token (TTFT) counts from the start of decoding; time per output token (TPOT) is the mean after
    the first step.
    """

    steps: int
    tokens: int
    mean_accepted_length: float
    draft_acceptance: float | None
    retrieval_acceptance: float | None
    rows_per_token: float
    ttft_seconds: float
    tpot_seconds: float
    seconds: float
    tokens_per_second: float
    finish: str | None


def summarise(steps: Sequence[Step]) -> Stats:
    """The figures of an answer from its Steps."""
    tokens = sum(len(step.new) for step in steps)
    seconds = sum(step.seconds for step in steps)
    first = steps[0] if steps else None
    later = tokens - len(first.new) if first else 0
    drafted = sum(step.num_drafted for step in steps)
    retrieved = sum(len(step.guess) - step.num_drafted for step in steps)
    kept_drafted = sum(min(step.num_accepted, step.num_drafted) for step in steps)
    kept_retrieved = sum(max(step.num_accepted - step.num_drafted, 0) for step in steps)
    return Stats(
        steps=len(steps),
        tokens=tokens,
        mean_accepted_length=tokens / len(steps) if steps else 0.0,
        draft_acceptance=kept_drafted / drafted if drafted else None,
        retrieval_acceptance=kept_retrieved / retrieved if retrieved else None,
        rows_per_token=sum(len(step.guess) + 1 for step in steps) / max(tokens, 1),
        ttft_seconds=first.seconds if first else 0.0,
        tpot_seconds=(seconds - first.seconds) / later if first and later else 0.0,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        finish=steps[-1].finish if steps else None,
    )


def repeated_ngrams(tokens: Tokens, size: int = 8) -> float:
    """The share of n-grams of a text that stood in it before: high where a model loops, and then
    retrieval looks better than it is."""
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
