"""A decoder on kernels of our own, for the CPU.

No row's bits depend on what is computed beside it (`model.py`), so a text is computed in blocks of
any shape, and nothing is padded. Weights are held in float32 or bfloat16; all else is float32, so
that a checkpoint in bfloat16 gives the same bits with both.
"""

from array import array
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from doublespec.compiled.build import has_tiles
from doublespec.compiled.code import LANES
from doublespec.compiled.guesser import Guesser
from doublespec.models import branches as behind
from doublespec.models.base import Branch, Chain, Worth
from doublespec.models.layers import Layer, Make, Progress, Weights, read_weights
from doublespec.models.memory import FIRST_CAPACITY, check_cache
from doublespec.models.native.buffers import ROW_NUMBERS, Cache, ChainPlan, Rows
from doublespec.models.native.layout import LAYER, PASS, in_order
from doublespec.models.native.library import library_for
from doublespec.models.native.model import Storage
from doublespec.models.native.pages import in_huge_pages
from doublespec.models.native.tiles import DEPTH, tile_shapes
from doublespec.models.quantize import rounded_to_int8
from doublespec.models.shapes import ANSWER_COUNTS
from doublespec.models.sizes import DecoderConfig
from doublespec.models.threads import Threads
from doublespec.models.weights import Source
from doublespec.noise import Heat
from doublespec.tokens import Tokens, common_prefix

STORAGES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_BLOCK = 256  # rows that are computed at a time
_CALL_SECONDS = 0.05  # after which a forward is interrupted, as Ctrl-C waits for it

# What is told anew for each pass, and what it tells.
_TOLD = ("rows", "table", "layers", "num_layers", "late", "longest", "num_chosen", "logits")
_TELLS = ("done", "slow", "begun", "checked", "is_stopped")
_ROWS, _TABLE, _LAYERS, _NUM_LAYERS, _LATE, _LONGEST, _NUM_CHOSEN, _LOGITS = map(PASS.index, _TOLD)
_DONE, _SLOW = map(PASS.index, _TELLS[:2])

_CPU = torch.device("cpu")
_ALWAYS = Worth()  # worth going on with


@dataclass(frozen=True, slots=True)
class Packed:
    """A product's weights in panels; its bias and, of weights in int8, its scale in float32. All
    are padded to whole panels."""

    panels: Tensor  # (outputs / LANES, inputs, LANES)
    bias: Tensor
    scale: Tensor | None = None


def pack(weight: Tensor, bias: Tensor | None = None, *, tiled: bool = False) -> Packed:
    """Lays out a weight (outputs, inputs), possibly for a CPU's matrix unit."""
    return Packed(_tiled_panels(weight) if tiled else _panels(weight), _bias(weight, bias))


def pack_int8(weight: Tensor, bias: Tensor | None = None) -> Packed:
    """The same, rounded to 8 bits (`quantize.py`)."""
    rounded, scales = rounded_to_int8(weight)
    return Packed(_panels(rounded), _bias(weight, bias), _padded(scales.float()))


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return _padded(torch.zeros(len(weight)) if bias is None else bias.float())


def _panels(weight: Tensor) -> Tensor:
    rows, inputs = _padded(weight), weight.shape[1]
    if weight.dtype == torch.bfloat16:  # in pairs (`compiled/code.py`); whole rows are soon copied
        halves = rows.view(-1, 2, LANES // 2, inputs)
        rows = halves.transpose(1, 2).reshape(rows.shape)
    return in_huge_pages(rows.view(-1, LANES, inputs).transpose(1, 2))


def _tiled_panels(weight: Tensor) -> Tensor:
    inputs = weight.shape[1]
    pairs = _padded(weight).view(torch.int32).view(-1, LANES, inputs // 2).transpose(1, 2)
    return in_huge_pages(pairs).view(weight.dtype).view(-1, inputs, LANES)


def _padded(values: Tensor) -> Tensor:
    """With zeros up to whole panels."""
    padding = -len(values) % LANES
    return torch.cat((values, values.new_zeros(padding, *values.shape[1:]))) if padding else values


def _make(storage: Storage) -> Make[Packed, Tensor]:
    packed = partial(pack, tiled=storage.tables == "tiled")
    product = pack_int8 if storage.layers == "int8" else packed
    return Make(product, lambda read: packed(read()), lambda weight, _: weight.float())


def storage_of(config: DecoderConfig, dtype: torch.dtype, quantize: str | None) -> Storage:
    """How weights of that precision are held on this CPU."""
    tables = STORAGES[dtype]
    depths = config.hidden_size, config.query_size, config.intermediate_size
    if tables == "bfloat16" and has_tiles() and not any(depth % DEPTH for depth in depths):
        tables = "tiled"
    return Storage(tables, quantize or tables)


NativeWeights = Weights[Packed, Tensor]


class NativeDecoder:
    """A language model under the full-sequence contract (`models/base.py`)."""

    device = _CPU
    is_native = True
    records = False  # steps, to replay them
    can_branch = True
    can_chain = can_settle = True
    row_counts = ANSWER_COUNTS  # as good as any: blocks of an answer come as they are

    def __init__(
        self,
        config: DecoderConfig,
        weights: NativeWeights,
        dtype: torch.dtype,
        max_length: int,
        quantize: str | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.max_length = max_length
        self.threads: Threads | None = None  # None: as many as PyTorch was told to use
        self._weights = weights
        shared = _is_shared(weights)
        self._table = weights.vocabulary.panels if shared else weights.embedding
        self._width = len(weights.vocabulary.bias)
        self.call_seconds = _CALL_SECONDS
        self._num_threads: int | None = None
        self._quantize = quantize
        self._library = library_for(config, storage_of(config, dtype, quantize))
        self._plan = ChainPlan()
        room = _lay_out(weights, Cache(config, 0), Rows(config, 0))
        self._memory = _Memory([], room, torch.empty(1, self._width))
        self._reserve(min(FIRST_CAPACITY, max_length), ANSWER_COUNTS[-1])

    @classmethod
    def load(
        cls,
        source: Source,
        dtype: torch.dtype,
        *,
        max_length: int | None = None,
        quantize: str | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Reads the weights, those of its layers rounded with `quantize`. Raises ModelError."""
        config = source.config
        assert config is not None  # of others, `load.py` makes no decoder
        make = _make(storage_of(config, dtype, quantize))
        weights = read_weights(source, config, _CPU, dtype, make, progress)
        if config.tied and not source.has("lm_head.weight"):  # one table serves as both
            weights = replace(weights, embedding=weights.embedding[:0].clone())
        length = min(config.max_length, max_length or config.max_length)
        return cls(config, weights, dtype, length, quantize)

    def fresh(self) -> Self:
        """The same weights with an empty cache."""
        own = self._weights, self.dtype, self.max_length, self._quantize
        return type(self)(self.config, *own)

    def fastest(self) -> Self:
        """The baseline of benchmarks, with as many threads as PyTorch is told to use: no shape is
        faster than another. It works in the same memory, since where that lies makes forwards up
        to 4 % slower than elsewhere (docs/log.md)."""
        model = copy(self)
        model.threads = model._num_threads = None
        return model

    def choose_threads(self, threads: Threads) -> None:
        """From now on `threads` sets their number, block by block."""
        self.threads = threads

    def use_threads(self, number: int) -> None:
        """From now on as many; PyTorch's own number stays, which takes longer to change."""
        self._num_threads = number

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        return self._logits(tokens, last, ())

    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        """See `models/base.py`."""
        assert all(b.start <= len(tokens) and b.stop <= self.max_length for b in branches)
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
        """See `models/base.py`."""
        tokens = list(tokens)
        assert most > 0 and len(tokens) + most <= self.max_length + 1
        assert 0 < size <= self.vocab_size
        start = self._start(tokens)
        if len(tokens) - start > _BLOCK:
            self._logits(tokens[:-1], 1, ())
            start = len(tokens) - 1
        self._reserve(len(tokens) + most, len(tokens) - start)
        self._begin(1)  # as nearly all of its forwards are
        self._plan.tell(tokens, most, size, ends, worth, heat)
        self._go_on(tokens, start, (), 0)
        return Chain(self._plan.tokens(), self._plan.behind())

    def settle(
        self,
        tokens: Tokens,
        guess: Tokens,
        passes: int,
        ends: Collection[int],
        heat: Heat | None,
        guesser: Guesser | None = None,
        most: int | None = None,
    ) -> list[int]:
        """See `models/base.py`."""
        tokens, most = list(tokens), len(guess) + passes if most is None else most
        assert passes > 0 and len(tokens) + most <= self.max_length + 1
        start = self._start(tokens)
        rows = len(tokens) - start + len(guess)
        if rows > _BLOCK:
            return []
        guessed = 0 if guesser is None else guesser.most
        self._reserve(len(tokens) + most, max(rows, 1 + guessed))
        if self._begin(rows if guesser is None else 1):  # as most of its forwards are
            passes = 1
        size, more = self.vocab_size, (guess, passes, guesser)
        self._plan.tell(tokens, most, size, ends, _ALWAYS, heat, *more)
        return self._go_on(tokens, start, guess, max(guessed, len(guess)))

    def _start(self, tokens: list[int]) -> int:
        """Where the rows of a text begin that is not read, the last one included."""
        return min(common_prefix(self._memory.cached, tokens), len(tokens) - 1)

    def _begin(self, rows: int) -> bool:
        """Forwards over so many rows begin; whether only one of them may be made now."""
        if self.threads is None:
            return False
        self.threads.begin(rows)
        return self.threads.is_on_trial

    def _go_on(self, tokens: list[int], start: int, guess: Tokens, guessed: int) -> list[int]:
        """The tokens of a chain that was told of, after a text that was read up to `start`; so many
        are `guessed` at once, at most."""
        ids = [*tokens[start:], *guess]
        assert min(ids) >= 0 and max(ids) < self.vocab_size  # kernels read where they are told
        memory, plan, threads = self._memory, self._plan, self.threads
        memory.cached = tokens[:start]  # an interrupt leaves no lie
        room, told = memory.room, memory.room.of_pass
        if len(memory.logits) <= guessed:
            memory.logits = torch.empty(guessed + 1, self._width)
        if start < len(tokens) - 1:
            told[_ROWS], told[_NUM_CHOSEN] = room.rows.fill(start, ids, ()), len(guess) + 1
            room.rows.chosen[: len(guess) + 1] = range(len(ids) - len(guess) - 1, len(ids))
            plan.is_placed()
        told[_LOGITS] = memory.logits.data_ptr()
        told[_LATE] = plan.watch(0.0 if threads is None else threads.patience)
        told[_LONGEST] = max(1, round(self.call_seconds * 1e9))
        first, whole, new = 0, self.config.num_layers, []
        try:
            while first < whole:
                told[_TABLE] = 0 if first else self._table.data_ptr()
                told[_LAYERS], told[_NUM_LAYERS] = room.layers[first], whole - first
                self._library.chain(room.place, plan.place, self._most_threads())
                first += int(told[_DONE])
                if first < whole:
                    plan.resume()
                    if threads is not None:
                        threads.took(float(told[_SLOW]) * 1e-9)
                        told[_LATE] *= threads.patience > 0
            new = plan.tokens()
        finally:
            if threads is not None:
                threads.end(max(1, len(new) - len(guess)))
        memory.cached = [*tokens, *new][:-1]
        return new

    def unread(self, tokens: Tokens, prompt_length: int) -> int:
        """How many positions of a text are not in the cache."""
        return len(tokens) - common_prefix(self._memory.cached, tokens)

    def _logits(self, tokens: Tokens, last: int, branches: Sequence[Branch]) -> Tensor:
        """Logits of the last positions, then of each branch."""
        tokens = list(tokens)
        assert 0 < last <= len(tokens) <= self.max_length
        wanted = len(tokens) - last
        memory = self._memory
        start = min(common_prefix(memory.cached, tokens), wanted)
        more = sum(len(branch.tokens) for branch in branches)
        self._reserve(len(tokens) + more, min(len(tokens) - start, _BLOCK) + more)
        memory.cached = tokens[:start]  # the rest is being overwritten: an interrupt leaves no lie
        parts = []
        try:
            for first in range(start, len(tokens), _BLOCK):
                stop = min(first + _BLOCK, len(tokens))
                ahead = branches if stop == len(tokens) else ()
                chosen = range(max(wanted - first, 0), stop - first)
                parts += self._forward(first, tokens[first:stop], ahead, chosen)
        finally:
            if self.threads is not None:
                self.threads.end()
        memory.cached = tokens
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    # -- the forward pass ------------------------------------------------------------------------

    def _forward(
        self, start: int, tokens: Sequence[int], branches: Sequence[Branch], chosen: range
    ) -> list[Tensor]:
        """Writes keys and values of rows to the cache. Logits (n, V) of those of the tokens that
        are chosen and of the last row of each branch, if there are any."""
        room, told = self._memory.room, self._memory.room.of_pass
        ids = [*tokens, *(token for branch in branches for token in branch.tokens)]
        assert min(ids) >= 0 and max(ids) < self.vocab_size  # kernels read where they are told
        rows = room.rows.fill(start, tokens, branches)
        count = len(chosen) + len(branches)
        room.rows.chosen[: len(chosen)] = chosen
        if branches:
            room.rows.chosen[len(chosen) : count] = behind.final_rows(len(tokens), branches)
        logits = torch.empty(count, self._width)
        told[_LOGITS], told[_ROWS], told[_NUM_CHOSEN] = logits.data_ptr(), rows, count
        told[_LONGEST] = max(1, round(self.call_seconds * 1e9))
        if self.threads is not None:
            self.threads.begin(rows)
        first, whole = 0, self.config.num_layers
        while first < whole:
            told[_TABLE] = 0 if first else self._table.data_ptr()
            told[_LAYERS], told[_NUM_LAYERS] = room.layers[first], whole - first
            told[_LATE] = 0 if self.threads is None else round(self.threads.patience * 1e9)
            self._library.forward(room.place, self._most_threads())
            first += int(told[_DONE])
            if self.threads is not None and first < whole:
                self.threads.took(float(told[_SLOW]) * 1e-9)
        if not count:
            return []
        return [logits if self._width == self.vocab_size else logits[:, : self.vocab_size]]

    def _most_threads(self) -> int:
        """As many as `threads` says, or PyTorch was told to use."""
        wanted = torch.get_num_threads() if self._num_threads is None else self._num_threads
        return min(wanted, self._memory.room.cache.threads)

    # -- memory ----------------------------------------------------------------------------------

    def _reserve(self, length: int, rows: int) -> None:
        """Makes room for `length` tokens and passes over `rows` rows. Capacity doubles, so that
        growing is rare. Raises ModelError where there is no memory."""
        cache, working = self._memory.room.cache, self._memory.room.rows
        if length > cache.capacity:
            wanted = max(length, min(2 * cache.capacity, self.max_length))
            capacity = -(-wanted // LANES) * LANES
            check_cache(self.config, torch.float32, _CPU, capacity)
            cache = cache.grown(self.config, capacity)
        if rows > working.count:
            working = Rows(self.config, rows)
        if cache is not self._memory.room.cache or working is not self._memory.room.rows:
            self._memory.room = _lay_out(self._weights, cache, working)


@dataclass(slots=True)
class _Memory:
    """Which text has been read, where its keys and values are and all that passes work with, and
    where chains write logits that nobody else looks at."""

    cached: list[int]
    room: "_Room"
    logits: Tensor


@dataclass(frozen=True, slots=True)
class _Room:
    """Where all is that a pass works with: exchanged as one, so that an interrupt leaves the old
    room or the new one."""

    cache: Cache
    rows: Rows
    of_layers: "npt.NDArray[np.int64]"  # (layers, LAYER)
    layers: tuple[int, ...]  # the addresses of these
    of_pass: "array[int]"  # (PASS)
    place: int  # its address


def _lay_out(weights: NativeWeights, cache: Cache, rows: Rows) -> _Room:
    caches = zip(cache.keys, cache.values, strict=True)
    places = [_of_layer(layer, *own) for layer, own in zip(weights.layers, caches, strict=True)]
    of_layers = np.stack(places)
    first = of_layers.ctypes.data
    layers = tuple(range(first, first + of_layers.nbytes, of_layers.strides[0]))
    tensors = {name: getattr(rows, name) for name in ("hidden", "normed", "qkv", "mixed", "gated")}
    names = ("scores", "states", "scratch", "claims", "zeros", "cos", "sin")
    tensors |= {name: getattr(cache, name) for name in names}
    tensors |= {"vocabulary": weights.vocabulary.panels, "norm": weights.norm}
    tensors |= {"vocabulary_bias": weights.vocabulary.bias}
    told = {name: getattr(rows, name).ctypes.data for name in ROW_NUMBERS}
    places_of = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    numbers = {
        "shapes": tile_shapes().ctypes.data,
        "capacity": cache.capacity,
        "is_panels": _is_shared(weights),
    }
    later = dict.fromkeys((*_TOLD, *_TELLS), 0)
    of_pass = in_order(PASS, {**places_of, **told, **numbers, **later})
    return _Room(cache, rows, of_layers, layers, of_pass, of_pass.buffer_info()[0])


def _is_shared(weights: NativeWeights) -> bool:
    """Whether the vocabulary's panels hold the embeddings, too."""
    return weights.embedding.numel() == 0


def _of_layer(layer: Layer[Packed, Tensor], keys: Tensor, values: Tensor) -> "array[int]":
    """The addresses of a layer, 0 for norms and scales that it does not have."""
    norms = ("attention_norm", "query_norm", "key_norm", "mlp_norm")
    tensors: dict[str, Tensor | None] = {name: getattr(layer, name) for name in norms}
    tensors |= {"keys": keys, "values": values}
    for name in ("qkv", "output", "gate_up", "down"):
        packed: Packed = getattr(layer, name)
        tensors |= {name: packed.panels, f"{name}_bias": packed.bias}
        tensors |= {f"{name}_scale": packed.scale}
    found = {name: 0 if t is None else t.data_ptr() for name, t in tensors.items()}
    return in_order(LAYER, found)
