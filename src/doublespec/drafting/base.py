"""What the loops ask of a drafter. A wrong guess costs time, never correctness."""

from typing import Protocol

from doublespec.sampling import Request
from doublespec.tokens import Tokens


class Drafter(Protocol):
    """Makes guesses at once."""

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        """A guess at what follows `tokens`: 0 to `limit` tokens."""
        ...


class BackgroundDrafter(Protocol):
    """Makes guesses while something else runs; each `start` is followed by one `collect`."""

    def start(self, tokens: Tokens, limit: int, request: Request) -> None:
        """Begins a guess at what follows `tokens`."""
        ...

    def collect(self) -> list[int]:
        """The guess begun last; nothing if the drafter failed."""
        ...

    def close(self) -> None:
        """Ends what runs in the background; may be called again."""
        ...


class NoDrafter:
    """Never guesses."""

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return []
