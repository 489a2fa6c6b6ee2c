"""What the loops ask of a drafter. A wrong guess costs time, never correctness."""

from typing import NamedTuple, Protocol

from doublespec.sampling import Request
from doublespec.tokens import Tokens


class Drafter(Protocol):
    """Makes guesses at once."""

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        """A guess at what follows `tokens`: 0 to `limit` tokens."""
        ...


class Guess(NamedTuple):
    """What a target is shown: `num_drafted` tokens of a draft, then retrieved ones."""

    tokens: list[int]
    num_drafted: int


class Completer(Protocol):
    """Makes a draft into the guess that a target is shown."""

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        """The guess, of at most `limit` tokens, after `tokens`, where `drafted` (no more than
        these) was drafted."""
        ...


class DraftForward(NamedTuple):  # of which every step makes several: cheap to make and to send
    """One forward of a draft that runs beside the target, for figures and timelines.

    It began at `begun` (seconds, on the clock of the Steps) and computed `rows` rows; `tokens` is
    what it added to the draft at position `start`, `branches` how many corrections it drafted on.
    """

    begun: float
    seconds: float
    rows: int
    start: int
    tokens: tuple[int, ...]
    branches: int = 0


class Pending(NamedTuple):
    """What is drafted after a text and not judged yet.

    `foreseen` says, where the text has departed from what was drafted, whether the draft had gone
    on from that very correction in advance (None: it has not departed). `forwards` are those that
    were heard of since the last time. `text` is the drafter's number for the text.
    """

    tokens: list[int]
    foreseen: bool | None = None
    forwards: tuple[DraftForward, ...] = ()
    text: int = 0


class BackgroundDrafter(Protocol):
    """Drafts while something else runs. It is handed the whole text each time and finds out itself
    what changed; what it has drafted for another text it drops."""

    def follow(self, tokens: Tokens, limit: int, request: Request) -> Pending:
        """Says what the text has become, and asks for what is drafted after it: at most `limit`
        tokens, nothing if the draft failed. Drafting goes on after that."""
        ...

    def wait(self, pending: Pending, shown: int, limit: int) -> list[int]:
        """What is drafted now, at most `limit` tokens, `pending` being what `follow` said. If the
        target would be shown so few tokens (`shown`) that it pays, waits a little for more."""
        ...

    def rest(self) -> None:
        """The answer is over: nothing need be drafted until the next `follow`."""
        ...

    def close(self) -> None:
        """Ends what runs in the background; may be called again."""
        ...


class NoDrafter:
    """Never guesses, and adds nothing to a draft."""

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return []

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        return Guess(drafted, len(drafted))

    def guess_ahead(self, tokens: Tokens, most: int, request: Request) -> None:
        return None
