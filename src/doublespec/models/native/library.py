"""The kernels of a model as functions of this process, compiled for the CPU that it runs on."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from doublespec.models.devices import openmp
from doublespec.models.native.code import ADDRESS
from doublespec.models.native.model import Storage, write_model
from doublespec.models.native.products import PRODUCT, Tiles
from doublespec.models.sizes import DecoderConfig

_OPENMP = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")
_SPEED = 2  # of LLVM's passes; 3 takes longer and gains nothing here
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64

Function = Callable[..., None]


class Library:
    """Functions of addresses and whole numbers (`layout.py`), the last of which is the number of
    threads."""

    def __init__(self, config: DecoderConfig, storage: Storage) -> None:
        _find_openmp()
        machine = _machine()
        module = llvm.parse_assembly(str(write_model(config, storage, _tiles())))
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=_SPEED)
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self.forward = self._function("forward", [_POINTER, _NUMBER])
        self.chain = self._function("chain", [_POINTER, _POINTER, _NUMBER])
        product = [_POINTER if kind == ADDRESS else _NUMBER for kind in PRODUCT.values()]
        self.multiply = self._function("multiply", [*product, _NUMBER])

    def _function(self, name: str, parameters: list[Any]) -> Function:
        return ctypes.CFUNCTYPE(None, *parameters)(self._engine.get_function_address(name))


@cache
def library_for(config: DecoderConfig, storage: Storage) -> Library:
    """One for all models of these sizes."""
    return Library(config, storage)


@cache
def can_compile() -> bool:
    """Whether this CPU rounds once in a x b + c, and PyTorch's threads can be used."""
    features = llvm.get_host_cpu_features()
    has_fma = features.get("fma", False) or features.get("neon", False)
    return has_fma and all(hasattr(openmp(), name) for name in _OPENMP)


def _find_openmp() -> None:
    for name in _OPENMP:
        function = getattr(openmp(), name)
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)


def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3)


def _tiles() -> Tiles:
    """AVX-512 has 32 registers of 16 numbers, AVX2 16 of 8, ARM's NEON 32 of 4."""
    return Tiles(32 if llvm.get_host_cpu_features().get("avx512f", False) else 8)
