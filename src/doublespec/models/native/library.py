"""The kernels of a model as functions of this process."""

import ctypes
from functools import cache

import llvmlite.binding as llvm

from doublespec.compiled.build import Compiled, has_avx512, has_fma
from doublespec.compiled.code import ADDRESS, INTEGER
from doublespec.models.devices import openmp
from doublespec.models.native.model import Storage, write_model
from doublespec.models.native.products import Tiles, parameters_of
from doublespec.models.sizes import DecoderConfig

_OPENMP = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")


class Library:
    """Functions of addresses and whole numbers (`layout.py`), the last of which is the number of
    threads."""

    def __init__(self, config: DecoderConfig, storage: Storage) -> None:
        _find_openmp()
        compiled = Compiled(write_model(config, storage, _tiles()))
        self.forward = compiled.function("forward", [ADDRESS, INTEGER])
        self.chain = compiled.function("chain", [ADDRESS, ADDRESS, INTEGER])
        parameters = parameters_of(storage.layers)
        self.multiply = compiled.function("multiply", [*parameters.values(), INTEGER])
        self._compiled = compiled


@cache
def library_for(config: DecoderConfig, storage: Storage) -> Library:
    """One for all models of these sizes."""
    return Library(config, storage)


@cache
def can_compile() -> bool:
    """Whether this CPU rounds once in a x b + c, and PyTorch's threads can be used. (GCC's OpenMP
    is there on Linux alone, whose clock is told.)"""
    return has_fma() and all(hasattr(openmp(), name) for name in _OPENMP)


def _find_openmp() -> None:
    for name in _OPENMP:
        function = getattr(openmp(), name)
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)


def _tiles() -> Tiles:
    """AVX-512 has 32 registers of 16 numbers, AVX2 16 of 8, ARM's NEON 32 of 4."""
    return Tiles(32 if has_avx512() else 8)
