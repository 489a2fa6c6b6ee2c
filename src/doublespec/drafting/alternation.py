"""Which of several answers under way at once has the draft: it follows one text at a time.

Two texts that took it from each other at every step would each begin it anew, and neither would
get anything drafted. When that is noticed, the one that has it keeps it, and the others do without
until its answer is over, or until it has not been seen for a while.
"""

from doublespec.tokens import Tokens

_TEXTS = 4  # that are remembered
_RETURNS = 2  # of texts that had lost the draft, one after the other: they alternate
_ABSENT = 8  # steps of others after which a text is given up

_Named = tuple[object, list[int]]  # what makes a text another one, besides its tokens; and those


class Alternation:
    """Notices it. A text that has the draft is its owner."""

    def __init__(self) -> None:
        self._lost: list[_Named] = []  # texts that lost the draft to another one, as they were then
        self._returns = 0
        self._others = 0  # steps of others since the owner's last

    @property
    def is_likely(self) -> bool:
        """Whether a text has lost the draft to another one; else there is nothing to decide."""
        return bool(self._lost)

    def owner_goes_on(self) -> None:
        self._others = 0
        if self._returns < _RETURNS:
            self._returns = 0

    def owner_loses(self, order: object, tokens: list[int]) -> None:
        """Another text takes the draft."""
        self._lost = [*self._lost[1 - _TEXTS :], (order, tokens)]

    def must_stand_aside(self, order: object, tokens: Tokens) -> bool:
        """Whether a text that is not the owner's must do without the draft now."""
        if not any(o == order and tokens[: len(t)] == t for o, t in self._lost):
            return False
        self._others += 1
        self._returns += 1
        if self._returns <= _RETURNS:
            return False
        if self._others > _ABSENT:
            self.end()
            return False
        return True

    def end(self) -> None:
        """An answer is over: whoever comes next may have the draft."""
        self._lost, self._returns, self._others = [], 0, 0
