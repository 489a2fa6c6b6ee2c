"""Canonical shapes: in which blocks a text is computed, so that a row's bits depend on its text.

A forward over k + 1 rows and one over a single row may round differently, and attention rounds
by the length of the keys. So each block of rows is padded to a row count from a set that was shown
to give the same bits, and a row attends over a number of keys that follows from its position alone:

    row at position p   attends over   the first multiple of `key_step` above p   keys
    rows of the prompt  come in        row counts from `prompt`
    rows of the answer  come in        row counts from `answer`

Where prompt and answer rows have the same bits too (`alike`), a cached row serves in both roles.
`FASTEST` pads nothing: for drafts, whose bits change nothing but speed, and as the baseline in
benchmarks. Which sets hold on this device is found by `find_shapes`, from the model's own kernels.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, equal

ANSWER_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
PROMPT_COUNTS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
KEY_STEP = 256


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
        yield Block(start, end, pad(end - start, counts), _spans(start, end, shapes.key_step))
        start = end


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


def find_shapes(probe: Callable[[int, int], Tensor], max_keys: int) -> Shapes:
    """The largest sets of row counts whose bits agree on this device, `STRICT` if none do.

    `probe(rows, keys)` computes `rows` rows over `keys` keys with the model's own kernels and
    returns the results of its first and last row, which it gives the same input.
    """
    keys = _key_lengths(max_keys)
    answer = _agreeing(probe, ANSWER_COUNTS, STRICT.answer[0], keys)
    prompt = _agreeing(probe, PROMPT_COUNTS, STRICT.prompt[0], keys)
    if not answer or not prompt:
        return STRICT
    alike = all(equal(probe(answer[-1], k), probe(prompt[-1], k)) for k in keys)
    return Shapes(prompt, answer, KEY_STEP, alike)


def _key_lengths(max_keys: int) -> list[int]:
    """Powers of two times the key step, as far as the context goes (at most 8,192 keys)."""
    lengths = [KEY_STEP << i for i in range(6)]
    return [k for k in lengths if k <= max(max_keys, KEY_STEP)]


def _agreeing(
    probe: Callable[[int, int], Tensor], counts: Sequence[int], anchor: int, keys: Sequence[int]
) -> tuple[int, ...]:
    """The counts that give, for every key length, the bits that `anchor` rows give."""
    wanted = {k: probe(anchor, k) for k in keys}
    if not all(equal(first, last) for first, last in wanted.values()):
        return ()
    return tuple(n for n in counts if all(equal(probe(n, k), wanted[k]) for k in keys))
