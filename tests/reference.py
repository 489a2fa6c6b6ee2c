"""The definition of the answer: plain decoding in fifteen lines, with no cache and no parts."""

from doublespec.decoding import Step
from doublespec.models.base import LanguageModel
from doublespec.sampling import Request, choose
from doublespec.stopping import StopRule


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


def answer(steps: list[Step]) -> list[int]:
    return [token for step in steps for token in step.new]
