"""A decoder on kernels of our own, for a GPU.

No row's bits depend on what is computed beside it (`kernels.py`), so a text is computed in blocks
of any shape, and padding changes nothing. Blocks are padded to few row counts, for each of which
the step is recorded and replayed (`graphs.py`): what it reads and writes has a fixed place.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from doublespec.models import branches as behind
from doublespec.models.base import Branch, Chain, Worth
from doublespec.models.gpu import kernels
from doublespec.models.gpu.products import (
    MOST_ROWS,
    OUTPUTS,
    Product,
    choose_parts,
    launch,
    make_product,
)
from doublespec.models.graphs import Capture, Recording, try_to_record, warn_of_no_graphs
from doublespec.models.layers import Layer, Make, Progress, Weights, read_weights
from doublespec.models.memory import GPU_CAPACITY, check_cache
from doublespec.models.quantize import rounded_to_fp8, rounded_to_int8
from doublespec.models.shapes import ANSWER_COUNTS
from doublespec.models.sizes import DecoderConfig, Rotary
from doublespec.models.weights import Source
from doublespec.noise import Heat, perturbed
from doublespec.tokens import Tokens, common_prefix
from doublespec.transfer import upload

CHUNK = 256  # keys whose attention is one sum: another number gives other bits
_QUERIES = 64  # that a program of attention computes at a time
_KEYS = 64
_CHUNKS_AT_A_TIME = 32
_FEWEST_CHUNKS = 4  # that a step is recorded for
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # in which blocks come
_LOGITS = ANSWER_COUNTS[-1]  # rows whose logits are computed at a time
_PARTS = 8192  # rows by chunks of attention, at most: far behind, blocks of a prompt are smaller
_FUSED = 6144  # gated numbers; fewer are computed in parts, gate and up one after the other
_EARLY_ROWS = 16  # over more, kernels that wait take what the one before them needs (docs/log.md)
_CHAINED, _MOST_CHAINED = 4, 256  # forwards of a chain, until it is looked at, and in all

_IDS, _POSITIONS, _SLOTS, _REACH, _FIRSTS = range(5)
_Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Rows:
    """What comes and goes in a step, for so many rows."""

    table: Tensor  # (5, rows) int32: ids, positions, slots, reach, firsts
    hidden: Tensor  # (rows, D) float32
    normed: Tensor  # (rows, D)
    parts: Tensor  # of products, float32
    query: Tensor  # (rows, heads x head_dim)
    attended: Tensor  # (rows, heads x head_dim)
    gated: Tensor  # (rows, intermediate)


@dataclass(frozen=True, slots=True)
class _Room:
    """The cache of all layers, and what is laid out for as many tokens as it holds."""

    capacity: int
    keys: Tensor  # (layers, kv heads, capacity, head_dim)
    values: Tensor
    cosines: Tensor  # (capacity, head_dim / 2) float32
    sines: Tensor
    mixed: Tensor  # attention in parts, float32
    peaks: Tensor

    @property
    def chunks(self) -> int:
        return self.capacity // CHUNK


def _can_launch_early(device: torch.device) -> bool:
    """Whether it has programmatic dependent launch."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


GpuWeights = Weights[Product, Tensor]


class GpuDecoder:
    """A language model under the full-sequence contract (`models/base.py`)."""

    is_native = True
    can_branch = True
    can_chain = True
    row_counts = ANSWER_COUNTS  # as good as any: blocks of an answer come as they are

    def __init__(
        self,
        config: DecoderConfig,
        weights: GpuWeights,
        max_length: int,
        capture: Capture | None = None,
    ) -> None:
        """With `capture`, steps are recorded and replayed."""
        self.config = config
        self.max_length = max_length
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        self._weights = weights
        self._capture = capture
        self._is_early = self.device.type == "cuda" and _can_launch_early(self.device)
        size = config.intermediate_size
        paired = weights.layers[0].gate_up.is_paired
        self._is_fused = size >= _FUSED and size % OUTPUTS == 0 and not paired
        self._cached: list[int] = []
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._rows = self._lay_out_rows(_ROWS[-1])
        pinned = self.device.type == "cuda"
        self._host = torch.zeros((5, _ROWS[-1]), dtype=torch.int32, pin_memory=pinned)
        self._numbers: _Numbers = self._host.numpy()
        self._sent = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._chosen = torch.zeros((2, _MOST_CHAINED), device=self.device)
        self._count = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._logits_row = torch.zeros(config.vocab_size, device=self.device)
        self._room = self._lay_out(0, self._zeros(0), self._zeros(0))
        self._reserve(min(GPU_CAPACITY, max_length))

    @classmethod
    def load(
        cls,
        source: Source,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_length: int | None = None,
        reserve: int | None = None,
        quantize: str | None = None,
        progress: Progress | None = None,
        capture: Capture | None = None,
    ) -> Self:
        """Reads the weights, those of its layers rounded with `quantize`; its cache has room for
        `reserve` tokens from the beginning. Raises ModelError."""
        config = source.config
        assert config is not None  # of others, `load.py` makes no decoder
        weights = read_weights(source, config, device, dtype, _make(quantize), progress)
        if config.tied and not source.has("lm_head.weight"):  # one table serves as both
            weights = replace(weights, embedding=weights.embedding[:0].clone())
        length = min(config.max_length, max_length or config.max_length)
        decoder = cls(config, weights, length, capture)
        decoder._reserve(min(reserve or 0, length))
        return decoder

    def fresh(self) -> Self:
        """The same weights with an empty cache."""
        return type(self)(self.config, self._weights, self.max_length, self._capture)

    def fastest(self) -> Self:
        """The baseline of benchmarks: no shape is faster than another."""
        model = self.fresh()
        model.get_ready()
        return model

    def get_ready(self) -> None:
        """Runs the steps of answers, over nothing but padding: kernels are compiled, and what is
        recorded is recorded, before the first answer has to wait for it."""
        with self._at_work():
            for rows in _ROWS[: _ROWS.index(_LOGITS) + 1]:
                for chunks in self._ready_chunks():
                    self._fill(0, (), (), rows)
                    self._run_step(rows, chunks)
                self._head(0, rows, ())

    def _ready_chunks(self) -> list[int]:
        """The numbers of chunks that texts are computed over until a new cache is full."""
        return sorted({self._chunks(stop) for stop in range(CHUNK, GPU_CAPACITY + 1, CHUNK)})

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def records(self) -> bool:
        """Whether its steps are recorded and replayed."""
        return self._capture is not None

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        with self._at_work():
            return self._logits(tokens, last, ())

    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        """See `models/base.py`."""
        assert all(b.start <= len(tokens) and b.stop <= self.max_length for b in branches)
        with self._at_work():
            rows = self._logits(tokens, last, branches)
        return rows[:last], rows[last:]

    def chain(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None = None,
    ) -> Chain:
        """See `models/base.py`. The device goes on by itself for a few tokens at a time."""
        tokens, most = list(tokens), min(most, _MOST_CHAINED)
        assert most > 0 and len(tokens) + most <= self.max_length + 1
        assert 0 < size <= self.vocab_size
        chain, reach = Chain([], []), 1.0
        with self._at_work():
            sampled = None if heat is None else self._sampled(tokens, most, size, heat)
            for token, margin in sampled or self._likeliest(tokens, most, size):
                chain.tokens.append(token)
                chain.behind.append(margin)
                reach *= worth.chances[bisect_right(worth.edges, margin)]
                if token in ends or reach <= worth.least:
                    break
        self._cached = [*tokens, *chain.tokens[:-1]]
        return chain

    def _likeliest(self, tokens: list[int], most: int, size: int) -> Iterator[tuple[int, float]]:
        """Tokens with which the text goes on, and how far the second ones lie behind them."""
        if self.unread(tokens, 0) > 1:
            self._logits(tokens[:-1], 1, ())
        self._reserve(len(tokens) + most)
        self._cached = tokens[:-1]  # an interrupt leaves no lie
        first = len(tokens) - 1
        self._fill(first, tokens[-1:], (), 1)
        self._count.zero_()
        bucket = 1, self._chunks(first + most), size
        for done in range(0, most, _CHAINED):
            stop = min(done + _CHAINED, most)
            for _ in range(done, stop):
                self._run(bucket, lambda: self._chain_step(*bucket))
            found, margins = self._chosen[:, done:stop].tolist()
            yield from zip(map(int, found), margins, strict=True)

    def _sampled(
        self, tokens: list[int], most: int, size: int, heat: Heat
    ) -> Iterator[tuple[int, float]]:
        """The same, sampled: the device is asked for one token at a time."""
        text = tokens.copy()
        for _ in range(most):
            logits = self._logits(text, 1, ())[:, :size]
            scores = perturbed(logits, heat.temperature, heat.seed, [len(text)])
            values, ids = scores[0].topk(min(2, size))
            token, *_ = ids.tolist()
            best, *second = values.tolist()
            text.append(token)
            yield token, best - second[0] if second else math.inf

    def unread(self, tokens: Tokens, prompt_length: int) -> int:
        """How many positions of a text are not in the cache."""
        return len(tokens) - common_prefix(self._cached, tokens)

    def _logits(self, tokens: Tokens, last: int, branches: Sequence[Branch]) -> Tensor:
        """Logits of the last positions, then of each branch."""
        tokens = list(tokens)
        assert 0 < last <= len(tokens) <= self.max_length
        wanted = len(tokens) - last
        start = min(common_prefix(self._cached, tokens), wanted)
        more = sum(len(branch.tokens) for branch in branches)
        self._reserve(len(tokens) + more)
        self._cached = tokens[:start]  # the rest is being overwritten: an interrupt leaves no lie
        parts = []
        while start < len(tokens):
            most = self._most_rows(start)
            stop = min(start + most, len(tokens))
            if stop == len(tokens) and stop - start + more > most:
                assert more < most
                stop -= stop - start > 1  # the last row comes with the branches
            ahead = branches if stop == len(tokens) else ()
            self._forward(start, tokens[start:stop], ahead)
            if stop > wanted:
                parts += self._head(max(wanted - start, 0), stop - start, ahead)
            start = stop
        self._cached = tokens
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    # -- the forward pass ------------------------------------------------------------------------

    def _most_rows(self, start: int) -> int:
        """The rows of a block from there on: attention in parts has room for them."""
        chunks = self._chunks(start + _ROWS[-1])
        fitting = self._room.peaks.numel() // (2 * self.config.num_heads * chunks)
        return max(rows for rows in _ROWS if rows <= max(fitting, _LOGITS))

    def _forward(self, start: int, tokens: Sequence[int], branches: Sequence[Branch]) -> None:
        """Writes keys and values of rows to the cache, and leaves their normed states."""
        count = len(tokens) + sum(len(branch.tokens) for branch in branches)
        rows = next(rows for rows in _ROWS if rows >= count)
        self._fill(start, tokens, branches, rows)
        self._run_step(rows, self._chunks(start + count))

    def _run_step(self, rows: int, chunks: int) -> None:
        self._run((rows, chunks), lambda: self._step(rows, chunks))

    def _chunks(self, length: int) -> int:
        """Those of so many keys, or some more: each number of them is recorded for itself."""
        needed: int = triton.next_power_of_2(triton.cdiv(length, CHUNK))
        return min(max(needed, _FEWEST_CHUNKS), self._room.chunks)

    def _run(self, bucket: tuple[int, ...], step: Callable[[], Tensor]) -> None:
        """Runs a step and records it, or replays it: to record takes no longer than to run."""
        recording = self._recordings.get(bucket)
        if recording is not None:
            recording.replay()
            return
        step()
        if self._capture is None:
            return
        found = try_to_record(self._capture, step, is_warm=True)
        if isinstance(found, str):
            warn_of_no_graphs(found)
            self._capture = None
        else:
            self._recordings[bucket] = found

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Triton's kernels run on the current device, whatever they are handed."""
        with torch.inference_mode():
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):
                    yield
            else:
                yield

    def _chain_step(self, rows: int, chunks: int, size: int) -> Tensor:
        """A step of one row that makes its likeliest token the next row."""
        states = self._step(rows, chunks)
        self._weights.vocabulary.into(states, self._logits_row, 1, early=False)
        kernels.follow[(1,)](
            self._logits_row,
            self._rows.table,
            self._rows.table.stride(0),
            self._chosen,
            _MOST_CHAINED,
            self._count,
            size,
            BLOCK=4096,
            num_warps=8,
        )
        return states

    def _fill(
        self, start: int, tokens: Sequence[int], branches: Sequence[Branch], rows: int
    ) -> None:
        """Sends what the rows of a step are, padding included."""
        if self._sent is not None:
            self._sent.synchronize()  # the device has read what was sent before
        numbers, count = self._numbers[:, :rows], len(tokens)
        numbers[_IDS, :count] = tokens
        slots = np.arange(start, start + rows, dtype=np.int32)
        numbers[_POSITIONS], numbers[_SLOTS], numbers[_FIRSTS] = slots, slots, slots
        numbers[_REACH] = slots + 1
        for branch in branches:
            stop = count + len(branch.tokens)
            numbers[_IDS, count:stop] = branch.tokens
            numbers[_POSITIONS, count:stop] = range(branch.start, branch.stop)
            numbers[_REACH, count:stop] = branch.start
            numbers[_FIRSTS, count:stop] = start + count
            count = stop
        numbers[:, count:] = 0
        numbers[_SLOTS, count:] = -1
        ids = numbers[_IDS]
        assert ids.min() >= 0 and ids.max() < self.vocab_size  # kernels read where they are told
        self._rows.table.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def _step(self, rows: int, chunks: int) -> Tensor:
        """The normed states of what the table holds."""
        own, weights = self._rows, self._weights
        early = self._is_early and rows <= _EARLY_ROWS
        self._embed(rows, early=early)
        following = [(layer.attention_norm) for layer in weights.layers[1:]] + [weights.norm]
        for index, (layer, norm) in enumerate(zip(weights.layers, following, strict=True)):
            layer.qkv.into(own.normed, own.parts, rows, early=early)
            self._attention(index, layer, rows, chunks, early=early)
            self._add(layer.output, own.attended, layer.mlp_norm, rows, early=early)
            self._gate(layer.gate_up, rows, early=early)
            self._add(layer.down, own.gated, norm, rows, early=early)
        return own.normed

    def _embed(self, rows: int, *, early: bool) -> None:
        own, weights, size = self._rows, self._weights, self.config.hidden_size
        is_shared = weights.embedding.numel() == 0
        table = weights.vocabulary.weight if is_shared else weights.embedding
        kernels.embed[(rows,)](
            own.table[_IDS],
            table,
            weights.layers[0].attention_norm,
            own.hidden,
            own.normed,
            size,
            table.shape[1],
            self.config.norm_eps,
            TILED=is_shared,
            EARLY=early,
            **self._of_norms(early),
        )

    def _add(
        self, product: Product, states: Tensor, norm: Tensor, rows: int, *, early: bool
    ) -> None:
        """Adds a product to the hidden states, and norms them."""
        own, size = self._rows, self.config.hidden_size
        product.into(states, own.parts, rows, early=early)
        kernels.add_norm[(rows,)](
            own.parts,
            norm,
            own.hidden,
            own.normed,
            size,
            rows * size,
            self.config.norm_eps,
            SPLIT=product.parts,
            EARLY=early,
            **self._of_norms(early),
        )

    def _of_norms(self, early: bool) -> dict[str, object]:
        """How kernels are launched whose programs see whole rows."""
        block = triton.next_power_of_2(self.config.hidden_size)
        return {"BLOCK": block, "num_warps": 16 if block >= 4096 else 4, **launch(early)}

    def _attention(
        self, index: int, layer: Layer[Product, Tensor], rows: int, chunks: int, *, early: bool
    ) -> None:
        """From the parts of query, key and value to what was attended to."""
        c, own, room = self.config, self._rows, self._room
        keys, values = room.keys[index], room.values[index]
        group = triton.next_power_of_2(c.num_heads // c.num_kv_heads)
        width = max(16, triton.next_power_of_2(c.head_dim))
        how = launch(early)
        is_normed = layer.query_norm is not None
        kernels.turn[(rows, c.num_heads + 2 * c.num_kv_heads)](
            own.parts,
            layer.query_norm if is_normed else own.parts,
            layer.key_norm if is_normed else own.parts,
            room.cosines,
            room.sines,
            own.table[_POSITIONS],
            own.table[_SLOTS],
            own.query,
            keys,
            values,
            room.capacity,
            rows * layer.qkv.outputs,
            c.norm_eps,
            SPLIT=layer.qkv.parts,
            HEADS=c.num_heads,
            KV_HEADS=c.num_kv_heads,
            DIM=c.head_dim,
            HALF=triton.next_power_of_2(c.head_dim // 2),
            NORMED=is_normed,
            EARLY=early,
            num_warps=1,
            **how,
        )
        tiles = triton.cdiv(rows * group, _QUERIES)
        kernels.attend[(chunks, c.num_kv_heads, tiles)](
            own.query,
            keys,
            values,
            own.table[_SLOTS],
            own.table[_REACH],
            own.table[_FIRSTS],
            room.mixed,
            room.peaks,
            rows,
            room.capacity,
            c.head_dim**-0.5 * kernels.LOG2_E.value,
            chunks,
            HEADS=c.num_heads,
            KV_HEADS=c.num_kv_heads,
            GROUP=group,
            DIM=c.head_dim,
            WIDTH=width,
            CHUNK=CHUNK,
            BLOCK_Q=_QUERIES,
            BLOCK_KEYS=_KEYS,
            STAGES=2,
            EARLY=early,
            num_warps=4,
            **how,
        )
        kernels.combine[(rows, c.num_heads)](
            room.mixed,
            room.peaks,
            own.table[_SLOTS],
            own.table[_REACH],
            own.attended,
            chunks,
            CHUNK=CHUNK,
            HEADS=c.num_heads,
            DIM=c.head_dim,
            WIDTH=width,
            BLOCK=_CHUNKS_AT_A_TIME,
            EARLY=early,
            num_warps=4,
            **how,
        )

    def _gate(self, product: Product, rows: int, *, early: bool) -> None:
        own = self._rows
        if self._is_fused:
            product.gated_into(own.normed, own.gated, rows, early=early)
            return
        product.into(own.normed, own.parts, rows, early=early)
        size = product.outputs // 2
        kernels.gated[(rows, triton.cdiv(size, 512))](
            own.parts,
            own.gated,
            size,
            rows * 2 * size,
            SPLIT=product.parts,
            BLOCK=512,
            EARLY=early,
            num_warps=4,
            **launch(early),
        )

    def _head(self, first: int, stop: int, branches: Sequence[Branch]) -> list[Tensor]:
        """Logits of rows [first, stop) and of the last one of each branch."""
        states, product = self._rows.normed, self._weights.vocabulary
        chosen = states[first:stop]
        if branches:
            order = [*range(first, stop), *behind.final_rows(stop, branches)]
            chosen = states.index_select(0, upload(torch.tensor(order), self.device))
        parts = []
        for rows in torch.split(chosen, _LOGITS):
            count = len(rows)
            out = torch.empty((count, product.outputs), dtype=torch.float32, device=self.device)
            product.into(rows, out, count, early=False)
            parts.append(out)
        return parts

    # -- memory ----------------------------------------------------------------------------------

    def _reserve(self, length: int) -> None:
        """Makes room for `length` tokens. Capacity doubles, so that growing is rare; what was never
        written is zero, so that masked keys add nothing."""
        old = self._room
        if length <= old.capacity:
            return
        wanted = max(length, min(2 * old.capacity, self.max_length))
        capacity = -(-wanted // CHUNK) * CHUNK
        check_cache(self.config, self.dtype, self.device, capacity)
        self._recordings.clear()  # they read and write the old one
        grown = self._grown(old.keys, capacity), self._grown(old.values, capacity)
        self._room = self._lay_out(capacity, *grown)

    def _lay_out(self, capacity: int, keys: Tensor, values: Tensor) -> _Room:
        c, device = self.config, self.device
        cosines, sines = _rotary_table(c.rotary, capacity)
        row = c.num_heads * (capacity // CHUNK)
        least, most = _LOGITS * row, _ROWS[-1] * row
        count = max(least, min(most, _PARTS * c.num_heads))
        mixed = torch.empty(count * c.head_dim, dtype=torch.float32, device=device)
        peaks = torch.empty(count * 2, dtype=torch.float32, device=device)
        return _Room(capacity, keys, values, cosines.to(device), sines.to(device), mixed, peaks)

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        new = self._zeros(capacity)
        new[:, :, : old.shape[2]] = old
        return new

    def _zeros(self, capacity: int) -> Tensor:
        c = self.config
        shape = (c.num_layers, c.num_kv_heads, capacity, c.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _lay_out_rows(self, rows: int) -> _Rows:
        """Zeros, and some more rows: a product reads a few behind those that count."""
        c, device, dtype = self.config, self.device, self.dtype
        padded = max(rows, MOST_ROWS)
        layers = self._weights.layers
        products = [p for layer in layers[:1] for p in (layer.qkv, layer.output, layer.down)]
        if not self._is_fused:
            products += [layer.gate_up for layer in layers[:1]]

        def zeros(size: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros((padded, size), dtype=of, device=device)

        parts = max(product.parts * padded * product.outputs for product in products)
        return _Rows(
            torch.zeros((5, padded), dtype=torch.int32, device=device),
            zeros(c.hidden_size, torch.float32),
            zeros(c.hidden_size),
            torch.zeros(parts, dtype=torch.float32, device=device),
            zeros(c.query_size),
            zeros(c.query_size),
            zeros(c.intermediate_size),
        )


def _make(quantize: str | None) -> Make[Product, Tensor]:
    def product(weight: Tensor, bias: Tensor | None) -> Product:
        outputs, inputs = weight.shape
        parts, scale = choose_parts(outputs, inputs, quantize), None
        if quantize is not None:
            rounding = rounded_to_fp8 if quantize == "fp8" else rounded_to_int8
            weight, scale = rounding(weight)
        return make_product(weight, scale, bias, parts)

    def vocabulary(read: Callable[[], Tensor]) -> Product:
        return make_product(read())

    return Make(product, vocabulary, lambda weight, _: weight)


def _rotary_table(rotary: Rotary, capacity: int) -> tuple[Tensor, Tensor]:
    """cos and sin (capacity, head_dim / 2) of rotary embeddings (arXiv 2104.09864, eq. 34)."""
    angles = torch.arange(capacity).float()[:, None] * torch.tensor(rotary.frequencies)
    return angles.cos() * rotary.factor, angles.sin() * rotary.factor
