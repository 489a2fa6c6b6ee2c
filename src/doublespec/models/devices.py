"""Where a model runs and in which precision: what the machine offers, by its own account."""

import ctypes
import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil
import torch

from doublespec.errors import ConfigError

_HARD = 2  # omp_pause_hard (OpenMP 5.0, section 3.2.44)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def find_device(name: str | None) -> torch.device:
    """The device of that name; by default CUDA if there is one, else the CPU."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be like 'cpu' or 'cuda:0', got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be a CPU or a CUDA device, got {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{name!r} was asked for, and {torch.cuda.device_count()} are there")
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def find_devices(names: Sequence[str | None]) -> list[torch.device]:
    """The devices of these names, one for each rank: GPUs, or the CPU so many times. Raises
    ConfigError."""
    devices = [find_device(name) for name in names]
    is_cpu = [device.type == "cpu" for device in devices]
    if any(is_cpu) != all(is_cpu):
        raise ConfigError(f"target devices must be all GPUs or all the CPU, got {_listed(names)}")
    places = {(device.type, device.index or 0) for device in devices}
    if not any(is_cpu) and len(places) < len(devices):
        raise ConfigError(f"each rank needs a GPU of its own, got {_listed(names)}")
    return devices


def _listed(names: Sequence[str | None]) -> str:
    return ",".join(str(name) for name in names)


def find_dtype(
    name: str | None, device: torch.device, default: torch.dtype | None = None
) -> torch.dtype:
    """The precision of that name; by default the `default` of the kernels that will compute or, for
    PyTorch's, bfloat16 where the device computes in it.

    A CPU's own flags decide, not a measurement: a choice that flips with the load of the machine
    would change the text from run to run.
    """
    if name is not None:
        if name not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
        return DTYPES[name]
    if default is not None:
        return default
    is_fast = device.type == "cuda" or has_fast_bfloat16()
    return torch.bfloat16 if is_fast else torch.float32


def has_fast_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply in bfloat16."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int | None, ranks: int = 1) -> int:
    """Sets how many threads a product on the CPU uses, and says so; by default all cores but one,
    divided among the ranks of the target.

    The one is for the draft's process and for the rest of the machine: threads wait for each other
    at every product, so a single busy core stops them all (measured on 2 cores beside a busy
    process: 150 times slower; alone, the second core gains 15 %; 2026-11-23). This is the usual
    number; `threads.py` takes all cores where bits do not depend on it and no draft is at work.
    """
    wanted = count or max(1, (usable_cores() - 1) // ranks)
    keep_threads(wanted)
    return wanted


def keep_threads(count: int) -> None:
    """The same for so many, which may have been changed meanwhile: cheap where they were not."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def prepare_device(device: torch.device) -> None:
    """Sets what PyTorch keeps for the whole process. On CUDA, attention without cuDNN: it builds a
    plan, for a good part of a second, for every new number of rows or keys (FunASR issue 3704), and
    changed greedy texts with few heads in PyTorch 2.13 (issue 193893)."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


@cache
def openmp() -> ctypes.CDLL | None:
    """PyTorch's kernels for the CPU, by which GCC's OpenMP that they run in is found, too: another
    library may have brought one of its own (pydivsufsort does), with threads of its own, and two
    teams that wait for each other's cores take five times as long."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library))
    except OSError:
        return None
    return found if hasattr(found, "GOMP_parallel") else None


def end_idle_threads() -> None:
    """Ends those that this thread shares its products with, until they are needed again: what needs
    them takes 0.1 ms longer then. Only of GCC's OpenMP: LLVM's ends those of all threads."""
    if not hasattr(openmp(), "kmp_set_blocktime"):
        _end_threads()


def _end_threads() -> None:
    """Before a fork: threads of a product are not there in the child, which would wait for them.
    Those of the thread that forks end, and are begun again when they are needed."""
    pause = getattr(openmp(), "omp_pause_resource_all", None)
    if pause is not None:
        pause(_HARD)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_end_threads)


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device, those included that PyTorch holds unused."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def all_devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    return [torch.device("cpu")] + [
        torch.device("cuda", index) for index in range(torch.cuda.device_count())
    ]


def describe(device: torch.device) -> str:
    """The device's name, for people and for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name")
    return str(name or platform.processor() or platform.machine())
