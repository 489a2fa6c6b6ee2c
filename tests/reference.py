"""The definition of the answer: plain decoding in fifteen lines, with no cache and no parts."""

from collections.abc import Collection
from typing import Any

from torch import Tensor

from doublespec.compiled.guesser import Guesser
from doublespec.decoding import Step
from doublespec.drafting.costs import LookupCosts
from doublespec.models.base import LanguageModel
from doublespec.noise import Heat
from doublespec.oracle import known
from doublespec.sampling import Request, SamplingParams, choose
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens, common_prefix


def naive(model: LanguageModel, prompt: list[int], request: Request, stop: StopRule) -> list[int]:
    """One token after the other, each chosen from the logits of the text before it."""
    tokens = list(prompt)
    finish = None
    while finish is None:
        logits = model.logits(tokens, 1, len(prompt))
        chosen = choose(logits, tokens, len(tokens), request)
        new, finish = stop.cut(tokens[len(prompt) :], chosen)
        tokens += new
    return tokens[len(prompt) :]


def settled_by(
    model: LanguageModel,
    tokens: Tokens,
    guess: Tokens,
    passes: int,
    ends: Collection[int],
    heat: Heat | None,
    guesser: Guesser | None = None,
    most: int | None = None,
) -> list[int]:
    """What a model settles by itself (`models/base.py`), forward by forward."""
    new: list[int] = []
    most = len(guess) + passes if most is None else most
    params = SamplingParams(heat.temperature, seed=heat.seed) if heat else SamplingParams()
    for _ in range(passes):
        text = [*tokens, *new]
        ahead = [*text, *guess]
        logits = model.logits(ahead, len(guess) + 1, 1)
        chosen = choose(logits, ahead, len(text), Request(params, 1))
        settled, guess = chosen[: common_prefix(chosen, guess) + 1], []
        for more, token in zip(reversed(range(len(settled))), settled, strict=True):
            new.append(token)
            is_over = token in ends or len(new) == most
            if guesser is not None:
                offered = guesser.hear(token, more=more > 0 and not is_over)
                room = max(0, min(guesser.most, most - len(new) - 1))
                guess = known(offered[:room], model.vocab_size)
            if is_over:
                return new
    return new


class FixedCosts(LookupCosts):
    """What steps of lookup take is known: it is not learnt from these."""

    def learn(self, *seen: Any) -> None:
        return None

    learn_shown = learn_plain = learn


class KnownCosts(FixedCosts):
    """So that where it searches and what it shows depends on nothing that this machine does
    besides, whatever was measured at load."""

    def __init__(self, *measured: float) -> None:
        super().__init__(0.4, 0.5, 0.05, 0.05, 16, int(measured[-1]))


class Counting:
    """A model that goes on by itself, and counts its forwards."""

    can_settle = True

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.vocab_size, self.max_length = model.vocab_size, model.max_length
        self.forwards = 0

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        self.forwards += 1
        return self._model.logits(tokens, last, prompt_length)

    def settle(self, tokens: Tokens, guess: Tokens, passes: int, *told: Any) -> list[int]:
        return settled_by(self, tokens, guess, passes, *told)


def answer(steps: list[Step]) -> list[int]:
    return [token for step in steps for token in step.new]
