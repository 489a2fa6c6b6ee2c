"""From weights to a language model: our decoder where it can, transformers' model else."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from doublespec.errors import ConfigError, ModelError
from doublespec.models.base import (
    ChainingModel,
    LanguageModel,
    LoadedModel,
    Worth,
    can_chain,
    can_settle,
)
from doublespec.models.choice import is_native
from doublespec.models.decoder import Decoder
from doublespec.models.devices import prepare_device, usable_cores
from doublespec.models.graphs import MEETINGS, Capture, find_capture
from doublespec.models.layers import Progress
from doublespec.models.memory import check_memory, needed_bytes
from doublespec.models.native.decoder import NativeDecoder
from doublespec.models.parallel import ParallelDecoder
from doublespec.models.quantize import find_products
from doublespec.models.shapes import key_lengths, pad
from doublespec.models.threads import Compute, Threads
from doublespec.models.weights import Checkpoint, Source
from doublespec.noise import prepare_noise

LocalDecoder = Decoder | NativeDecoder  # our own, undivided

_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 8  # of measuring forwards,
_COST_SECONDS = 0.3  # and for how long
_QUICK_SECONDS = 0.02  # forwards that take longer are measured once a round
_FEW_COUNTS = 4  # the smallest row counts, which are compared with each other
_COUNTS_SECONDS = 0.1  # for how long
_FEW_ROWS = 8  # a step's, rather than a prompt's
_FASTER = 0.9  # of the time of fewer rows, which makes these useless
_DRAFT_ROW_COST = 0.1  # likely
_SEVERAL, _PAIRS = 16, 15  # rows; forwards over so many and over one, where they are quick
_SHORT_SECONDS = 0.05  # of measuring one row, which may be in the middle of an answer
_AT_ONCE_SECONDS, _MOST_AT_ONCE = 0.033, 64  # of an answer: as long as a screen shows two pictures
_CHAIN_CONTEXT, _CHAINED = 16, 6  # tokens before a chain that is timed, and in it
_PROOF_KEYS = 6  # key lengths over which attention is compared between numbers of threads
_PROOF_TEXTS = ((1, 1), (40, 2), (200, 7), (60, 64))  # and texts: tokens of the prompt, and more
_PROOF_SECONDS = 0.1  # forwards longer than that are left out, but the first


def load_target(
    source: Source,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    *,
    threads: int,
    max_length: int | None = None,
    draft: Source | None = None,
    quantize: str | None = None,
    graphs: bool = True,
    kernels: str | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Reads a model whose bits depend on the text only, divided among ranks if there are several
    devices, with so many threads for each; a `draft` will be read onto the first device. One that
    is divided has no `graphs`, and PyTorch's `kernels`. Raises ModelError and ConfigError."""
    if len(devices) == 1:
        model = load_model(
            source,
            devices[0],
            dtype,
            canonical=True,
            max_length=max_length,
            reserve=max_length,
            draft=draft,
            quantize=quantize,
            graphs=graphs,
            kernels=kernels,
            progress=progress,
        )
        return without_slow_counts(model) if isinstance(model, Decoder) else model
    if kernels == "native":
        raise ConfigError("kernels native cannot be used on several devices; choose kernels torch")
    return ParallelDecoder.load(
        source,
        devices,
        dtype,
        threads=threads,
        max_length=max_length,
        quantize=quantize,
        progress=progress,
    )


def load_model(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    *,
    canonical: bool,
    max_length: int | None = None,
    reserve: int | None = None,
    draft: Source | None = None,
    quantize: str | None = None,
    graphs: bool = True,
    kernels: str | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Reads a model; `canonical` ones give bits that depend on the text only, `quantize` rounds its
    layers, with `graphs` its steps are recorded where the device can (`graphs.py`), `kernels` are
    native or PyTorch's (None: see `choice.py`). Raises ModelError and ConfigError: before
    anything is read where its weights and a cache for `reserve` tokens (None: for the first ones)
    do not fit, beside a `draft` if one will be."""
    native = is_native(kernels, source.config, device, dtype, quantize)
    beside = 0 if draft is None else _draft_bytes(draft, device, dtype, kernels, graphs=graphs)
    check_memory(source, device, dtype, quantize, reserve, beside, graphs=graphs, native=native)
    prepare_device(device)
    prepare_noise(device)
    if native and device.type == "cpu":
        return NativeDecoder.load(
            source, dtype, max_length=max_length, quantize=quantize, progress=progress
        )
    capture = find_capture(device) if graphs else None
    if native and _runs_on_gpu(source, device, dtype, quantize, kernels, capture, exact=canonical):
        from doublespec.models.gpu.decoder import GpuDecoder  # imports Triton

        decoder = GpuDecoder.load(
            source,
            device,
            dtype,
            max_length=max_length,
            reserve=reserve,
            quantize=quantize,
            progress=progress,
            capture=capture,
        )
        decoder.get_ready()
        return decoder
    if isinstance(source, Checkpoint) and source.config is None:
        if quantize is not None:
            raise ModelError(
                f"models of type {source.model_type!r} run through transformers, whose "
                f"weights {quantize} does not reach; leave out quantize"
            )
        from doublespec.models.hf import TransformersModel  # imports transformers

        return TransformersModel.load(
            source, device, dtype, canonical=canonical, max_length=max_length, progress=progress
        )
    return Decoder.load(
        source,
        device,
        dtype,
        canonical=canonical,
        max_length=max_length,
        reserve=None if device.type == "cpu" else reserve,  # to grow takes both caches at once
        quantize=quantize,
        progress=progress,
        capture=capture,
    )


def _runs_on_gpu(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None,
    kernels: str | None,
    capture: Capture | None,
    *,
    exact: bool,
) -> bool:
    """Whether our kernels for a GPU run there and, if that is asked, are exact; where they do not
    and were asked for, raises ModelError."""
    from doublespec.models.gpu.proof import find_fault  # imports Triton

    fault = find_fault(source, device, dtype, quantize, capture, exact=exact)
    if fault is None:
        return True
    text = f"kernels native cannot be used on {device}: {fault}"
    if kernels == "native":
        raise ModelError(f"{text}; choose kernels torch")
    warnings.warn(f"{text}; PyTorch's are used, which are slower", RuntimeWarning, stacklevel=3)
    return False


def _draft_bytes(
    draft: Source, device: torch.device, dtype: torch.dtype, kernels: str | None, *, graphs: bool
) -> int:
    """What a draft will take, as far as its shape tells."""
    native = is_native(draft_kernels(kernels), draft.config, device, dtype)
    return needed_bytes(draft, device, dtype, graphs=graphs, native=native)


def draft_kernels(kernels: str | None) -> str | None:
    """Those of a draft where these are asked for: native ones if it can have them."""
    return "torch" if kernels == "torch" else None


def kernels_of(model: LanguageModel) -> str:
    """By which kernels it computes: native ones or PyTorch's, as `kernels` is set."""
    return "native" if getattr(model, "is_native", False) else "torch"


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """What a forward costs: seconds over one row, and the share of them that each further row adds.
    The same with all cores, while no draft is at work: over one row it takes the share `alone` of
    `seconds` then (`row_cost_alone` None: further rows add as much as beside a draft), and of a
    model that goes on by itself `chained` seconds (None: it does not)."""

    seconds: float
    row_cost: float
    alone: float = 1.0
    row_cost_alone: float | None = None
    chained: float | None = None

    @property
    def of_plain(self) -> float:
        """A step of plain decoding."""
        return self.of_alone(1) if self.chained is None else self.chained

    @property
    def at_once(self) -> int:
        """How many steps of plain decoding may be computed before the first of them is seen: one
        where the model does not go on by itself."""
        return 1 if self.chained is None else _at_once(self.chained)

    def of(self, rows: int) -> float:
        return self.seconds * (1 + self.row_cost * (rows - 1))

    def of_alone(self, rows: int) -> float:
        return self.alone * self.seconds * (1 + self.row_share(beside=False) * (rows - 1))

    def row_share(self, *, beside: bool) -> float:
        """What each further row adds, as a share of a forward over one: beside a draft, or not."""
        alone = self.row_cost_alone
        return self.row_cost if beside or alone is None else alone


def _at_once(seconds: float) -> int:
    return max(1, min(_MOST_AT_ONCE, int(_AT_ONCE_SECONDS / seconds)))


def choose_threads(
    model: LanguageModel, usual: int, quantize: str | None, cost: ForwardCost
) -> ForwardCost:
    """Lets the model take all cores where that changes no bit and is faster (`threads.py`), and
    says what its forwards cost then. Only our own decoders can, undivided and on the CPU; others
    keep the usual number of threads."""
    every = usable_cores()
    if not isinstance(model, LocalDecoder) or model.device.type != "cpu" or usual >= every:
        return cost
    few_rows = max(_FEW_ROWS, model.row_counts[0])
    layers = model.config.num_layers
    if isinstance(model, NativeDecoder):  # no sum is divided among threads: nothing to prove
        use = model.use_threads
        threads = Threads(usual, every, (), cost.of, layers, set_threads=use, few_rows=few_rows)
    else:
        proof = _proof(model, quantize, cost)
        threads = Threads(usual, every, proof, cost.of, layers, few_rows=few_rows)
    threads.prove()
    model.choose_threads(threads)
    alone = undisturbed_seconds(model)  # it tries all cores first
    cost = replace(cost, alone=min(1.0, alone / cost.seconds))
    return cost if alone > _QUICK_SECONDS else replace(cost, row_cost_alone=_row_cost(model))


def share_cores(model: LanguageModel, usual: int) -> None:
    """Lets a draft that works in turns with a target take all cores where these are faster, if it
    runs on our kernels."""
    if not isinstance(model, NativeDecoder):
        return
    choose_threads(model, usual, None, ForwardCost(undisturbed_seconds(model), _DRAFT_ROW_COST))


def with_chain(model: LanguageModel, cost: ForwardCost) -> ForwardCost:
    """The cost with that of a step of plain decoding where the model goes on by itself."""
    if _at_once(cost.of_plain) == 1 or not (can_settle(model) and can_chain(model)):
        return cost
    return replace(cost, chained=chained_seconds(model))


def _proof(model: Decoder, quantize: str | None, cost: ForwardCost) -> Iterator[Compute]:
    """All kernels on data that cancel, which show any other order of summation, and some forwards
    with the model's own weights."""
    assert model.shapes.key_step is not None
    product = find_products(quantize, model.device)
    lengths = key_lengths(model.max_length, model.shapes.key_step)
    chosen = {*lengths[:: -(-len(lengths) // _PROOF_KEYS)], lengths[-1]}
    probe = model.kernels(product)
    yield from probe.computations(model.shapes, sorted(chosen))
    for number, (context, rows) in enumerate(_PROOF_TEXTS):
        is_short = context + rows <= model.max_length and cost.of(context) <= _PROOF_SECONDS
        if number == 0 or is_short:
            yield partial(_fresh_logits, model, context, rows)


def _fresh_logits(model: Decoder, context: int, rows: int) -> Tensor:
    text = [(i * i + i // 7) % model.vocab_size for i in range(context + rows)]
    return model.fresh().logits(text, rows + 1, context)


def without_slow_counts(model: Decoder) -> Decoder:
    """The model without those row counts over which a forward on the CPU takes longer than over a
    few rows more, as with some products of PyTorch (Qwen3-0.6B: 96 milliseconds for two rows, 71
    for three). All counts give the same bits, so what is measured here changes no token."""
    few = model.shapes.answer[:_FEW_COUNTS]
    if model.device.type != "cpu" or len(few) < 2:
        return model
    watch, begun, rounds = Stopwatch(model), perf_counter(), 0
    seconds = dict.fromkeys(few, math.inf)
    while rounds < _FEWEST_ROUNDS or (
        rounds < _MOST_ROUNDS and perf_counter() - begun < _COUNTS_SECONDS
    ):
        for rows in few:
            seconds[rows] = min(seconds[rows], watch.seconds(rows))
        rounds += 1
    slow = {n for n in few for more in few if more > n and seconds[more] < _FASTER * seconds[n]}
    if not slow:
        return model
    answer = tuple(rows for rows in model.shapes.answer if rows not in slow)
    lone = pad(model.shapes.lone, answer) if answer[0] == 1 else 1
    return model.with_shapes(replace(model.shapes, answer=answer, lone=lone))


def measure_cost(model: LanguageModel, rows: int = _SEVERAL) -> ForwardCost:
    """The cost of a forward here and now; never used where it could change a token. Forwards over
    one row and over several are measured in turns, so that a disturbance falls on both."""
    watch = Stopwatch(model)
    # The first forwards do more than those that follow; where steps are recorded, several do.
    first = MEETINGS if getattr(model, "records", False) else 1
    longest = max([watch.seconds(count) for _ in range(first) for count in (1, rows)][-2:])
    times = 4 if longest < _QUICK_SECONDS else 1
    few: list[float] = []
    many: list[float] = []
    begun = perf_counter()
    while len(few) < _FEWEST_ROUNDS * times or (
        len(few) < _MOST_ROUNDS * times and perf_counter() - begun < _COST_SECONDS
    ):
        few += [watch.seconds(1) for _ in range(times)]
        many += [watch.seconds(rows) for _ in range(-(-times // 2))]
    one, several = median(few), median(many)
    return ForwardCost(one, _share_of_a_row(one, several, rows))


def _row_cost(model: LanguageModel) -> float:
    """The share of a forward over one row that each further row adds, by quick ones in turns. (As a
    share of an undisturbed one it would be far larger than it is in the midst of answers.)"""
    watch = Stopwatch(model)
    pairs = [(watch.seconds(1), watch.seconds(_SEVERAL)) for _ in range(_PAIRS)]
    one, several = (median(seconds) for seconds in zip(*pairs, strict=True))
    return _share_of_a_row(one, several, _SEVERAL)


def _share_of_a_row(one: float, several: float, rows: int) -> float:
    return min(max((several / one - 1) / (rows - 1), 0.0), 1.0)


def undisturbed_seconds(model: LanguageModel) -> float:
    """The shortest of a few medians over one row: what a forward takes while nothing else runs,
    also where something does for a moment (a draft in its process that is just ending)."""
    watch = Stopwatch(model)
    times = 5 if watch.seconds(1) < _QUICK_SECONDS else 1
    found: list[float] = []
    begun = perf_counter()
    while len(found) < _FEWEST_ROUNDS or (
        len(found) < _MOST_ROUNDS and perf_counter() - begun < _SHORT_SECONDS
    ):
        found.append(median(watch.seconds(1) for _ in range(times)))
    return min(found)


def chained_seconds(model: ChainingModel) -> float:
    """The same of a token with which the model goes on by itself."""
    most = max(1, min(_CHAINED, model.max_length // 2))
    context = max(1, min(_CHAIN_CONTEXT, model.max_length - most))
    text = [1 + i % 7 for i in range(context)]
    found: list[float] = []
    begun = perf_counter()
    while len(found) < _FEWEST_ROUNDS + 1 or (
        len(found) < _MOST_ROUNDS and perf_counter() - begun < _SHORT_SECONDS
    ):
        start = perf_counter()
        chain = model.chain(text, most, model.vocab_size, (), Worth())
        found.append((perf_counter() - start) / max(1, len(chain.tokens)))
    return min(found[1:])  # the first one reads the text


class Stopwatch:
    """Times forwards over new rows after the same text, which is read once."""

    def __init__(self, model: LanguageModel, context: int = 64) -> None:
        self._model = model
        most = max(1, model.max_length // 2)
        self._prompt = [1 + i % 7 for i in range(max(1, min(context, model.max_length - most)))]
        self._most = most
        self._attempt = 0
        self._forward([])

    def seconds(self, rows: int) -> float:
        """Of one forward over so many rows, or fewer where the model's context is short."""
        self._attempt += 1
        new = [1 + (self._attempt + i) % 11 for i in range(min(rows, self._most))]
        begun = perf_counter()
        self._forward(new)
        return perf_counter() - begun

    def _forward(self, new: list[int]) -> None:
        last = max(1, len(new))
        rows = self._model.logits([*self._prompt, *new], last, len(self._prompt))
        rows[-1, 0].item()  # waits for the device


def forward_seconds(
    model: LanguageModel, rows: int = 1, context: int = 64, repeats: int = 5
) -> float:
    """The median time of a forward over `rows` new rows after `context` tokens, or fewer of both
    where the model's context is short."""
    watch = Stopwatch(model, context)
    watch.seconds(rows)
    return median(watch.seconds(rows) for _ in range(repeats))
