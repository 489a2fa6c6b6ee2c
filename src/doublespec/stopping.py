"""One stop rule for all methods: where in a run of settled tokens an answer ends.

An answer ends at the first token after which one of these holds, whatever run it came in:

    it is an end token or a stop id                          "stop"
    a stop string stands in the text of the last tokens      "stop"
    the answer has as many tokens as it may have             "length"
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from doublespec.tokens import Tokens

_HALVES = 12  # bytes that a window may show for halves of characters at its ends

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class StopRule:
    """When an answer ends. `text` turns tokens into text; it is asked only if there are stop
    strings, for a window of text that holds the longest of them."""

    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    text: Callable[[Tokens], str] | None = None

    def cut(self, answer: list[int], new: list[int]) -> tuple[list[int], Finish | None]:
        """`new`, which follows `answer`, as far as the answer goes; and why it ended, if it did."""
        is_inside = len(answer) + len(new) < self.max_tokens
        if is_inside and not self.strings and self.end_ids.isdisjoint(new):
            return new, None
        for i in range(1, len(new) + 1):
            if new[i - 1] in self.end_ids or self._ends_in_string(answer, new[:i]):
                return new[:i], "stop"
            if len(answer) + i >= self.max_tokens:
                return new[:i], "length"
        return new, None

    def _ends_in_string(self, answer: list[int], new: list[int]) -> bool:
        if not self.strings or self.text is None:
            return False
        longest = max(len(string.encode()) for string in self.strings)
        needed = longest + len(self.text(new[-1:]).encode()) + _HALVES
        size = longest + 16
        while True:
            window = [*answer[max(0, len(answer) + len(new) - size) :], *new][-size:]
            text = self.text(window)
            if any(string in text for string in self.strings):
                return True
            if len(text.encode()) >= needed or size >= len(answer) + len(new):
                return False
            size *= 2  # some tokens show nothing
