"""How often a draft model would have been right on a text that others have settled.

All methods give the same tokens, so a draft can be judged by settled text: one forward over its
latest tokens says which of them the draft would have chosen. That takes a fraction of what it takes
to try the methods that use it, and says more: of each token, not only of those that a few steps
happen to come to.
"""

from collections.abc import Callable, Mapping

from doublespec.models.base import LanguageModel
from doublespec.sampling import Request, choose
from doublespec.tokens import Tokens, common_prefix

LEAST_SOUNDED = 8  # tokens
_MOST_SOUNDED = 32
_PRIOR_TOKENS, _PRIOR_KEPT = 2.0, 0.5  # which count for so many


class Sounding:
    """Judges the draft `model` (asked for when it is first needed); `speeds` says how many times as
    fast as plain decoding the methods with a draft are, by the share of its choices that hold."""

    def __init__(
        self,
        model: Callable[[], LanguageModel],
        speeds: Callable[[float], Mapping[str, float]],
    ) -> None:
        self._model = model
        self._speeds = speeds
        self._read: Tokens = []  # at the last sounding

    def unread(self, tokens: Tokens) -> int:
        """How many tokens of a text the draft has to read, if nobody asked it since the last
        sounding; those that it judges it reads again."""
        return max(LEAST_SOUNDED, len(tokens) - common_prefix(self._read, tokens))

    def speeds(self, tokens: Tokens, request: Request) -> Mapping[str, float]:
        """By the latest tokens of an answer, of which there are `LEAST_SOUNDED` at least; {} where
        the text is longer than the draft can read."""
        model, count = self._model(), min(_MOST_SOUNDED, len(tokens) - request.prompt_length)
        assert count >= LEAST_SOUNDED
        if len(tokens) > model.max_length:
            return {}
        self._read = list(tokens)
        start = len(tokens) - count
        before = tokens[:-1]
        chosen = choose(model.logits(before, count, request.prompt_length), before, start, request)
        kept = sum(one == other for one, other in zip(chosen, tokens[start:], strict=True))
        return self._speeds((kept + _PRIOR_TOKENS * _PRIOR_KEPT) / (count + _PRIOR_TOKENS))
