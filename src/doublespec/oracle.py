"""The target as an exact oracle: the only place where its logits become text.

A guess is kept as far as it equals the target's own choices, plus the one choice after it. So a
guess can make the answer faster, never different, wherever it came from.
"""

from typing import NamedTuple

from doublespec.compiled.guesser import Guesser
from doublespec.models.base import LanguageModel, can_settle
from doublespec.sampling import Request, TokenLogprobs, choose, logprobs
from doublespec.tokens import Tokens, common_prefix


class Settled(NamedTuple):
    """What a forward settled: 1 to len(guess) + 1 tokens; logprobs if they were asked for."""

    tokens: list[int]
    logprobs: tuple[TokenLogprobs, ...] = ()


def advance(
    model: LanguageModel,
    tokens: Tokens,
    guess: Tokens,
    request: Request,
    forwards: int = 1,
    guesser: Guesser | None = None,
    most: int | None = None,
) -> Settled:
    """Judges `guess` as the continuation of `tokens`, in one forward of the model; in up to so many
    if it can go on by itself, which spares what lies between them: then each of the others judges
    what the `guesser` says, until `most` tokens are settled (None: one for each forward, besides
    the guess). Ids that the model does not have (of a damaged datastore, say) end the guess."""
    guess = known(guess, model.vocab_size)
    params = request.params
    if params.is_simple and params.logprobs is None and can_settle(model):
        told = request.end_ids, params.heat, guesser, most
        new = model.settle(tokens, guess, forwards, *told)
        if new:
            return Settled(new)
    ahead = [*tokens, *guess]
    logits = model.logits(ahead, len(guess) + 1, request.prompt_length)
    chosen = choose(logits, ahead, len(tokens), request)
    new = chosen[: common_prefix(chosen, guess) + 1]
    top = params.logprobs
    return Settled(new) if top is None else Settled(new, tuple(logprobs(logits, new, top)))


def known(guess: Tokens, vocab_size: int) -> Tokens:
    """`guess` up to the first id that is not in the vocabulary."""
    if not guess or (min(guess) >= 0 and max(guess) < vocab_size):
        return guess
    unknown = (i for i, token in enumerate(guess) if not 0 <= token < vocab_size)
    return guess[: next(unknown, len(guess))]
