"""The memory that the kernels work in."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch

from doublespec.compiled.code import LANES
from doublespec.models import branches as behind
from doublespec.models.base import Branch, Chain, Worth
from doublespec.models.devices import usable_cores
from doublespec.models.layers import rotary_table
from doublespec.models.native.attention import queries_at_a_time
from doublespec.models.native.layout import CHAIN, in_order
from doublespec.models.sizes import DecoderConfig
from doublespec.noise import COLDEST, Heat, hashed_ids, position_keys
from doublespec.tokens import Tokens

_CPU = torch.device("cpu")
ROW_NUMBERS = ("ids", "positions", "slots", "text", "start", "stop", "chosen")  # see `layout.py`


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
    """What a chain is told (`layout.py`), and where it writes."""

    def __init__(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None,
    ) -> None:
        self._tokens = np.zeros(most, dtype=np.int64)
        self._behind = np.zeros(most, dtype=np.float32)
        self._held: dict[str, npt.NDArray[np.generic]] = {
            "ends": np.array([*ends], dtype=np.int64),
            "edges": np.array(worth.edges, dtype=np.float32),
            "chances": np.array(worth.chances, dtype=np.float32),
            "reach": np.array([1.0, worth.least], dtype=np.float32),
        }
        told = dict.fromkeys(("heat", "hashed", "keys"), 0)
        if heat is not None:
            keys = position_keys(heat.seed, range(len(tokens), len(tokens) + most))
            self._held["keys"] = np.array(keys, dtype=np.int32)
            self._held["heat"] = np.array([max(heat.temperature, COLDEST)], dtype=np.float32)
            self._held["hashed"] = hashed_ids(-(-size // LANES) * LANES, _CPU).numpy()
        told |= {"token": tokens[-1], "position": len(tokens) - 1, "most": most, "size": size}
        told |= {"num_ends": len(ends), "num_edges": len(worth.edges), "count": 0, "is_over": 0}
        told |= {"tokens": self._tokens.ctypes.data, "behind": self._behind.ctypes.data}
        told |= {name: held.ctypes.data for name, held in self._held.items()}
        self._told = in_order(CHAIN, told)
        self.place: int = self._told.ctypes.data

    def chain(self) -> Chain:
        """What was written, when it is over."""
        count = int(self._told[CHAIN.index("count")])
        return Chain(self._tokens[:count].tolist(), self._behind[:count].tolist())
