"""From a module in LLVM's intermediate representation to functions of this process."""

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from doublespec import kept
from doublespec.compiled.code import ADDRESS, FLOAT, INTEGER

_SPEED = 2  # of LLVM's passes; 3 takes longer and gains nothing here
_OPTIMISED = 3  # when machine code is chosen

# Of Linux on x86-64 (asm/prctl.h): to ask for a state of the CPU that is large.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

_KIND = "code"  # of what is kept
_KINDS = {ADDRESS: ctypes.c_void_p, INTEGER: ctypes.c_int64, FLOAT: ctypes.c_float}

Function = Callable[..., None]


class Compiled:
    """A module, compiled for the CPU that it runs on."""

    def __init__(self, module: ir.Module) -> None:
        machine, text = _machine(), str(module)
        parsed = llvm.parse_assembly(text)
        parsed.verify()
        source = "\n".join([*_compiler(), text])
        code = kept.find(_KIND, source)
        if code is None:
            options = llvm.create_pipeline_tuning_options(speed_level=_SPEED)
            builder = llvm.create_pass_builder(machine, options)
            builder.getModulePassManager().run(parsed, builder)
        self._engine = llvm.create_mcjit_compiler(parsed, machine)
        self._engine.set_object_cache(
            lambda _, made: kept.keep(_KIND, source, made), lambda _: code
        )
        self._engine.finalize_object()

    def function(self, name: str, parameters: list[Any], *, brief: bool = False) -> Function:
        """One of its public functions, to be called for as long as this object is there. It lets
        other threads of Python run meanwhile, if it is not `brief`: to come back may take longer
        than what it does."""
        make = ctypes.PYFUNCTYPE if brief else ctypes.CFUNCTYPE
        kind = make(None, *(_KINDS[parameter] for parameter in parameters))
        return kind(self.address(name))

    def address(self, name: str) -> int:
        """Where it is, for other compiled functions."""
        return int(self._engine.get_function_address(name))


@cache
def has_fma() -> bool:
    """Whether this CPU rounds once in a x b + c; others take a hundred instructions for it."""
    features = llvm.get_host_cpu_features()
    return bool(features.get("fma", False) or features.get("neon", False))


@cache
def has_avx512() -> bool:
    return bool(llvm.get_host_cpu_features().get("avx512f", False))


@cache
def has_tiles() -> bool:
    """Whether this CPU has a matrix unit for bfloat16 that Linux lets this process use (Intel's
    AMX: its tiles must be asked for, once for a process and all its threads)."""
    features = llvm.get_host_cpu_features()
    if not (features.get("amx-tile", False) and features.get("amx-bf16", False)):
        return False
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    cpu = llvm.get_host_cpu_name()
    return target.create_target_machine(cpu=cpu, features=features, opt=_OPTIMISED)


def _compiler() -> tuple[str, ...]:
    """All that the machine code depends on, besides its source."""
    versions = llvmlite.__version__, str(llvm.llvm_version_info), str((_SPEED, _OPTIMISED))
    cpu = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return (*versions, llvm.get_default_triple(), *cpu)
