"""What the rest of the program asks of a model: logits for a text."""

from typing import Protocol

from torch import Tensor

from doublespec.tokens import Tokens


class LanguageModel(Protocol):
    """A causal language model under the full-sequence contract: it is handed the whole text each
    time, keeps a private cache and finds out itself what changed."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_length(self) -> int:
        """The longest text it can read, in tokens."""
        ...

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        """Logits (last, V) for the last positions of `tokens`; the final row predicts what comes
        next. Tokens before `prompt_length` are the prompt, the others an answer to it (the two
        may be computed in different shapes, see `models/shapes.py`)."""
        ...
