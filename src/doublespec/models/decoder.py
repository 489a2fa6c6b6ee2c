"""One lean decoder for Llama, Mistral, Qwen2 and Qwen3 checkpoints, with its own KV cache.

A text is computed in blocks of canonical shape (`models/shapes.py`), so that the bits of its
logits depend on the text only, not on what was cached or how it was split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from doublespec.models import branches as behind
from doublespec.models.base import Branch
from doublespec.models.graphs import Bucket, Capture, Graphs, Inputs, fill, proven
from doublespec.models.kernels import KernelProbe
from doublespec.models.layers import (
    Layer,
    Linear,
    MakeLinear,
    Norm,
    Progress,
    Weights,
    attention,
    lone_attention,
    read_weights,
    rotary_table,
    swiglu,
    with_torch,
)
from doublespec.models.memory import FIRST_CAPACITY, check_cache
from doublespec.models.quantize import find_products
from doublespec.models.shapes import (
    FASTEST,
    FEW,
    FINE_KEY_STEP,
    KEY_STEP,
    STRICT,
    Block,
    Shapes,
    Span,
    find_shapes,
    key_lengths,
    pad,
    plan,
    reusable,
)
from doublespec.models.sizes import DecoderConfig
from doublespec.models.threads import Threads
from doublespec.models.weights import Source
from doublespec.tokens import Tokens, common_prefix
from doublespec.transfer import upload

_PADDING = max(STRICT.prompt)  # rows of padding may stand that far behind the cache's last place

Cache = tuple[Tensor, Tensor]  # keys and values


@dataclass(frozen=True, slots=True)
class _Room:
    """The cache of all layers, and what is laid out for as many tokens as it holds: exchanged as
    one, so that an interrupt leaves the old room or the new one."""

    capacity: int
    cache: Cache
    rotary: tuple[Tensor, Tensor]  # cosines and sines (capacity and padding, head_dim)
    staircase: Tensor  # zeros, then minus infinity: masks are windows of it
    lone_staircase: Tensor  # as many times as a lone row has rows of queries


@dataclass(frozen=True, slots=True)
class _View:
    """What a block needs of one layer's cache."""

    slots: Cache  # to write: (1, kv heads, new rows, head_dim)
    seen: Sequence[Cache]  # to read, for each span: (1, kv heads, keys, head_dim)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What every layer needs to know of a block: where its rows are and what they may see."""

    block: Block
    cos: Tensor  # (rows, head_dim)
    sin: Tensor
    masks: tuple[Tensor | None, ...]  # (heads of a group x rows, keys) for each span
    views: list[_View]  # for each layer
    slots: Tensor | None = None  # where in what a view may write, if not all of it


class Decoder:
    """A language model under the full-sequence contract (`models/base.py`)."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights[Linear, Norm],
        shapes: Shapes,
        max_length: int,
        capture: Capture | None = None,
    ) -> None:
        """With `capture`, steps are recorded and replayed (`graphs.py`)."""
        self.config = config
        self.shapes = shapes
        self.threads: Threads | None = None  # None: as many as PyTorch was told to use
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        self._weights = weights
        self._max_length = max_length
        self._room = self._lay_out(0, (self._zeros(0), self._zeros(0)))
        self._seen: tuple[int, list[Cache]] = 0, []  # the first so many places, as last cut
        self._cached: list[int] = []
        self._cached_prompt_length = 0
        self._capture = capture
        exact = shapes.is_canonical()
        self._graphs = None if capture is None else Graphs(capture, self.device, exact=exact)
        self._reserve(min(FIRST_CAPACITY, max_length))

    @classmethod
    def load(
        cls,
        source: Source,
        device: torch.device,
        dtype: torch.dtype,
        *,
        canonical: bool = True,
        max_length: int | None = None,
        reserve: int | None = None,
        quantize: str | None = None,
        progress: Progress | None = None,
        capture: Capture | None = None,
    ) -> Self:
        """Reads the weights. `canonical` models compute in canonical shapes, found by a test of
        this device's kernels; the others in fast ones. Its cache has room for `reserve` tokens from
        the beginning. With `quantize` its layers are rounded as they are read (`quantize.py`).
        Raises ModelError and ConfigError."""
        config = source.config
        assert config is not None  # of others, `load.py` makes no decoder
        product = find_products(quantize, device)
        weights = read_weights(source, config, device, dtype, with_torch(product), progress)
        length = min(config.max_length, max_length or config.max_length)
        probe = KernelProbe(config, device, dtype, product, weights.vocabulary)
        fast = FEW if device.type == "cpu" else FASTEST
        shapes = canonical_shapes(probe, length) if canonical else fast
        if capture is not None and canonical:
            lengths = key_lengths(length, shapes.key_step or KEY_STEP)
            kernels = chain(probe.products(), probe.attention(lengths))
            capture = proven(capture, kernels, shapes.answer, device)
        decoder = cls(config, weights, shapes, length, capture)
        decoder._reserve(min(reserve or 0, length))
        return decoder

    def with_shapes(self, shapes: Shapes) -> Self:
        """The same weights with a cache of their own, computing in other shapes."""
        return type(self)(self.config, self._weights, shapes, self._max_length, self._capture)

    def fresh(self) -> Self:
        """The same weights in the same shapes, with an empty cache."""
        return self.with_shapes(self.shapes)

    def fastest(self) -> Self:
        """The same weights in the fastest shapes: the baseline of benchmarks."""
        return self.with_shapes(FASTEST)

    def choose_threads(self, threads: Threads) -> None:
        """From now on `threads` sets their number, block by block."""
        self.threads = threads

    def kernels(self, product: MakeLinear) -> KernelProbe:
        """Those of its forward, on data of their own; `product` makes the products of layers."""
        head = self._weights.vocabulary
        return KernelProbe(self.config, self.device, self.dtype, product, head)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def row_counts(self) -> tuple[int, ...]:
        """The row counts that blocks of an answer come in."""
        return self.shapes.answer

    @property
    def records(self) -> bool:
        """Whether its steps are recorded and replayed."""
        return self._graphs is not None

    @property
    def _group(self) -> int:
        """Heads that share keys and values."""
        return self.config.num_heads // self.config.num_kv_heads

    @property
    def can_branch(self) -> bool:
        return not self.shapes.is_canonical()

    @torch.inference_mode()
    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        if self.threads is None:
            return self._logits(tokens, last, (), prompt_length)
        try:
            return self._logits(tokens, last, (), prompt_length)
        finally:
            self.threads.end()

    @torch.inference_mode()
    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        """See `models/base.py`. Not in canonical shapes: branches would change a row's bits."""
        assert self.can_branch
        assert all(b.start <= len(tokens) and b.stop <= self._max_length for b in branches)
        rows = self._logits(tokens, last, branches, prompt_length)
        return rows[:last], rows[last:]

    def _logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> Tensor:
        """Logits of the last positions, then of each branch."""
        tokens = tokens if isinstance(tokens, list) else list(tokens)
        assert 0 < last <= len(tokens) <= self._max_length
        wanted = len(tokens) - last
        start = min(self._kept(tokens, prompt_length), wanted)
        self._reserve(len(tokens) + sum(len(branch.tokens) for branch in branches))
        self._cached = tokens[:start]  # the rest is being overwritten: an interrupt leaves no lie
        self._cached_prompt_length = prompt_length
        parts = []
        for block in plan(start, len(tokens), prompt_length, self.shapes):
            ahead = branches if block.stop == len(tokens) else ()
            hidden = self._forward(block, tokens[block.start : block.stop], ahead)
            if block.stop > wanted:
                first, size = max(wanted - block.start, 0), block.stop - block.start
                parts.append(self._head(self._wanted(hidden, first, size, ahead)))
        self._cached = list(tokens)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _wanted(self, hidden: Tensor, first: int, size: int, branches: Sequence[Branch]) -> Tensor:
        """A text's rows [first, size), then the last row of each branch."""
        if not branches:
            return hidden[first:size]
        rows = [*range(first, size), *behind.final_rows(size, branches)]
        return hidden.index_select(0, upload(torch.tensor(rows), self.device))

    def unread(self, tokens: Tokens, prompt_length: int) -> int:
        """How many positions of a text are not in the cache."""
        tokens = tokens if isinstance(tokens, list) else list(tokens)
        return len(tokens) - self._kept(tokens, prompt_length)

    # -- the cache -------------------------------------------------------------------------------

    def _kept(self, tokens: list[int], prompt_length: int) -> int:
        common = common_prefix(self._cached, tokens)
        return reusable(common, self._cached_prompt_length, prompt_length, self.shapes)

    def _reserve(self, length: int) -> None:
        """Makes room for `length` tokens. Capacity doubles, so that growing is rare; what was
        never written is zero, so that masked keys add nothing."""
        old = self._room
        if length <= old.capacity:
            return
        wanted = max(length, min(2 * old.capacity, self._max_length))
        capacity = -(-wanted // KEY_STEP) * KEY_STEP
        check_cache(self.config, self.dtype, self.device, capacity)
        if self._graphs is not None:
            self._graphs.clear()
        self._seen = 0, []
        grown = self._grown(old.cache[0], capacity), self._grown(old.cache[1], capacity)
        self._room = self._lay_out(capacity, grown)

    def _lay_out(self, capacity: int, cache: Cache) -> _Room:
        steps = self._staircase(capacity)
        lone = steps.expand(self._group * self.shapes.lone, -1)
        return _Room(capacity, cache, self._rotary_table(capacity + _PADDING), steps, lone)

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        new = self._zeros(capacity)
        new[..., : old.shape[-2], :] = old
        return new

    def _zeros(self, capacity: int) -> Tensor:
        """Keys or values of all layers."""
        c = self.config
        shape = (c.num_layers, 1, c.num_kv_heads, capacity, c.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _rotary_table(self, capacity: int) -> tuple[Tensor, Tensor]:
        cos, sin = rotary_table(self.config.rotary, capacity)
        return cos.to(self.device, self.dtype), sin.to(self.device, self.dtype)

    def _staircase(self, capacity: int) -> Tensor:
        """Zeros, then minus infinity: its window of k values from place capacity + padding - 1 - p
        on is the mask over k keys of a row at position p."""
        steps = torch.zeros(2 * capacity + _PADDING, dtype=self.dtype, device=self.device)
        steps[capacity + _PADDING :] = float("-inf")
        return steps

    # -- the forward pass ------------------------------------------------------------------------

    def _forward(
        self, block: Block, tokens: Sequence[int], branches: Sequence[Branch] = ()
    ) -> Tensor:
        """Hidden states (rows, D) of a block and of the branches behind it, which hold until the
        next forward; writes their keys and values to the cache."""
        if self._graphs is not None:
            bucket = self._graphs.find_bucket(block, branches, self._room.capacity)
            if bucket is not None:
                return self._replay(self._graphs, bucket, block, tokens, branches)
        return self._compute(block, tokens, branches)

    def _replay(
        self,
        graphs: Graphs,
        bucket: Bucket,
        block: Block,
        tokens: Sequence[int],
        branches: Sequence[Branch],
    ) -> Tensor:
        """The same, by a recording where there is one."""
        rows = len(tokens) + sum(len(branch.tokens) for branch in branches)
        values = fill(bucket, block, tokens, branches)
        plain = partial(self._compute, block, tokens, branches)
        return graphs.forward(bucket, values, self._step, plain, rows)

    def _compute(self, block: Block, tokens: Sequence[int], branches: Sequence[Branch]) -> Tensor:
        if self.threads is not None:
            self.threads.begin(block.rows)
        ids = [*tokens, *(token for branch in branches for token in branch.tokens)]
        rows = self._branching_rows(block, branches) if branches else self._rows(block)
        ids += ids[-1:] * (rows.block.rows - len(ids))
        return self._hidden(upload(torch.tensor(ids), self.device), rows)

    def _step(self, bucket: Bucket, inputs: Inputs) -> Tensor:
        """The hidden states of what buffers hold: nothing of it depends on anything else, and
        nothing is done on the host."""
        ids, positions, slots = inputs.table.unbind()
        attending = bucket.rows if bucket.rows > 1 else self.shapes.lone
        places = torch.arange(bucket.keys, device=self.device)
        hidden = places > positions[:, None] if inputs.hidden is None else inputs.hidden
        cos, sin = (table.index_select(0, positions) for table in self._room.rotary)
        span = Span(0, bucket.rows, bucket.keys, 0, attending)
        block = Block(0, bucket.rows, bucket.rows, (span,))
        mask = self._as_mask(hidden.expand(attending, -1))
        views = self._whole_views(bucket.keys)
        return self._hidden(ids, _Rows(block, cos, sin, (mask,), views, slots))

    def _hidden(self, ids: Tensor, rows: _Rows) -> Tensor:
        hidden = F.embedding(ids, self._weights.embedding)
        for layer, view in zip(self._weights.layers, rows.views, strict=True):
            hidden = self._layer(layer, view, rows, hidden)
            if self.threads is not None:
                self.threads.check()
        return hidden

    def _rows(self, block: Block) -> _Rows:
        stop = block.start + block.rows
        masks = tuple(self._mask(block, span) for span in block.spans)
        cos, sin = (table[block.start : stop] for table in self._room.rotary)
        return _Rows(block, cos, sin, masks, self._views(block))

    def _branching_rows(self, block: Block, branches: Sequence[Branch]) -> _Rows:
        """The block's rows without their padding and those of the branches, padded as one block."""
        standing = behind.positions(block.start, block.stop, branches)
        used, keys = len(standing), block.start + len(standing)
        counts = self.shapes.answer
        rows = pad(used, counts) if used <= counts[-1] else used
        whole = Block(block.start, keys, rows, (Span(0, used, keys, 0, rows),))
        standing += standing[-1:] * (rows - used)
        positions = upload(torch.tensor(standing), self.device)
        hidden = behind.hidden(block.start, block.stop, branches)
        hidden = np.pad(hidden, ((0, rows - used), (0, 0)), mode="edge")
        mask = self._as_mask(upload(torch.from_numpy(hidden), self.device))
        cos, sin = (table[positions] for table in self._room.rotary)
        return _Rows(whole, cos, sin, (mask,), self._views(whole))

    def _as_mask(self, hidden: Tensor) -> Tensor:
        """The mask of rows by what each must not look at, once for each head of a group."""
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, float("-inf")).repeat(self._group, 1)

    def _mask(self, block: Block, span: Span) -> Tensor | None:
        """Minus infinity where a row must not look, 0 elsewhere, once for each head of a group;
        None for a lone row that sees all, if no other row's bits must equal its own."""
        if block.rows == 1 and span.keys == block.stop and not self.shapes.is_canonical():
            return None
        place = self._room.capacity + _PADDING - 1 - block.start
        if block.rows == 1:
            mask = self._room.lone_staircase.narrow(1, place, span.keys)
            if self.device.type == "cpu":
                return mask
            return mask.clone(memory_format=torch.contiguous_format)  # GPUs want it aligned
        place -= span.first
        order = [*range(place, place - span.rows, -1)] * self._group
        windows = self._room.staircase.unfold(0, span.keys, 1)
        return windows.index_select(0, upload(torch.tensor(order), self.device))

    def _views(self, block: Block) -> list[_View]:
        written = self._places(block.start, block.stop - block.start)
        read = [self._first_places(span.keys) for span in block.spans]
        return [_View(slots, seen) for slots, *seen in zip(written, *read, strict=True)]

    def _whole_views(self, keys: int) -> list[_View]:
        """Views that may write anywhere."""
        written, read = self._places(0, self._room.capacity), self._places(0, keys)
        return [_View(slots, [seen]) for slots, seen in zip(written, read, strict=True)]

    def _first_places(self, count: int) -> list[Cache]:
        if self._seen[0] != count:  # canonical shapes ask for the same again and again
            self._seen = count, self._places(0, count)
        return self._seen[1]

    def _places(self, start: int, count: int) -> list[Cache]:
        """`count` places of each layer's cache, all layers cut at once."""
        keys, values = (part.narrow(3, start, count).unbind() for part in self._room.cache)
        return list(zip(keys, values, strict=True))

    def _layer(
        self, layer: Layer[Linear, Norm], view: _View, rows: _Rows, hidden: Tensor
    ) -> Tensor:
        qkv = layer.qkv(layer.attention_norm(hidden))
        hidden = layer.output(self._attention(layer, view, rows, qkv)).add_(hidden)
        return layer.down(swiglu(layer.gate_up(layer.mlp_norm(hidden)))).add_(hidden)

    def _attention(
        self, layer: Layer[Linear, Norm], view: _View, rows: _Rows, qkv: Tensor
    ) -> Tensor:
        """Attention of all rows; (rows, heads x head_dim)."""
        heads, dim = self.config.num_heads, self.config.head_dim
        qkv = qkv.view(len(qkv), -1, dim).transpose(0, 1)  # (heads, rows, head_dim)
        kv_heads = self.config.num_kv_heads
        qk, values = qkv.split_with_sizes((heads + kv_heads, kv_heads))
        if layer.query_norm is not None and layer.key_norm is not None:
            qk = torch.cat((layer.query_norm(qk[:heads]), layer.key_norm(qk[heads:])))
        qk = torch.addcmul(qk * rows.cos, qk.roll(dim // 2, -1), rows.sin)
        query, keys = qk.split_with_sizes((heads, kv_heads))
        new = rows.block.stop - rows.block.start
        keys, values = _first_rows(keys, new), _first_rows(values, new)
        if rows.slots is None:
            view.slots[0].copy_(keys)
            view.slots[1].copy_(values)
        else:
            view.slots[0].index_copy_(2, rows.slots, keys[None])
            view.slots[1].index_copy_(2, rows.slots, values[None])
        if rows.block.rows == 1:
            return lone_attention(qk, rows.block.spans[0].rows, *view.seen[0], rows.masks[0])
        mixed = self._attend(query, view, rows)
        return mixed.transpose(0, 1).reshape(rows.block.rows, -1)

    def _attend(self, query: Tensor, view: _View, rows: _Rows) -> Tensor:
        """Each span's rows over its keys, among as many rows as its shape demands; what is padding
        behind them is zero."""
        if len(rows.masks) == 1 and rows.block.spans[0].rows >= rows.block.rows:
            return _first_rows(attention(query, *view.seen[0], rows.masks[0]), rows.block.rows)
        parts = []
        for span, mask, seen in zip(rows.block.spans, rows.masks, view.seen, strict=True):
            mixed = attention(query.narrow(1, span.first, span.rows), *seen, mask)
            stop = rows.block.rows if span is rows.block.spans[-1] else span.stop
            parts.append(mixed[:, span.start - span.first : stop - span.first])
        mixed = torch.cat(parts, dim=1)
        padding = rows.block.rows - mixed.shape[1]
        return F.pad(mixed, (0, 0, 0, padding)) if padding else mixed

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of hidden states (n, D), computed in row counts of the answer."""
        parts = []
        for rows in torch.split(hidden, self.shapes.answer[-1]):
            padding = pad(len(rows), self.shapes.answer) - len(rows)
            padded = F.pad(rows, (0, 0, 0, padding)) if padding else rows
            parts.append(self._weights.vocabulary(self._weights.norm(padded))[: len(rows)])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _first_rows(states: Tensor, count: int) -> Tensor:
    """The first rows of (heads, rows, head_dim); an index would take longer to look at."""
    return states if states.shape[1] == count else states.narrow(1, 0, count)


def canonical_shapes(probe: KernelProbe, max_length: int) -> Shapes:
    """Those that a test of a device's kernels finds for a decoder."""
    key_step = FINE_KEY_STEP if probe.device.type == "cpu" else KEY_STEP
    attention = probe.attention(key_lengths(max_length, key_step))
    return find_shapes(probe.products(), attention, probe.vocabulary(), key_step)
