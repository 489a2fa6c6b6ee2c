"""How one compiled function tells another what happens, with no Python between them."""

from typing import NamedTuple


class Listener(NamedTuple):
    """The address of a compiled function of (state, token), and of its state. It is told each token
    of a text as soon as that is chosen; where the first whole number of the state is not 0 then,
    the token had better be the last one for now."""

    function: int
    state: int
