"""The memory that the kernels work in."""

from array import array
from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np
import torch

from doublespec.compiled.code import LANES
from doublespec.compiled.guesser import Guesser
from doublespec.models import branches as behind
from doublespec.models.base import Branch, Worth
from doublespec.models.devices import usable_cores
from doublespec.models.layers import rotary_table
from doublespec.models.native.attention import queries_at_a_time
from doublespec.models.native.layout import CHAIN, CLAIMED, CLAIMS_APART
from doublespec.models.native.tiles import scratch_size
from doublespec.models.sizes import DecoderConfig
from doublespec.noise import COLDEST, Heat, hashed_ids, seed_key
from doublespec.tokens import Tokens

_CPU = torch.device("cpu")
ROW_NUMBERS = ("ids", "positions", "slots", "text", "start", "stop", "chosen")  # see `layout.py`
_FEW_TOKENS = 64  # of a chain
_CHANGING = ("token", "position", "num_guess", "is_placed", "passes", "most", "size", "count")
_TOKEN, _POSITION, _NUM_GUESS, _IS_PLACED, _PASSES, _MOST, _SIZE, _COUNT = map(
    CHAIN.index, _CHANGING
)
_KEPT = ("num_ends", "num_edges", "heat", "hashed", "seed", "is_over")
_NUM_ENDS, _NUM_EDGES, _HEAT, _HASHED, _SEED, _IS_OVER = map(CHAIN.index, _KEPT)
_GUESSER, _GUESSING, _MOST_GUESS, _LATE = map(
    CHAIN.index, ("guesser", "guessing", "most_guess", "late")
)

_Kept = TypeVar("_Kept", "array[int]", "array[float]")


class Cache:
    """Keys and values of all layers for `capacity` tokens, a multiple of LANES, in float32."""

    def __init__(self, config: DecoderConfig, capacity: int) -> None:
        c = config
        self.capacity = capacity
        self.threads = usable_cores()  # that may work with it at once
        panels = (c.num_layers, c.num_kv_heads, capacity // LANES, c.head_dim, LANES)
        self.keys = torch.zeros(panels)
        self.values = torch.zeros(c.num_layers, c.num_kv_heads, capacity, c.head_dim)
        self.cos, self.sin = rotary_table(config.rotary, capacity)
        self.zeros = torch.zeros(max(capacity, c.head_dim))
        queries = queries_at_a_time(config)
        self.scores = torch.empty(self.threads, queries, capacity)
        self.states = torch.empty(self.threads, queries, c.head_dim)
        self.scratch = torch.empty(self.threads, scratch_size(config))
        self.claims = torch.zeros(len(CLAIMED), self.threads, CLAIMS_APART, dtype=torch.int64)

    def grown(self, config: DecoderConfig, capacity: int) -> "Cache":
        """A larger one with the same tokens."""
        new = Cache(config, capacity)
        new.keys[:, :, : self.keys.shape[2]] = self.keys
        new.values[:, :, : self.capacity] = self.values
        return new


class Rows:
    """What a pass over `count` rows, or fewer, is computed in; and what it is told of each."""

    def __init__(self, config: DecoderConfig, count: int) -> None:
        c = config
        self.count = count
        self.hidden = torch.empty(count, c.hidden_size)
        self.normed = torch.empty(count, c.hidden_size)
        self.qkv = torch.empty(count, c.query_size + 2 * c.kv_size)
        self.mixed = torch.empty(count, c.query_size)
        self.gated = torch.empty(count, 2 * c.intermediate_size)
        numbers = np.zeros((len(ROW_NUMBERS), count), dtype=np.int64)
        self.ids, self.positions, self.slots, self.text, self.start, self.stop, _ = numbers
        self.chosen = numbers[-1]

    def fill(self, start: int, tokens: Sequence[int], branches: Sequence[Branch]) -> int:
        """Rows for tokens at [start, ...) and for branches behind them (`branches.py`); their
        number."""
        if len(tokens) == 1 and not branches:  # two microseconds, not ten
            self.ids[0], self.text[0] = tokens[0], start + 1
            self.positions[0] = self.slots[0] = start
            self.start[0] = self.stop[0] = 0
            return 1
        stop, row = start + len(tokens), len(tokens)
        standing = range(start, stop) if not branches else behind.positions(start, stop, branches)
        count = len(standing)
        self.ids[:row] = tokens
        self.positions[:count] = standing
        self.slots[:count] = np.arange(start, start + count)
        self.text[:row] = self.slots[:row] + 1
        self.start[:row] = self.stop[:row] = 0
        for branch in branches:
            own = slice(row, row + len(branch.tokens))
            self.ids[own] = branch.tokens
            self.text[own] = branch.start
            self.start[own] = start + row
            self.stop[own] = self.slots[own] + 1
            row = own.stop
        return count


class ChainPlan:
    """What a chain is told (`layout.py`), and where it writes; one for all chains of a model, since
    to lay it out takes as long as a tenth of a small model's forward. What was told is remembered
    only once all of it was: an interrupt leaves no lie."""

    def __init__(self) -> None:
        self._told = array("q", [0] * len(CHAIN))
        self.place = self._told.buffer_info()[0]  # its address
        self._held: dict[str, array[int] | array[float]] = {}  # what its addresses stand for
        self._reach = self._hold("reach", array("f", [1.0, 0.0]))
        self._ends: Collection[int] | None = None
        self._worth: Worth | None = None
        self._heat: tuple[Heat, int] | None = None  # and of how many ids
        self._hashed = torch.empty(0)
        self._room = 0  # for so many tokens
        self._make_room(_FEW_TOKENS)

    def tell(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None,
        guess: Tokens = (),
        passes: int | None = None,
        guesser: Guesser | None = None,
    ) -> None:
        """Passes until `most` tokens are added, or so many of them, the first of which judges a
        guess, and the others what the `guesser` says; see `models/base.py`."""
        told = self._told
        if most > self._room:
            self._make_room(most)
        if ends is not self._ends:
            self._ends = None
            told[_NUM_ENDS] = len(self._hold("ends", array("q", ends)))
            self._ends = ends
        if worth is not self._worth:
            self._hold_worth(worth)
        self._reach[0], self._reach[1] = 1.0, worth.least
        if heat is None:
            told[_HEAT], self._heat = 0, None
        elif (heat, size) != self._heat:
            self._hold_heat(heat, size)
        if guess:
            self._hold("guess", array("q", guess))
        told[_TOKEN], told[_POSITION], told[_NUM_GUESS] = tokens[-1], len(tokens) - 1, len(guess)
        told[_MOST], told[_PASSES] = most, most if passes is None else passes
        told[_SIZE] = size
        told[_GUESSER], told[_GUESSING], told[_MOST_GUESS] = guesser or (0, 0, 0)
        told[_IS_PLACED] = told[_COUNT] = told[_IS_OVER] = 0

    def is_placed(self) -> None:
        """The rows of the first pass stand where they belong: more than there are tokens to add."""
        self._told[_IS_PLACED] = 1

    def watch(self, patience: float) -> int:
        """How many nanoseconds a layer of the first pass may take, if one over a row may take so
        many seconds (0.0: any number)."""
        self._told[_LATE] = round(patience * 1e9)
        return self._told[_LATE]

    def resume(self) -> None:
        """The last pass was stopped: the rest of it is one of its own, the last one."""
        self._told[_IS_PLACED], self._told[_PASSES], self._told[_IS_OVER] = 1, 1, 0

    def tokens(self) -> list[int]:
        """Those that were written, when it is over."""
        return self._tokens[: self._told[_COUNT]].tolist()

    def behind(self) -> list[float]:
        """And how far the second choice lay behind each."""
        return self._behind[: self._told[_COUNT]].tolist()

    def _make_room(self, most: int) -> None:
        self._room = 0
        self._tokens = self._hold("tokens", array("q", [0] * most))
        self._behind = self._hold("behind", array("f", [0.0] * most))
        self._room = most

    def _hold_worth(self, worth: Worth) -> None:
        self._worth = None
        self._told[_NUM_EDGES] = len(self._hold("edges", array("f", worth.edges)))
        self._hold("chances", array("f", worth.chances))
        self._worth = worth

    def _hold_heat(self, heat: Heat, size: int) -> None:
        self._heat = None
        self._hold("heat", array("f", [max(heat.temperature, COLDEST)]))
        self._told[_SEED] = seed_key(heat.seed)
        self._hashed = hashed_ids(-(-size // LANES) * LANES, _CPU)
        self._told[_HASHED] = self._hashed.data_ptr()
        self._heat = heat, size

    def _hold(self, name: str, numbers: _Kept) -> _Kept:
        self._held[name] = numbers
        self._told[CHAIN.index(name)] = numbers.buffer_info()[0]
        return numbers
