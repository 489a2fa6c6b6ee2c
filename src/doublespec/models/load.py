"""From a checkpoint to a language model: our decoder where it can, transformers' model else."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from doublespec.errors import ModelError
from doublespec.models.base import LanguageModel
from doublespec.models.decoder import Decoder
from doublespec.models.devices import available_memory, gigabytes
from doublespec.models.hf import TransformersModel
from doublespec.models.layers import MODEL_TYPES, Progress
from doublespec.models.parallel import ParallelDecoder
from doublespec.models.weights import Checkpoint

Target = Decoder | TransformersModel | ParallelDecoder


def load_target(
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    *,
    threads: int,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> Target:
    """Reads a model whose bits depend on the text only, divided among ranks if there are several
    devices, with so many threads for each. Raises ModelError."""
    if len(devices) == 1:
        return load_model(
            checkpoint,
            devices[0],
            dtype,
            canonical=True,
            max_length=max_length,
            progress=progress,
        )
    return ParallelDecoder.load(
        checkpoint, devices, dtype, threads=threads, max_length=max_length, progress=progress
    )


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    canonical: bool,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> Decoder | TransformersModel:
    """Reads a model; `canonical` ones give bits that depend on the text only. Raises ModelError."""
    _check_memory(checkpoint, device, dtype)
    kind = Decoder if checkpoint.config.model_type in MODEL_TYPES else TransformersModel
    return kind.load(
        checkpoint, device, dtype, canonical=canonical, max_length=max_length, progress=progress
    )


def _check_memory(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    needed, available = checkpoint.num_parameters() * dtype.itemsize, available_memory(device)
    if needed > available:
        advice = "dtype bfloat16 or " if dtype.itemsize > 2 else ""
        raise ModelError(
            f"the weights in {checkpoint.folder} need {gigabytes(needed)}, and {device} has "
            f"{gigabytes(available)} left; choose {advice}a smaller model"
        )


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """What a forward costs: seconds over one row, and the share of that which each further row
    adds."""

    seconds: float
    row_cost: float


def measure_cost(model: LanguageModel, rows: int = 16) -> ForwardCost:
    """The cost of a forward here and now; never used where it could change a token."""
    one, several = forward_seconds(model), forward_seconds(model, rows, repeats=3)
    return ForwardCost(one, min(max((several / one - 1) / (rows - 1), 0.0), 1.0))


def forward_seconds(
    model: LanguageModel, rows: int = 1, context: int = 64, repeats: int = 5
) -> float:
    """The median time of a forward over `rows` new rows after `context` tokens, or fewer of both
    where the model's context is short."""
    rows = min(rows, max(1, model.max_length // 2))
    context = max(1, min(context, model.max_length - rows))
    prompt = [1 + i % 7 for i in range(context)]
    times = []
    for attempt in range(repeats + 1):
        new = [1 + (attempt + i) % 11 for i in range(rows)]
        begun = perf_counter()
        model.logits([*prompt, *new], rows, context)[-1, 0].item()  # waits for the device
        times.append(perf_counter() - begun)
    return median(times[1:])  # the first one reads the prompt, too
