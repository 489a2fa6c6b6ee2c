"""Models that replay a trace, in virtual time: the loops and methods cannot tell them from real
ones. Knows no methods.

A replayed model's logits are one-hot rows over the few tokens of its own trace (and some that are
never right), so that a forward costs microseconds and choosing is the same code as ever.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from doublespec.bench.traces import Trace
from doublespec.models.base import Branch
from doublespec.tokens import Tokens, common_prefix

MOST_WRONG = 128  # tokens that are never right: a draft off the text repeats none, as text would


class Replay:
    """A trace in a vocabulary of its own, with the models that replay it.

    Where the draft is wrong, its second choice is right in a share `second` of the places (by
    `seed`); what it says after any text but the true one is always wrong.
    """

    def __init__(self, trace: Trace, second: float = 0.0, seed: int = 0) -> None:
        ids = {token: i for i, token in enumerate(dict.fromkeys(trace.prompt + trace.answer))}
        self.prompt = [ids[token] for token in trace.prompt]
        self.answer = [ids[token] for token in trace.answer]
        wrong = range(len(ids), len(ids) + MOST_WRONG)
        self._text = [*self.prompt, *self.answer]
        self._target = _one_hot(self.answer, wrong.stop)
        self._wrong = _one_hot(wrong, wrong.stop)
        rows = draft_choices(trace, self.answer, wrong, second, seed)
        self._draft = _one_hot([second for _, second in rows], wrong.stop)
        self._draft += 2 * _one_hot([first for first, _ in rows], wrong.stop)

    def target(self) -> "ReplayedModel":
        """The target: right everywhere."""
        return ReplayedModel(Script(self._text, self._target, self._wrong))

    def draft(self) -> "ReplayedModel":
        """The draft."""
        return ReplayedModel(Script(self._text, self._draft, self._wrong))


def draft_choices(
    trace: Trace, answer: Tokens, wrong: Sequence[int], second: float, seed: int
) -> list[tuple[int, int]]:
    """A draft's first and second choice at each place of a trace's answer, `wrong` being tokens
    that are never right, in the order of positions: the first is right where the trace says so,
    else the second is in a share `second` of the places. Same seed, same places."""
    chance = random.Random(f"{seed} {trace.id}")
    choices = []
    for place, (token, agrees) in enumerate(zip(answer, trace.agrees, strict=True)):
        other = wrong[(len(trace.prompt) + place) % len(wrong)]
        if agrees:
            choices.append((token, other))
        else:
            choices.append((other, token if chance.random() < second else other))
    return choices


class Script:
    """What a model chooses along a text: `choices` has a row for each of its last places, and after
    any other text the rows of `wrong` hold, one position after the other. `num_rows` are those that
    the last forward cost."""

    def __init__(self, text: list[int], choices: Tensor, wrong: Tensor) -> None:
        self._text = text
        self._choices = choices
        self._wrong = wrong
        self.num_rows = 0
        self._first = len(text) - len(choices)  # position of the first choice
        self._cached: list[int] = []
        self._true = 0  # how many leading tokens of the cache are the true text's

    @property
    def width(self) -> int:
        """The size of a row."""
        return self._choices.shape[1]

    def rows(self, tokens: Tokens, last: int) -> Tensor:
        """The rows of a forward for the last places of `tokens`."""
        tokens = tokens if isinstance(tokens, list) else list(tokens)
        self._follow(tokens, last)
        start = len(tokens) - last + 1  # position that the first row predicts
        if self._true < start:
            return self._wrong_rows(start, last)
        return self._choices[start - self._first : len(tokens) + 1 - self._first]

    def branch_rows(self, branches: Sequence[Branch]) -> Tensor:
        """The rows of branches of these tokens, in the same forward: a branch is right where its
        whole text is the true one."""
        self.num_rows += sum(len(branch.tokens) for branch in branches)
        ends = [self._branch_row(branch) for branch in branches]
        return torch.cat(ends) if ends else self._wrong[:0]

    def _branch_row(self, branch: Branch) -> Tensor:
        is_true = branch.start <= self._true and self._first <= branch.stop < len(self._text)
        if not is_true or self._text[branch.start : branch.stop] != list(branch.tokens):
            return self._wrong_rows(branch.stop, 1)
        return self._choices[branch.stop - self._first][None]

    def _wrong_rows(self, start: int, count: int) -> Tensor:
        """For so many positions from `start` on."""
        return self._wrong[torch.arange(start, start + count) % len(self._wrong)]

    def _follow(self, tokens: list[int], last: int) -> None:
        """Takes over a text: how much of it is the true one, and how many rows it costs (what the
        cache does not hold; to read the prompt counts as one row, as only decoding is compared)."""
        cached = self._cached
        extends = tokens[: len(cached)] == cached  # the usual case, and the only costly one
        known = len(cached) if extends else common_prefix(cached, tokens)
        self._true = min(self._true, known)
        if self._true == known:
            self._true += common_prefix(self._text[known : len(tokens)], tokens[known:])
        rows = len(tokens) - min(known, len(tokens) - last)
        self.num_rows = rows if self._cached else last
        self._cached = tokens


class ReplayedModel:
    """A language model whose choices are known beforehand; `rows` are those of its last forward."""

    max_length = 1 << 30
    can_branch = True

    def __init__(self, script: Script) -> None:
        self._script = script

    @property
    def vocab_size(self) -> int:
        return self._script.width

    @property
    def rows(self) -> int:
        return self._script.num_rows

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        return self._script.rows(tokens, last)

    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        return self._script.rows(tokens, last), self._script.branch_rows(branches)


def _one_hot(ids: Sequence[int], size: int) -> Tensor:
    rows = torch.zeros(len(ids), size, dtype=torch.uint8)
    return rows.scatter_(1, torch.tensor(ids)[:, None], 1)
