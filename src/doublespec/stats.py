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
    the first step. Of a draft: `bubbles` is the share of steps after the first that judged no
    drafted token (None where nothing was drafted), `draft_idle` the share of the time in which a
    draft that runs beside the target did nothing (None where none was heard of), `foreseen` how
    often a correction had been drafted on in advance (None where none was needed).
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
    bubbles: float | None
    draft_idle: float | None
    foreseen: float | None
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
        bubbles=_bubbles(steps),
        draft_idle=_draft_idle(steps),
        foreseen=_foreseen(steps),
        finish=steps[-1].finish if steps else None,
    )


def find_bubbles(steps: Sequence[Step]) -> list[bool]:
    """For each step whether it is a bubble: no drafted token to judge, though a draft works and had
    the time of a step. The first step of an answer is none."""
    if not any(step.num_drafted for step in steps):
        return [False] * len(steps)
    return [
        later and not step.num_drafted for step, later in zip(steps, _later(steps), strict=True)
    ]


def repeated_ngrams(tokens: Tokens, size: int = 8) -> float:
    """The share of n-grams of a text that stood in it before: high where a model loops, and then
    retrieval looks better than it is."""
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _later(steps: Sequence[Step]) -> list[bool]:
    """For each step whether another one of the same answer stands before it."""
    return [i > 0 and steps[i - 1].finish is None for i in range(len(steps))]


def _bubbles(steps: Sequence[Step]) -> float | None:
    later = sum(_later(steps))
    if not later or not any(step.num_drafted for step in steps):
        return None
    return sum(find_bubbles(steps)) / later


def _draft_idle(steps: Sequence[Step]) -> float | None:
    busy = [forward.seconds for step in steps for forward in step.forwards]
    seconds = sum(step.seconds for step in steps)
    return max(0.0, 1 - sum(busy) / seconds) if busy and seconds else None


def _foreseen(steps: Sequence[Step]) -> float | None:
    known = [step.foreseen for step in steps if step.foreseen is not None]
    return sum(known) / len(known) if known else None
