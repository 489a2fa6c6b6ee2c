"""A decoder's step recorded once and replayed: CUDA graphs.

At one row a step is hundreds of small kernels, and to launch them takes the host longer than most
take the device. A recorded step is launched as one. Its shapes, and where it reads and writes, are
those of a bucket:

    rows, keys, with branches or not    what it is recorded for
    ids, positions, slots               buffers that are filled before each replay
    the mask                            made in it, from positions; with branches a buffer, too
    keys and values                     written to the cache at its slots, padding included: behind
                                        the text, where later rows overwrite what none has seen

A step is recorded the fourth time its bucket is met: that takes as long as a few forwards, so it
never costs much more than it could have saved. Nothing is believed of a device: what was recorded
must give the bits of the forward it stands for, or nothing is recorded any more, and a warning says
so (`Graphs`); in canonical shapes the kernels must, too, on data that cancel (`proven`).
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from doublespec.errors import reason
from doublespec.models import branches as behind
from doublespec.models.base import Branch
from doublespec.models.shapes import ANSWER_COUNTS, KERNEL_ROWS, KEY_STEP, Block, Kernel, pad
from doublespec.transfer import refill

MOST_GRAPHS = 32  # of a decoder, kept at a time

_MOST_ROWS = ANSWER_COUNTS[-1]
MEETINGS = 4  # of a bucket, until it is recorded
_WARM_UPS = 2  # forwards before a recording, in which libraries make what they keep
_ONE_AT_A_TIME = Lock()  # recordings of a process: one waits for the device, another must not then


class GraphWarning(UserWarning):
    """Recording failed on this device; forwards are computed as ever, slower and the same."""


# -- how a step is recorded ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recording:
    """`replay` does again what was recorded, and leaves its result in `output`."""

    replay: Callable[[], object]
    output: Tensor


class Capture(Protocol):
    """Records what a function does on the device. It may be run more than once for that, unless it
    `is_warm`: has just been run, and uses no library that keeps something of its first run."""

    def __call__(self, step: Callable[[], Tensor], *, is_warm: bool = False) -> Recording: ...


def find_capture(device: torch.device) -> Capture | None:
    """What records on this device, if it has something."""
    return CudaCapture(device) if device.type == "cuda" else None


class CudaCapture:
    """CUDA graphs, which share their memory, since no two of them run at a time: what the allocator
    keeps for recordings belongs to a pool and to the stream that they were made on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._first: Recording | None = None

    def __call__(self, step: Callable[[], Tensor], *, is_warm: bool = False) -> Recording:
        if self._first is None:  # PyTorch takes no new graph into a pool whose last one has gone
            self._first = self._record(lambda: torch.zeros(1, device=self._device), _WARM_UPS)
        return self._record(step, 0 if is_warm else _WARM_UPS)

    def _record(self, step: Callable[[], Tensor], warm_ups: int) -> Recording:
        """The working memory of products is made anew for the recording, in the pool: that of a
        stream is freed with the first of its graphs that goes (PyTorch issue 193402)."""
        with _ONE_AT_A_TIME, torch.cuda.device(self._device):
            usual = torch.cuda.current_stream()
            self._stream.wait_stream(usual)
            with torch.cuda.stream(self._stream):
                for _ in range(warm_ups):
                    step()
            usual.wait_stream(self._stream)
            torch.cuda.synchronize()
            torch._C._cuda_clearCublasWorkspaces()
            graph = torch.cuda.CUDAGraph()
            # Other threads, a draft's say, may do as they like meanwhile.
            mode = "thread_local"
            try:
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
                    output = step()
            finally:
                torch.cuda.set_stream(usual)  # which a recording that fails does not
                torch._C._cuda_clearCublasWorkspaces()
        return Recording(graph.replay, output)


def proven(
    capture: Capture,
    kernels: Iterable[Kernel],
    counts: Sequence[int],
    device: torch.device,
) -> Capture | None:
    """`capture`, if kernels that it has recorded give the bits that they give without it, for each
    number of rows; else None, with a warning."""
    indices = [(torch.arange(count) % KERNEL_ROWS).to(device) for count in counts]

    def failure(kernel: Kernel) -> str | None:
        wanted = torch.cat([kernel(index) for index in indices])
        recording = try_to_record(capture, lambda: torch.cat([kernel(index) for index in indices]))
        return recording if isinstance(recording, str) else _difference(recording, wanted)

    found = next(filter(None, map(failure, kernels)), None)
    if found is not None:
        warn_of_no_graphs(found)
    return capture if found is None else None


def try_to_record(
    capture: Capture, step: Callable[[], Tensor], *, is_warm: bool = False
) -> Recording | str:
    """A recording, or why there is none."""
    try:
        return capture(step, is_warm=is_warm)
    except RuntimeError as error:  # of CUDA and of its allocator, too
        return reason(error)


def _difference(recording: Recording, wanted: Tensor) -> str | None:
    recording.replay()
    same = torch.equal(recording.output[: len(wanted)], wanted)
    return None if same else "a recorded forward has other bits than the one it stands for"


def warn_of_no_graphs(found: str) -> None:
    text = f"CUDA graphs are not used, forwards take longer: {found}"
    warnings.warn(text, GraphWarning, stacklevel=2)


# -- what a step is recorded for -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bucket:
    """What the shapes of a step depend on."""

    rows: int
    keys: int
    branching: bool


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a step reads, as values on the host or as its buffers."""

    table: Tensor  # (3, rows): ids, positions, slots
    hidden: Tensor | None  # (rows, keys): what rows of branches and text must not look at

    def refill(self, values: "Inputs") -> None:
        refill(self.table, values.table)
        if self.hidden is not None and values.hidden is not None:
            refill(self.hidden, values.hidden)


def fill(bucket: Bucket, block: Block, tokens: Sequence[int], branches: Sequence[Branch]) -> Inputs:
    """The values of a block of these tokens, and of branches behind it."""
    start, rows = block.start, bucket.rows
    slots = range(start, start + rows)
    if not branches:
        ids = [*tokens, *[tokens[-1]] * (rows - len(tokens))]
        return Inputs(torch.tensor([ids, slots, slots]), None)
    standing = behind.positions(start, block.stop, branches)
    padding = rows - len(standing)
    ids = [*tokens, *(token for branch in branches for token in branch.tokens), *[0] * padding]
    hidden = torch.ones((rows, bucket.keys), dtype=torch.bool)
    known = torch.from_numpy(behind.hidden(start, block.stop, branches))
    hidden[: len(known), : known.shape[1]] = known
    hidden[len(known) :, 0] = False  # rows that look at nothing would be no numbers
    return Inputs(torch.tensor([ids, [*standing, *[0] * padding], slots]), hidden)


def _buffers(values: Inputs, device: torch.device) -> Inputs:
    """Their like on the device."""
    hidden = None if values.hidden is None else torch.empty_like(values.hidden, device=device)
    return Inputs(torch.empty_like(values.table, device=device), hidden)


# -- the recordings of a decoder -------------------------------------------------------------------

Step = Callable[[Bucket, Inputs], Tensor]  # hidden states (rows, D) of what buffers hold


class Graphs:
    """The recorded steps of a decoder, those that were used last. If `exact`, a recording has the
    shapes, hence the bits, of the forward it stands for; else it may be padded."""

    def __init__(self, capture: Capture, device: torch.device, *, exact: bool) -> None:
        self._capture: Capture | None = capture
        self._device = device
        self._exact = exact
        self._kept: dict[Bucket, tuple[Inputs, Recording]] = {}  # in the order of use
        self._met: dict[Bucket, int] = {}

    def find_bucket(self, block: Block, branches: Sequence[Branch], capacity: int) -> Bucket | None:
        """The bucket of a block with branches behind it; None if nothing is recorded, if it has too
        many rows, crosses a border of key lengths, or its padding a cache of that capacity."""
        rows = block.rows + sum(len(branch.tokens) for branch in branches)
        if self._capture is None or rows > _MOST_ROWS or len(block.spans) > 1:
            return None
        if self._exact:
            bucket = Bucket(rows, block.spans[0].keys, False)
        else:
            keys = -(-(block.start + rows) // KEY_STEP) * KEY_STEP
            bucket = Bucket(pad(rows, ANSWER_COUNTS), keys, bool(branches))
        return bucket if block.start + bucket.rows <= capacity else None

    def clear(self) -> None:
        """Forgets them: the cache that they read and write is no more."""
        self._kept.clear()

    def forward(
        self, bucket: Bucket, values: Inputs, step: Step, plain: Callable[[], Tensor], rows: int
    ) -> Tensor:
        """Hidden states, of which the first `rows` count and hold until the next forward. `plain`
        computes them as they would be without recordings."""
        kept = self._kept.pop(bucket, None)
        if kept is None:
            hidden = plain()
            return hidden if self._meet(bucket, values, step, hidden[:rows]) else plain()
        self._kept[bucket] = kept
        inputs, recording = kept
        inputs.refill(values)
        recording.replay()
        return recording.output

    def _meet(self, bucket: Bucket, values: Inputs, step: Step, wanted: Tensor) -> bool:
        """Records the step if it is time; whether the cache is as it must be."""
        self._met[bucket] = self._met.get(bucket, 0) + 1
        if self._capture is None or self._met[bucket] < MEETINGS:
            return True
        del self._met[bucket]
        if len(self._kept) == MOST_GRAPHS:
            del self._kept[next(iter(self._kept))]
        inputs = _buffers(values, self._device)
        inputs.refill(values)
        recording = try_to_record(self._capture, lambda: step(bucket, inputs))
        if isinstance(recording, str):
            return self._give_up(recording)
        if not self._exact:
            wanted = step(bucket, inputs)[: len(wanted)]
        found = _difference(recording, wanted)
        if found is not None:
            return self._give_up(found)
        self._kept[bucket] = inputs, recording
        return True

    def _give_up(self, found: str) -> bool:
        warn_of_no_graphs(found)
        self._capture = None
        self._kept.clear()
        return False
