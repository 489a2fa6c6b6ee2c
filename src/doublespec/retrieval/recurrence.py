"""Where a text goes on as it did before: heard while a model goes on by itself, so that nothing is
looked for where there is nothing, and nothing begins unnoticed."""

from array import array

from doublespec.compiled.listener import Listener
from doublespec.retrieval.chains import Chains
from doublespec.retrieval.linking import LISTENING, linking, listen_address

# That may be listened for, the surer ones first. (2 or 3 tokens are worth about as much as 4 where
# these are worth it at all: docs/log.md.)
NGRAMS = (8, 4)
_MOST_NEW = 256  # tokens, of which the last one is taken for one to stop at
_HEARD = LISTENING.index("heard")


class Recurrence:
    """Listens for n-grams of at least so many tokens that end with a token still to come, and stood
    in a text or among the tokens heard since. What continues a repetition that the text ends with
    does not count: who asks knows of that."""

    def __init__(self) -> None:
        self._state = array("q", [0] * len(LISTENING))
        self._new = array("i", [0] * (_MOST_NEW + NGRAMS[0]))
        self.listener = Listener(listen_address(), self._state.buffer_info()[0])
        self._chains: Chains | None = None  # whose tables the state names

    def begin(self, chains: Chains, least: int) -> "Recurrence":
        """After the text of those chains, which must not change meanwhile."""
        tail = chains.tokens[-(NGRAMS[0] - 1) :]
        self._new[: len(tail)] = array("i", tail)
        told = {
            "heard": 0,
            "tables": chains.place,
            "mask": chains.mask,
            "least": least,
            "new": self._new.buffer_info()[0],
            "count": len(tail),
            "room": len(self._new),
            "quiet": int(chains.ends_as_before(least)),
        }
        self._state[:] = array("q", [told[name] for name in LISTENING])
        self._chains = chains
        return self

    @property
    def heard(self) -> int:
        """How long the n-gram is that was heard last (0: none was)."""
        return self._state[_HEARD]

    def hear(self, token: int) -> int:
        """The same behind another token."""
        linking().listen(self.listener.state, token)
        return self.heard
