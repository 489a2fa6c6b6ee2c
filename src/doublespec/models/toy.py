"""Small fakes of a language model, for tests and for measuring the engine without a model.

A toy's logits depend on the last two tokens through a fixed random table, so that its text has the
statistics that matter here: it repeats now and then, and near-ties occur.
"""

from itertools import pairwise

import torch
from torch import Tensor

from doublespec.tokens import Tokens

_ROWS = 1009


class ToyModel:
    """A deterministic toy. Two toys of the same `seed` agree at a share of `agreement` of contexts;
    0 never agrees, 1 always does."""

    def __init__(
        self,
        vocab_size: int = 32,
        *,
        seed: int = 0,
        agreement: float = 1.0,
        max_length: int = 1 << 20,
        sharpness: float = 2.0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(_ROWS, vocab_size, generator=generator) * sharpness
        differs = torch.rand(_ROWS, generator=generator) >= agreement
        table[differs] = table[differs].roll(1, dims=-1)
        self._table = table
        self._max_length = max_length
        self.forwards = 0

    @property
    def vocab_size(self) -> int:
        return self._table.shape[1]

    @property
    def max_length(self) -> int:
        return self._max_length

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        assert 0 < last <= len(tokens) <= self._max_length
        self.forwards += 1
        recent = [0, *tokens[max(len(tokens) - last - 1, 0) :]][-last - 1 :]
        rows = [(before * 613 + token * 31) % _ROWS for before, token in pairwise(recent)]
        return self._table[rows]
