"""What a model will take, by its shape, before anything of it is read."""

from dataclasses import dataclass, replace
from math import prod

import torch

from doublespec.errors import ModelError
from doublespec.models.devices import all_devices, available_memory, gigabytes
from doublespec.models.graphs import MOST_GRAPHS
from doublespec.models.layers import is_packed
from doublespec.models.shapes import ANSWER_COUNTS, KEY_STEP, PROMPT_COUNTS
from doublespec.models.sizes import DecoderConfig
from doublespec.models.weights import Source

FIRST_CAPACITY = 4 * KEY_STEP  # tokens that a cache has room for at first,
GPU_CAPACITY = 2 * FIRST_CAPACITY  # and with our kernels for a GPU: when it grows, all that was
# recorded is recorded anew

# An allowance, not measured: what a recorded step keeps for each layer (a dozen kernels with their
# arguments), and the working memory of the product library while it records.
_GRAPH_BYTES = 256 << 10
_LIBRARY_BYTES = 64 << 20
_SUMS = 1 << 15  # of a row, at most, where products are divided into parts
_PARTS = 8192  # rows by chunks of keys whose attention is held in parts at a time, at most


@dataclass(frozen=True, slots=True)
class Plan:
    """How a decoder would be loaded."""

    config: DecoderConfig
    device: torch.device
    dtype: torch.dtype
    quantize: str | None
    reserve: int | None
    graphs: bool = False
    native: bool = False  # on kernels of our own, which compute in float32

    @property
    def computing(self) -> torch.dtype:
        """In which its cache is held, and what comes and goes."""
        return torch.float32 if self.native and self.device.type == "cpu" else self.dtype

    @property
    def cache_row(self) -> int:
        """Bytes of the cache for each token."""
        return self.config.cache_bytes_per_token(self.computing)

    @property
    def cache_tokens(self) -> int:
        """What the cache must hold: as much as was asked for, or what it begins with."""
        on_gpu = self.native and self.device.type == "cuda"
        first = GPU_CAPACITY if on_gpu else FIRST_CAPACITY
        wanted = min(self.reserve or first, self.config.max_length)
        return -(-wanted // KEY_STEP) * KEY_STEP

    @property
    def weights(self) -> int:
        """Bytes of weights. A product that is laid out anew keeps a table of its own, also where
        the embedding is the same."""
        c, size = self.config, self.dtype.itemsize
        in_layers = c.num_layer_weights()
        copied = c.tied and not self.native and is_packed(self.device, self.dtype)
        others = c.num_parameters() - in_layers + copied * c.vocab_size * c.hidden_size
        return in_layers * (size if self.quantize is None else 1) + others * size

    @property
    def cache(self) -> int:
        return self.cache_tokens * self.cache_row

    @property
    def working(self) -> int:
        """Bytes that come and go: the largest product twice, as it is read and when the kernels are
        tested; or a block of the prompt with its logits."""
        c, size = self.config, self.dtype.itemsize
        products = [*c.layer_sizes(), (c.vocab_size, c.hidden_size)]
        largest = max(map(prod, products))
        if self.native and self.device.type == "cuda":
            # Weights are read before there is a cache.
            return max(2 * largest * size - self.cache, self._for_gpu_kernels)
        logits = ANSWER_COUNTS[-1] * c.vocab_size * (size + 4)  # chosen from in float32
        rows = PROMPT_COUNTS[-1] * self._row * self.computing.itemsize
        return max(2 * largest * size, rows + logits)

    @property
    def recorded(self) -> int:
        """Bytes of recorded steps, which share the memory of the largest; layers that are widened
        before each product are widened in it, too."""
        if not self.graphs or self.device.type != "cuda":
            return 0
        c, size, rows = self.config, self.dtype.itemsize, ANSWER_COUNTS[-1]
        if self.native:  # nothing but the launches: all else has its place (`gpu/decoder.py`)
            return MOST_GRAPHS * c.num_layers * _GRAPH_BYTES + _LIBRARY_BYTES
        mask = 2 * rows * c.num_heads // c.num_kv_heads * self.cache_tokens
        widened = max(map(prod, c.layer_sizes())) if self.quantize else 0
        kept = MOST_GRAPHS * c.num_layers * _GRAPH_BYTES + _LIBRARY_BYTES
        return kept + (rows * self._row + mask + widened) * size

    @property
    def _for_gpu_kernels(self) -> int:
        """Bytes of what our kernels for a GPU keep for a block of rows, and of its logits."""
        c, size, rows = self.config, self.dtype.itemsize, PROMPT_COUNTS[-1]
        states = 4 * c.hidden_size + size * (c.hidden_size + 2 * c.query_size + c.intermediate_size)
        sums = 4 * max(_SUMS, *(outputs for outputs, _ in c.layer_sizes()))
        chunks = self.cache_tokens // KEY_STEP
        attended = max(ANSWER_COUNTS[-1] * chunks, min(rows * chunks, _PARTS))
        logits = 4 * (ANSWER_COUNTS[-1] + 1) * c.vocab_size
        return rows * (states + sums) + 4 * attended * (c.query_size + 2 * c.num_heads) + logits

    @property
    def _row(self) -> int:
        """The values that come and go for each row."""
        c = self.config
        return 3 * c.intermediate_size + 2 * (c.query_size + 2 * c.kv_size) + 4 * c.hidden_size

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working + self.recorded


def check_memory(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
    reserve: int | None,
    beside: int = 0,
    *,
    graphs: bool = False,
    native: bool = False,
) -> None:
    """Raises ModelError with the numbers, and with what would make it fit, if a model with a cache
    for `reserve` tokens (None: for the first ones) does not, where a draft on the same device will
    take the bytes `beside` it."""
    available = available_memory(device) - beside
    needed = needed_bytes(source, device, dtype, quantize, reserve, graphs=graphs, native=native)
    if needed <= available:
        return
    if source.config is None:
        parts, remedies = f"the weights in {source.name} need {gigabytes(needed)}", []
    else:
        plan = Plan(source.config, device, dtype, quantize, reserve, graphs, native)
        recorded = f", CUDA graphs {gigabytes(plan.recorded)}" if plan.recorded else ""
        remedies = _remedies(plan, available)
        parts = (
            f"{source.name} needs {gigabytes(needed)} (weights {gigabytes(plan.weights)}, cache "
            f"for {plan.cache_tokens:,} tokens {gigabytes(plan.cache)}, working memory "
            f"{gigabytes(plan.working)}{recorded})"
        )
    room = f"{device} has {gigabytes(available)} left"
    room += f" beside the draft's {gigabytes(beside)}" if beside else ""
    advice = f"it would fit with {' or '.join(remedies)}" if remedies else "choose a smaller model"
    raise ModelError(f"{parts}, and {room}; {advice}")


def needed_bytes(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None = None,
    reserve: int | None = None,
    *,
    graphs: bool = False,
    native: bool = False,
) -> int:
    """All bytes that a model will take, as far as its shape tells; its weights, where it is not one
    of our decoder's."""
    if source.config is None:
        return source.num_parameters() * dtype.itemsize
    return Plan(source.config, device, dtype, quantize, reserve, graphs, native).total


def check_cache(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device, capacity: int
) -> None:
    """Raises ModelError if there is no room for a cache of so many tokens."""
    row = config.cache_bytes_per_token(dtype)
    needed, available = row * capacity, available_memory(device)
    if needed > available:
        raise ModelError(
            f"the cache for {capacity} tokens needs {gigabytes(needed)}, and {device} has "
            f"{gigabytes(available)} left; set max_length to at most "
            f"{available // (2 * row)} tokens, or use a smaller model"
        )


def _remedies(plan: Plan, available: int) -> list[str]:
    """The options, each by itself, with which it fits; both at once if none does alone."""
    found = []
    half = replace(plan, dtype=torch.bfloat16) if plan.dtype.itemsize > 2 else plan
    whole = replace(half, quantize=plan.quantize or "int8")
    changes = {"--dtype bfloat16": half, "--quantize int8": replace(plan, quantize=whole.quantize)}
    for option, changed in changes.items():
        if changed != plan and changed.total <= available:
            found.append(f"{option} ({gigabytes(changed.total)})")
    bare = replace(plan, graphs=False)
    if bare.total < plan.total and bare.total <= available:
        found.append(f"--no-graphs ({gigabytes(bare.total)})")
    tokens = _fitting_tokens(plan, available)
    if 0 < tokens < plan.cache_tokens:
        found.append(f"--max-length {tokens}")
    devices = _fitting_devices(plan, available)
    if devices:
        found.append(f"--target-device {','.join(map(str, devices))}")
    if not found and whole not in (plan, half) and whole.total <= available:
        found.append(f"--dtype bfloat16 and --quantize int8 ({gigabytes(whole.total)})")
    return found


def _fitting_tokens(plan: Plan, available: int) -> int:
    """The longest cache that fits; 0 if none does."""
    tokens = (available - (plan.total - plan.cache)) // plan.cache_row // KEY_STEP * KEY_STEP
    fits = tokens > 0 and replace(plan, reserve=tokens).total <= available
    return tokens if fits else 0


def _fitting_devices(plan: Plan, available: int) -> list[torch.device]:
    """The plan's GPU and as few others as it could be divided among (`parallel.py`)."""
    if plan.device.type != "cuda":
        return []
    own = torch.device("cuda", plan.device.index or 0)
    others = [device for device in all_devices() if device.type == "cuda" and device != own]
    for count in range(2, len(others) + 2):
        if plan.config.most_ranks() % count:
            continue
        part = replace(plan, config=plan.config.divided(count), graphs=False)
        roomy = [device for device in others if available_memory(device) >= part.total]
        if part.total <= available and len(roomy) >= count - 1:
            return [own, *roomy[: count - 1]]
    return []
