"""Where a model's weights are read from: the files of a checkpoint in Hugging Face format.

Only safetensors are read; pickled weights run code when they are opened. A process that is handed
one of these needs no configuration, whose classes take seconds to import (`checkpoints.py`).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from doublespec.errors import ModelError, reason
from doublespec.models.sizes import DecoderConfig

Size = tuple[int, ...]
Placement = tuple[torch.device, torch.dtype]


@dataclass(frozen=True, slots=True)
class Cut:
    """The `index`-th of `count` equal parts along a dimension."""

    dim: int
    index: int
    count: int

    def whole(self, shape: Size) -> Size:
        """The shape of what such a part is of."""
        return tuple(
            size * self.count if dim == self.dim else size for dim, size in enumerate(shape)
        )


WHOLE = Cut(0, 0, 1)


class Source(Protocol):
    """Where a model's weights come from: a checkpoint, or chance (`random_weights.py`). Other
    processes are handed it as it is."""

    @property
    def name(self) -> str:
        """By which another process finds the same source."""
        ...

    @property
    def model_type(self) -> str:
        """The architecture, as transformers names it."""
        ...

    @property
    def vocab_size(self) -> int:
        """0 of a model that writes no text."""
        ...

    @property
    def config(self) -> DecoderConfig | None:
        """What our decoder needs to know; None of a type that it does not run."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a weight of that name."""
        ...

    def read(self, name: str, shape: Size, where: Placement, cut: Cut = WHOLE) -> Tensor:
        """One weight, or a part of one, of that shape. Nothing is kept; raises ModelError where the
        weight is missing or of another shape."""
        ...

    def num_parameters(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk."""

    folder: Path
    model_type: str
    vocab_size: int
    config: DecoderConfig | None
    files: Mapping[str, str] = field(repr=False)  # weight name -> file name

    @property
    def name(self) -> str:
        return str(self.folder)

    def has(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str, shape: Size, where: Placement, cut: Cut = WHOLE) -> Tensor:
        """Of a part, the rest of the weight is not read."""
        with self._opened(name) as file:
            weight = file.get_slice(name)
            self._check_shape(name, tuple(weight.get_shape()), cut.whole(shape))
            if cut.count == 1:
                found: Tensor = file.get_tensor(name)
            else:
                places = slice(cut.index * shape[cut.dim], (cut.index + 1) * shape[cut.dim])
                found = weight[places] if cut.dim == 0 else weight[:, places]
        device, dtype = where
        return found.to(device=device, dtype=dtype)

    def _opened(self, name: str) -> AbstractContextManager[Any]:
        """The file that a weight is in."""
        if name not in self.files:
            raise missing_weight(self.folder, name)
        return open_tensors(self.folder / self.files[name])

    def _check_shape(self, name: str, found: Size, wanted: Size) -> None:
        if found != wanted:
            raise ModelError(
                f"{name} in {self.folder} has shape {found}, where config.json says {wanted}; take "
                "both from the same model"
            )

    def num_parameters(self) -> int:
        """How many numbers its files hold, by their headers."""
        count = 0
        for file_name in sorted(set(self.files.values())):
            with open_tensors(self.folder / file_name) as file:
                names = file.keys()
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        return count


def missing_weight(folder: Path, name: str) -> ModelError:
    return ModelError(f"{folder} has no weight {name!r}; is the checkpoint complete?")


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A file of safetensors; raises ModelError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path}: {reason(error)}; download it again") from error
