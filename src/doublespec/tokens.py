"""Lists of token ids, and the two things one may ask of them.

Knows nothing of models or text.
"""

from collections.abc import Sequence

Tokens = Sequence[int]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """The number of leading tokens that `a` and `b` share.

    Slices are compared at C speed and the range is halved at a difference, so that the usual
    case, one sequence being a prefix of the other, costs one comparison.
    """
    if type(a) is not type(b):
        a, b = as_list(a), as_list(b)
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] == b[:low] and a[:high] != b[:high]
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def rebase(guess: list[int], settled: Tokens) -> list[int]:
    """The tail of `guess` that still holds after `settled`: its rest if `settled` is its prefix,
    else nothing.

    This line takes the place of PEARL's pre-verify and post-verify modes (arXiv 2408.11850,
    section 4): both are what happens when `guess` is short or long.
    """
    return guess[len(settled) :] if guess[: len(settled)] == as_list(settled) else []


def as_list(tokens: Tokens) -> list[int]:
    """The tokens as a list: the same one if they are one."""
    return tokens if isinstance(tokens, list) else list(tokens)
