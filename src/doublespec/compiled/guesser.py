"""How one compiled function tells another what comes next, with no Python between them."""

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
