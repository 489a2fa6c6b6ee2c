"""The two loops: in which order target and draft work, and when an answer ends.

A loop is handed the parts of a method and yields one Step for each forward of the target. To stop
early is to stop iterating: the generator's `finally` takes in what is still being drafted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

from doublespec.drafting.base import BackgroundDrafter, Drafter
from doublespec.models.base import LanguageModel
from doublespec.oracle import advance
from doublespec.sampling import Request, TokenLogprobs
from doublespec.stopping import Finish, StopRule
from doublespec.tokens import Tokens, common_prefix, rebase


@dataclass(frozen=True, slots=True)
class Step:
    """One forward of the target: the event from which every metric is computed.

    `guess` is what the target was shown; its first `num_drafted` tokens came from the draft, the
    others from retrieval. `new` is what the step settled, cut where the answer ends. Seconds are
    those the loop spent waiting: for retrieval and a serial draft before the forward
    (`guess_seconds`), for the forward with its choices (`target_seconds`), for the rest of a
    parallel draft after it (`wait_seconds`), and in all (`seconds`).
    """

    new: tuple[int, ...]
    guess: tuple[int, ...]
    num_drafted: int
    finish: Finish | None
    guess_seconds: float
    target_seconds: float
    wait_seconds: float
    seconds: float
    logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def num_accepted(self) -> int:
        """How many tokens of the guess were kept. (The last of `new` is the target's own choice,
        unless the answer was cut before it.)"""
        return common_prefix(self.new, self.guess)


def decode_serial(
    target: LanguageModel,
    drafter: Drafter,
    helper: Drafter,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
    most: int,
) -> Iterator[Step]:
    """Draft, then judge. `most` bounds the tokens shown to the target in one step."""
    tokens = list(prompt)
    finish: Finish | None = None
    while finish is None:
        begun = perf_counter()
        room = min(most, stop.max_tokens - (len(tokens) - len(prompt)) - 1)
        drafted = drafter.propose(tokens, room, request)
        ahead = [*tokens, *drafted]
        guess = [*drafted, *helper.propose(ahead, room - len(drafted), request)]
        shown = perf_counter()
        settled = advance(target, tokens, guess, request)
        judged = perf_counter()
        new, finish = stop.cut(tokens[len(prompt) :], settled.tokens)
        tokens += new
        yield Step(
            new=tuple(new),
            guess=tuple(guess),
            num_drafted=len(drafted),
            finish=finish,
            guess_seconds=shown - begun,
            target_seconds=judged - shown,
            wait_seconds=0.0,
            seconds=perf_counter() - begun,
            logprobs=settled.logprobs[: len(new)],
        )


def decode_parallel(
    target: LanguageModel,
    drafter: BackgroundDrafter,
    helper: Drafter,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
    most: int,
) -> Iterator[Step]:
    """Draft while the target judges the last guess (PEARL, arXiv 2408.11850; with a `helper` that
    retrieves, Double, arXiv 2601.05524)."""
    tokens = list(prompt)
    pending: list[int] = []  # drafted, not judged yet
    finish: Finish | None = None
    outstanding = False
    try:
        while finish is None:
            begun = perf_counter()
            room = min(most, stop.max_tokens - (len(tokens) - len(prompt)) - 1)
            ahead = [*tokens, *pending]
            drafter.start(ahead, room - len(pending), request)
            outstanding = True
            known = pending[:room]
            guess = [*known, *helper.propose(ahead, room - len(pending), request)]
            shown = perf_counter()
            settled = advance(target, tokens, guess, request)
            judged = perf_counter()
            new, finish = stop.cut(tokens[len(prompt) :], settled.tokens)
            drafted = drafter.collect()
            outstanding = False
            pending = rebase([*pending, *drafted], new)
            tokens += new
            done = perf_counter()
            yield Step(
                new=tuple(new),
                guess=tuple(guess),
                num_drafted=len(known),
                finish=finish,
                guess_seconds=shown - begun,
                target_seconds=judged - shown,
                wait_seconds=done - judged,
                seconds=done - begun,
                logprobs=settled.logprobs[: len(new)],
            )
    finally:
        if outstanding:
            drafter.collect()
