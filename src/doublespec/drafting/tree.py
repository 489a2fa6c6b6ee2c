"""What was drafted after a text: paths that share their beginnings. Knows no models, no pipes."""

from collections.abc import Sequence

from doublespec.tokens import Tokens, common_prefix

_Path = tuple[int, ...]


class DraftTree:
    """Drafted continuations of a text that grows. Of several tokens at one place the one that came
    first is the draft's own choice; the others are corrections that it went on from.

    Paths are kept as they came, and not as a tree of nodes: to compare two of them is one call."""

    def __init__(self) -> None:
        self._own: _Path = ()
        self._others: list[_Path] = []  # in the order in which they came

    def add(self, path: Tokens) -> None:
        """Takes in a continuation of the text."""
        path = tuple(path)
        if path[: len(self._own)] == self._own:
            self._own = path
        elif self._own[: len(path)] != path:
            self._others.append(path)

    def settle(self, new: Sequence[int]) -> bool | None:
        """The text has grown by `new`: keeps what still holds. Says, where `new` departs from the
        draft's own choices, whether the draft had gone on from there (None: it does not depart)."""
        new, own, paths = tuple(new), self._own, self._others
        count = len(new)
        self._others = []
        if own[:count] == new:
            self._own, departed = own[count:], None
        else:
            self._own, departed = (), self._foresaw(new, own, paths)
        for path in paths:
            if path[:count] == new:
                self.add(path[count:])
        return departed

    @staticmethod
    def _foresaw(new: _Path, own: _Path, paths: list[_Path]) -> bool | None:
        place = common_prefix(own, new)
        if place == len(own):
            return None
        return any(path[: place + 1] == new[: place + 1] for path in paths)

    def best(self, limit: int) -> list[int]:
        """The draft's own choices, at most `limit` of them."""
        return list(self._own[: max(limit, 0)])

    def clear(self) -> None:
        """There is another text, after which nothing is drafted."""
        self._own, self._others = (), []
