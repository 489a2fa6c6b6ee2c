"""Lists of token ids, and the two things one may ask of them.

Knows nothing of models or text.
"""

from collections.abc import Sequence

Tokens = Sequence[int]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """The number of leading tokens that `a` and `b` share.

    Compares slices (at C speed) and halves the range at a difference, so that the usual case,
    one sequence being a prefix of the other, costs one comparison.
    """
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def rebase(guess: list[int], settled: Tokens) -> list[int]:
    """The tail of `guess` that still holds after `settled`: all of it if `settled` is its prefix,
    else nothing.

    This one line takes the place of PEARL's pre-verify and post-verify modes
    (arXiv 2408.11850, section 4): both are what happens when `guess` is short or long.
    """
    return guess[len(settled) :] if guess[: len(settled)] == list(settled) else []
