"""What was drafted after a text: a path, and forks that leave it. Knows no models, no pipes."""

from collections.abc import Sequence

from doublespec.tokens import common_prefix

_Path = tuple[int, ...]


class DraftTree:
    """The draft's own choices after a text that grows, and the corrections that it went on from."""

    def __init__(self) -> None:
        self._path: _Path = ()
        self._forks: Sequence[tuple[int, _Path]] = ()  # after how many tokens of the path

    def replace(self, path: _Path, forks: Sequence[tuple[int, _Path]]) -> None:
        """This is drafted after the text, and nothing else."""
        self._path, self._forks = path, forks

    def settle(self, new: Sequence[int]) -> tuple[int, bool | None]:
        """The text has grown by `new`: keeps what still holds. Says how many of `new` are the
        draft's own choices; and, where `new` departs from them, whether the draft had gone on from
        there (None: it does not depart)."""
        new, path, forks = tuple(new), self._path, self._forks
        count, kept = len(new), common_prefix(path, new)
        if kept == count:
            self._path = path[count:]
            self._forks = [(place - count, fork) for place, fork in forks if place >= count]
            return kept, None
        self.clear()
        if kept == len(path):
            return kept, None
        other = new[kept:]
        found = [fork for place, fork in forks if place == kept and fork[0] == other[0]]
        for fork in found:
            if fork[: len(other)] == other:
                self._path = fork[len(other) :]
        return kept, bool(found)

    def best(self, limit: int) -> list[int]:
        """The draft's own choices, at most `limit` of them."""
        return list(self._path[: max(limit, 0)])

    def clear(self) -> None:
        """There is another text, after which nothing is drafted."""
        self._path, self._forks = (), ()
