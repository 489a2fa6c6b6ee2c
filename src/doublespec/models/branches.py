"""Where the rows of branches stand in a forward, and what they may look at.

Rows of branches come behind those of the text in one block, and their keys in the slots behind the
text. A row of a branch stands at the position that its token has in the branch:

    text  a b c d      branches  (2, x y)  (3, z)
    row        a  b  c  d  x  y  z
    slot       0  1  2  3  4  5  6
    position   0  1  2  3  2  3  3
    looks at   the slots before and at its own: of the text's first `start`, and of its own branch
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from doublespec.models.base import Branch


def positions(start: int, stop: int, branches: Sequence[Branch]) -> list[int]:
    """The positions of the rows of text[start:stop] and of the branches behind them."""
    rows = list(range(start, stop))
    for branch in branches:
        rows += range(branch.start, branch.stop)
    return rows


def final_rows(rows: int, branches: Sequence[Branch]) -> list[int]:
    """The last row of each branch, behind `rows` rows of the text."""
    ends = accumulate((len(branch.tokens) for branch in branches), initial=rows)
    return [end - 1 for end in ends][1:]


def hidden(start: int, stop: int, branches: Sequence[Branch]) -> npt.NDArray[np.bool_]:
    """(rows, slots): which slots a row must not look at, the first row being text[start]."""
    sizes = [stop - start, *(len(branch.tokens) for branch in branches)]
    owner = np.repeat(np.arange(len(sizes)), sizes)  # 0 is the text
    row, slot = np.arange(len(owner)), np.arange(start + len(owner))
    own = (owner[:, None] == owner) & (row[:, None] >= row)
    starts = [branch.start for branch in branches for _ in branch.tokens]
    reach = np.array([*range(start + 1, stop + 1), *starts])
    result: npt.NDArray[np.bool_] = slot >= reach[:, None]
    result[:, start:] &= ~own
    return result
