"""The time, in compiled functions."""

import ctypes

import llvmlite.binding as llvm
from llvmlite import ir

from doublespec.compiled.code import ADDRESS, INTEGER, WORD, Code, Number

_CLOCK = "clock_gettime"
_MONOTONIC = 1  # of Linux: what `time.perf_counter` counts there


def declare_clock(module: ir.Module) -> None:
    function = getattr(ctypes.CDLL(None), _CLOCK)
    llvm.add_symbol(_CLOCK, ctypes.cast(function, ctypes.c_void_p).value)
    ir.Function(module, ir.FunctionType(WORD, [WORD, ADDRESS]), _CLOCK)


def now(code: Code) -> Number:
    """In nanoseconds."""
    place = code.room(2)
    code.call(_CLOCK, code.word(_MONOTONIC), place)
    seconds, rest = (code.load(place, i, INTEGER) for i in range(2))
    return seconds * 1_000_000_000 + rest
