"""What was drafted after a text: paths that share their beginnings. Knows no models, no pipes."""

from collections.abc import Sequence

from doublespec.tokens import Tokens

_Node = dict[int, "_Node"]  # the tokens that may come next, the draft's own choice first


class DraftTree:
    """Drafted continuations of a text that grows. Of several tokens at one place the one that came
    first is the draft's own choice; the others are corrections that it went on from."""

    def __init__(self) -> None:
        self._root: _Node = {}

    def add(self, path: Tokens) -> None:
        """Takes in a continuation of the text."""
        node = self._root
        for token in path:
            node = node.setdefault(token, {})

    def settle(self, new: Sequence[int]) -> bool | None:
        """The text has grown by `new`: keeps what still holds. Says, where `new` departs from the
        draft's own choices, whether the draft had gone on from there (None: it does not depart)."""
        node, departed = self._root, None
        for token in new:
            if departed is None and node and token != next(iter(node)):
                departed = token in node
            node = node.get(token, {})
        self._root = node
        return departed

    def best(self, limit: int) -> list[int]:
        """The draft's own choices, at most `limit` of them."""
        path: list[int] = []
        node = self._root
        while node and len(path) < limit:
            token = next(iter(node))
            path.append(token)
            node = node[token]
        return path

    def clear(self) -> None:
        """There is another text, after which nothing is drafted."""
        self._root = {}
