"""Canonical shapes: in which blocks a text is computed, so that a row's bits depend on its text.

A forward over k + 1 rows and one over a single row may round differently, and attention rounds
by the length of the keys. So each block of rows is padded to a row count from a set that was shown
to give the same bits, and a row attends over a number of keys that follows from its position alone:

    row at position p   attends over   the first multiple of `key_step` above p   keys
    rows of the prompt  come in        row counts from `prompt`
    rows of the answer  come in        row counts from `answer`

Where prompt and answer rows have the same bits too (`alike`), a cached row serves in both roles.
`FASTEST` pads nothing: for drafts, whose bits change nothing but speed, and as the baseline in
benchmarks. Which sets hold on this device is found by a test of its kernels (`models/kernels.py`).
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, equal

# What a kernel makes of a block of rows, given as indices into its KERNEL_ROWS rows of input.
Kernel = Callable[[Tensor], Tensor]

ANSWER_COUNTS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
PROMPT_COUNTS: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128, 192, 256)
KEY_STEP = 256
KERNEL_ROWS = 16


@dataclass(frozen=True, slots=True)
class Shapes:
    """Row counts (ascending) that blocks of the prompt and of the answer are padded to."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    key_step: int | None
    alike: bool

    def is_canonical(self) -> bool:
        return self.key_step is not None


FASTEST = Shapes(tuple(range(1, 257)), tuple(range(1, 257)), key_step=None, alike=True)
# Safe on any device whose kernels treat equal shapes equally: one row count per role.
STRICT = Shapes((256,), (16,), key_step=KEY_STEP, alike=False)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of a block, counted from its first row, that attend over `keys` keys."""

    start: int
    stop: int
    keys: int


@dataclass(frozen=True, slots=True)
class Block:
    """Positions [start, stop), computed as `rows` rows (the last one repeated as padding)."""

    start: int
    stop: int
    rows: int
    spans: tuple[Span, ...]


def plan(start: int, stop: int, prompt_length: int, shapes: Shapes) -> Iterator[Block]:
    """The blocks that compute positions [start, stop), in order."""
    while start < stop:
        in_prompt = start < prompt_length
        counts = shapes.prompt if in_prompt else shapes.answer
        end = min(stop, start + counts[-1])
        if in_prompt:  # blocks end at multiples of their size, where key lengths change too
            end = min(end, prompt_length, (start // counts[-1] + 1) * counts[-1])
        end = start + _without_waste(end - start, counts)
        yield Block(start, end, pad(end - start, counts), _spans(start, end, shapes.key_step))
        start = end


def _without_waste(rows: int, counts: Sequence[int]) -> int:
    """`rows`, or fewer of them for now, where most of the block would be padding."""
    smaller = bisect_left(counts, rows) - 1
    return counts[smaller] if smaller >= 0 and pad(rows, counts) > 2 * rows else rows


def pad(rows: int, counts: Sequence[int]) -> int:
    """The smallest allowed row count that holds `rows` rows."""
    return counts[bisect_left(counts, rows)]


def _spans(start: int, stop: int, key_step: int | None) -> tuple[Span, ...]:
    if key_step is None:
        return (Span(0, stop - start, stop),)
    spans = []
    row = start
    while row < stop:
        keys = (row // key_step + 1) * key_step
        end = min(stop, keys)
        spans.append(Span(row - start, end - start, keys))
        row = end
    return tuple(spans)


def reusable(common: int, cached_prompt_length: int, prompt_length: int, shapes: Shapes) -> int:
    """How many of `common` equal leading tokens have cached rows with the right bits."""
    if shapes.alike or cached_prompt_length == prompt_length:
        return common
    return min(common, cached_prompt_length, prompt_length)


def find_shapes(layer: Iterable[Kernel], vocabulary: Iterable[Kernel]) -> Shapes:
    """The largest sets of row counts whose bits agree in all kernels; `STRICT` if none do.

    Logits are always computed in row counts of the answer.
    """
    answer, prompt, alike = ANSWER_COUNTS, PROMPT_COUNTS, True
    for kernel in layer:
        few, many = _reference(kernel, STRICT.answer[-1]), _reference(kernel, STRICT.prompt[-1])
        answer = tuple(n for n in answer if _agrees(kernel, n, few))
        prompt = tuple(n for n in prompt if _agrees(kernel, n, many))
        alike = alike and equal(few, many)
    for kernel in vocabulary:
        few = _reference(kernel, STRICT.answer[-1])
        answer = tuple(n for n in answer if _agrees(kernel, n, few))
    return Shapes(prompt, answer, KEY_STEP, alike) if prompt and answer else STRICT


def key_lengths(max_length: int) -> list[int]:
    """Key lengths to test: powers of two times the key step, up to 8,192."""
    return [KEY_STEP << i for i in range(6) if KEY_STEP << i <= max(max_length, KEY_STEP)]


def _reference(kernel: Kernel, count: int) -> Tensor:
    """What a kernel makes of each of its rows in a block of `count` rows."""
    return kernel(torch.arange(count) % KERNEL_ROWS)[:KERNEL_ROWS]


def _agrees(kernel: Kernel, count: int, wanted: Tensor) -> bool:
    """Whether every row of a block of `count` has the `wanted` bits, each standing elsewhere in the
    block than it does in the reference."""
    index = (torch.arange(count) + 5) % KERNEL_ROWS
    return equal(kernel(index), wanted[index])
