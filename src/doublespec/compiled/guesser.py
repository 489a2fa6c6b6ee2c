"""How one compiled function tells another what comes next, with no Python between them."""

from ctypes import CFUNCTYPE, c_int64, c_void_p
from typing import NamedTuple


class Guesser(NamedTuple):
    """The address of a compiled function of (state, token, more), and of its state.

    It is told each token of a text as soon as that is chosen, and whether (1) `more` tokens of the
    same forward follow. Where none do, the first two whole numbers of the state say then how many
    tokens it guesses, `most` at most, and where they are: whole numbers of 64 bits, which stay as
    they are until it is told the next token.
    """

    function: int
    state: int
    most: int

    def hear(self, token: int, *, more: bool) -> list[int]:
        """Tells it a token, and says what it guesses then: as a compiled model does."""
        CFUNCTYPE(None, c_void_p, c_int64, c_int64)(self.function)(self.state, token, more)
        count, place = (c_int64 * 2).from_address(self.state)
        return (c_int64 * count).from_address(place)[:] if count else []
