"""One lean decoder for Llama, Mistral, Qwen2 and Qwen3 checkpoints, with its own KV cache.

A text is computed in blocks of canonical shape (`models/shapes.py`), so that the bits of its
logits depend on the text only, not on what was cached or how it was split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from doublespec.errors import ModelError
from doublespec.models import branches as behind
from doublespec.models.base import Branch
from doublespec.models.devices import available_memory, gigabytes
from doublespec.models.kernels import KernelProbe
from doublespec.models.layers import (
    DecoderConfig,
    Layer,
    Progress,
    Weights,
    attention,
    read_weights,
    swiglu,
)
from doublespec.models.shapes import (
    FASTEST,
    KEY_STEP,
    Block,
    Shapes,
    Span,
    find_shapes,
    key_lengths,
    pad,
    plan,
    reusable,
)
from doublespec.models.weights import Checkpoint, rotary_frequencies
from doublespec.tokens import Tokens, common_prefix

_FIRST_CAPACITY = 4 * KEY_STEP

Cache = tuple[Tensor, Tensor]  # keys and values of one layer, (1, kv heads, capacity, head_dim)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What every layer needs to know of a block: where its rows are and what they may see."""

    block: Block
    cos: Tensor  # (rows, 1, head_dim)
    sin: Tensor
    masks: tuple[Tensor | None, ...]  # (heads of a group x rows, keys) for each span


class Decoder:
    """A language model under the full-sequence contract (`models/base.py`)."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        rotary: tuple[Tensor, float],
        shapes: Shapes,
        max_length: int,
    ) -> None:
        self.config = config
        self.shapes = shapes
        self._weights = weights
        self._rotary = rotary
        self._max_length = max_length
        self._capacity = 0
        self._caches: list[Cache] = []
        self._cached: list[int] = []
        self._cached_prompt_length = 0
        self._reserve(min(_FIRST_CAPACITY, max_length))

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        canonical: bool = True,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Reads a checkpoint. `canonical` models compute in canonical shapes, found by a test of
        this device's kernels; the others in the fastest ones. Raises ModelError."""
        config = DecoderConfig.of(checkpoint.config)
        rotary = rotary_frequencies(checkpoint.config, config.head_dim)
        weights = read_weights(checkpoint, config, device, dtype, progress)
        length = min(config.max_length, max_length or config.max_length)
        decoder = cls(config, weights, rotary, FASTEST, length)
        if canonical:
            probe = KernelProbe(config, device, dtype)
            decoder.shapes = find_shapes(probe.layer(key_lengths(length)), probe.vocabulary())
        return decoder

    def with_shapes(self, shapes: Shapes) -> Self:
        """The same weights with a cache of their own, computing in other shapes."""
        return type(self)(self.config, self._weights, self._rotary, shapes, self._max_length)

    def fastest(self) -> Self:
        """The same weights in the fastest shapes: the baseline of benchmarks."""
        return self.with_shapes(FASTEST)

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
    def device(self) -> torch.device:
        return self._weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weights.embedding.dtype

    @property
    def can_branch(self) -> bool:
        return not self.shapes.is_canonical()

    @torch.inference_mode()
    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        return self._logits(tokens, last, (), prompt_length)

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
                rows = [*range(first, size), *behind.final_rows(size, ahead)]
                parts.append(self._head(hidden[rows] if ahead else hidden[first:size]))
        self._cached = list(tokens)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    # -- the cache -------------------------------------------------------------------------------

    def _kept(self, tokens: list[int], prompt_length: int) -> int:
        common = common_prefix(self._cached, tokens)
        return reusable(common, self._cached_prompt_length, prompt_length, self.shapes)

    def _reserve(self, length: int) -> None:
        """Makes room for `length` tokens. Capacity doubles, so that growing is rare; what was
        never written is zero, so that masked keys add nothing."""
        if length <= self._capacity:
            return
        wanted = max(length, min(2 * self._capacity, self._max_length))
        capacity = -(-wanted // KEY_STEP) * KEY_STEP
        self._check_memory(capacity)
        old: Sequence[Cache | None] = self._caches or [None] * self.config.num_layers
        self._caches = [self._grown(cache, capacity) for cache in old]
        self._capacity = capacity
        self._cos, self._sin = self._rotary_table(capacity)

    def _grown(self, old: Cache | None, capacity: int) -> Cache:
        shape = (1, self.config.num_kv_heads, capacity, self.config.head_dim)
        new = tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        for part, old_part in zip(new, old or (), strict=False):
            part[:, :, : old_part.shape[2]] = old_part
        return new[0], new[1]

    def _rotary_table(self, capacity: int) -> tuple[Tensor, Tensor]:
        """cos and sin (capacity, 1, head_dim) of rotary embeddings (arXiv 2104.09864, eq. 34),
        the sign of the turned half folded into sin."""
        frequencies, factor = self._rotary
        angles = torch.arange(capacity).float()[:, None] * frequencies
        cos, sin = angles.cos() * factor, angles.sin() * factor
        table = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return table[0][:, None].to(self.device, self.dtype), table[1][:, None].to(
            self.device, self.dtype
        )

    def _check_memory(self, capacity: int) -> None:
        row = self.config.cache_bytes_per_token(self.dtype)
        needed, available = row * capacity, available_memory(self.device)
        if needed > available:
            raise ModelError(
                f"the cache for {capacity} tokens needs {gigabytes(needed)}, and {self.device} has "
                f"{gigabytes(available)} left; set max_length to at most "
                f"{available // (2 * row)} tokens, or use a smaller model"
            )

    # -- the forward pass ------------------------------------------------------------------------

    def _forward(
        self, block: Block, tokens: Sequence[int], branches: Sequence[Branch] = ()
    ) -> Tensor:
        """Hidden states (rows, D) of a block and of the branches behind it; writes their keys and
        values to the cache."""
        padding = [tokens[-1]] * (block.rows - len(tokens))
        more = [token for branch in branches for token in branch.tokens]
        ids = torch.tensor([*tokens, *padding, *more], device=self.device)
        rows = self._branching_rows(block, branches) if branches else self._rows(block)
        hidden = F.embedding(ids, self._weights.embedding)
        for layer, cache in zip(self._weights.layers, self._caches, strict=True):
            hidden = self._layer(layer, cache, rows, hidden)
        return hidden

    def _rows(self, block: Block) -> _Rows:
        positions = torch.arange(block.start, block.start + block.rows, device=self.device)
        positions.clamp_(max=block.stop - 1)
        masks = tuple(self._mask(positions, span.keys, block) for span in block.spans)
        return _Rows(block, self._cos[positions], self._sin[positions], masks)

    def _branching_rows(self, block: Block, branches: Sequence[Branch]) -> _Rows:
        """The block's rows, which are not padded, and those of the branches, as one block."""
        standing = behind.positions(block.start, block.stop, branches)
        hidden = torch.from_numpy(behind.hidden(block.start, block.stop, branches))
        keys = block.start + len(standing)
        whole = Block(block.start, keys, len(standing), (Span(0, len(standing), keys),))
        positions = torch.tensor(standing, device=self.device)
        mask = self._as_mask(hidden.to(self.device))
        return _Rows(whole, self._cos[positions], self._sin[positions], (mask,))

    def _mask(self, positions: Tensor, keys: int, block: Block) -> Tensor | None:
        """What each row sees; None for a lone row that sees all, if no other row's bits must equal
        its own."""
        if block.rows == 1 and keys == block.stop and not self.shapes.is_canonical():
            return None
        return self._as_mask(torch.arange(keys, device=self.device) > positions[:, None])

    def _as_mask(self, hidden: Tensor) -> Tensor:
        """Minus infinity where a row must not look, 0 elsewhere, once for each head of a group."""
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        group = self.config.num_heads // self.config.num_kv_heads
        return mask.masked_fill_(hidden, float("-inf")).repeat(group, 1)

    def _layer(self, layer: Layer, cache: Cache, rows: _Rows, hidden: Tensor) -> Tensor:
        qkv = layer.qkv(layer.attention_norm(hidden))
        hidden = layer.output(self._attention(layer, cache, rows, qkv)).add_(hidden)
        return layer.down(swiglu(layer.gate_up(layer.mlp_norm(hidden)))).add_(hidden)

    def _attention(self, layer: Layer, cache: Cache, rows: _Rows, qkv: Tensor) -> Tensor:
        """Attention of all rows; (rows, heads x head_dim)."""
        heads, dim = self.config.num_heads, self.config.head_dim
        qkv = qkv.view(len(qkv), -1, dim)
        turned = heads + self.config.num_kv_heads
        qk, values = qkv[:, :turned], qkv[:, turned:]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, keys = qk[:, :heads], qk[:, heads:]
            qk = torch.cat((layer.query_norm(query), layer.key_norm(keys)), dim=1)
        qk = torch.addcmul(qk * rows.cos, qk.roll(dim // 2, -1), rows.sin).transpose(0, 1)
        start, stop = rows.block.start, rows.block.stop
        cache[0][0, :, start:stop] = qk[heads:, : stop - start]
        cache[1][0, :, start:stop] = values[: stop - start].transpose(0, 1)
        mixed = self._attend(qk[:heads], cache, rows)
        return mixed.transpose(0, 1).reshape(rows.block.rows, -1)

    def _attend(self, query: Tensor, cache: Cache, rows: _Rows) -> Tensor:
        """All rows over the keys of every span; of each result the span's own rows are kept."""
        parts = []
        for span, mask in zip(rows.block.spans, rows.masks, strict=True):
            keys, values = cache[0][:, :, : span.keys], cache[1][:, :, : span.keys]
            mixed = attention(query, keys, values, mask)
            stop = rows.block.rows if span is rows.block.spans[-1] else span.stop
            parts.append(mixed[:, span.start : stop])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of hidden states (n, D), computed in row counts of the answer."""
        parts = []
        for rows in torch.split(hidden, self.shapes.answer[-1]):
            padding = pad(len(rows), self.shapes.answer) - len(rows)
            padded = F.pad(rows, (0, 0, 0, padding)) if padding else rows
            parts.append(self._weights.vocabulary(self._weights.norm(padded))[: len(rows)])
        return parts[0] if len(parts) == 1 else torch.cat(parts)
