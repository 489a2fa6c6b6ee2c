"""What the indexes cost: microseconds a token and a lookup, bytes a token."""

import gc
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from doublespec.retrieval.base import TokenIndex
from doublespec.retrieval.chains import Chains
from doublespec.retrieval.datastore import Datastore

LOOKUPS = 2000
RUN = 16


@dataclass(frozen=True, slots=True)
class IndexCost:
    """Microseconds of one token more, of lookups by their spread, and of a text handed over the
    first time, per token."""

    context: int
    fill_us: float
    lookup_us_median: float
    lookup_us_mean: float
    lookup_us_p99: float


@dataclass(frozen=True, slots=True)
class StoreCost:
    tokens: int
    bytes_per_token: float
    open_ms: float
    lookup_us_median: float
    lookup_us_p99: float


def index_cost(index: TokenIndex, text: Sequence[int], lookups: int = LOOKUPS) -> IndexCost:
    """A text that grows by a token before every lookup; each lookup is all that a step pays: to
    find out what changed, to take in the new token, and to search."""
    tokens = list(text[: len(text) - lookups])
    begun = perf_counter()
    index.lookup(tokens, RUN)
    filled = perf_counter() - begun
    seconds = []
    for token in text[len(text) - lookups :]:
        tokens.append(token)
        begun = perf_counter()
        index.lookup(tokens, RUN)
        seconds.append(perf_counter() - begun)
    median, mean, p99 = _spread(seconds)
    return IndexCost(len(text), round(1e6 * filled / (len(text) - lookups), 2), median, mean, p99)


def append_us(text: Sequence[int]) -> float:
    """Microseconds to chain one more token of a text of this length."""
    chains = Chains()
    chains.extend(text[: len(text) // 2])
    rest = text[len(text) // 2 :]
    begun = perf_counter()
    for token in rest:
        chains.extend((token,))
    return round(1e6 * (perf_counter() - begun) / len(rest), 2)


def bytes_per_token(text: Sequence[int]) -> float:
    """Memory that the chains of a text take, as the interpreter counts it."""
    gc.collect()
    tracemalloc.start()
    chains = Chains()
    chains.extend(text)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(size / len(chains.tokens), 1)


def store_cost(store: Datastore, texts: Sequence[Sequence[int]]) -> StoreCost:
    """Lookups for the ends of texts, after each was looked up once (warm)."""
    begun = perf_counter()
    Datastore(store.path)
    opened = perf_counter() - begun
    for text in texts:
        store.lookup(text, RUN)
    seconds = []
    for text in texts:
        begun = perf_counter()
        store.lookup(text, RUN)
        seconds.append(perf_counter() - begun)
    median, _, p99 = _spread(seconds)
    tokens = store.header.num_tokens
    return StoreCost(
        tokens,
        round(store.path.stat().st_size / tokens, 2),
        round(1e3 * opened, 3),
        median,
        p99,
    )


def _spread(seconds: list[float]) -> tuple[float, float, float]:
    """Median, mean and 99th percentile in microseconds."""
    ordered = sorted(seconds)
    median, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return round(1e6 * median, 1), round(1e6 * sum(ordered) / len(ordered), 1), round(1e6 * p99, 1)
