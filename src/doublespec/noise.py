"""The noise of sampling: standard Gumbel noise that is a hash of (seed, position, token id).

Each value depends on these alone, not on what is computed beside it. On the CPU a function of our
own adds it, in a tenth of the time that PyTorch's take one after the other.
"""

import math
from array import array
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

import torch
from llvmlite import ir
from torch import Tensor

from doublespec.compiled.build import Compiled, Function, has_fma
from doublespec.compiled.code import ADDRESS, FLOAT, INTEGER, LANES, WORD, Code, Number, Variable
from doublespec.compiled.functions import log
from doublespec.transfer import upload

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # keeps token 0 from hashing to 0
_FIRST, _SECOND = 0x85EBCA6B, 0xC2B2AE35  # factors of MurmurHash3's finaliser
COLDEST = 1e-30  # below it a temperature would be 0 in float32
_LARGEST = (1 << 31) - 128  # the largest float32 below 2^31

_Integers = TypeVar("_Integers", int, Tensor)


class Heat(NamedTuple):
    """How tokens are sampled that nothing else decides on: a temperature above 0, and a seed."""

    temperature: float
    seed: int


def noise(seed: int, positions: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise (n, V) for token ids 0..V-1 at the given positions.

    A counter-based hash: each value depends on (seed, position, token id) alone, not on V.
    """
    zeros = torch.zeros(len(positions), vocab_size, device=device)
    return perturbed(zeros, 1.0, seed, positions)


def perturbed(logits: Tensor, temperature: float, seed: int, positions: Sequence[int]) -> Tensor:
    """`logits` (n, V) over the temperature in float32, the largest of a row being 0 at any, with
    the noise of their positions. The largest of a row is a sample (the Gumbel-max rule)."""
    numbers, temperature = position_keys(seed, positions), max(temperature, COLDEST)
    if logits.device.type == "cpu" and has_fma():
        return _by_our_function(logits.float(), temperature, array("i", numbers))
    keys = torch.tensor(numbers, dtype=torch.int32)
    return scaled(logits, temperature).add_(_by_torch(keys, logits.shape[-1], logits.device))


def position_keys(seed: int, positions: Sequence[int]) -> list[int]:
    """With which the ids are hashed at each position: of 32 bits, with a sign."""
    key = seed_key(seed)
    return [_signed(_mix(_mix(position) ^ key)) for position in positions]


def seed_key(seed: int) -> int:
    """With which positions are hashed: of 32 bits."""
    return _mix(_mix(seed & _WORD) + (seed >> 32) & _WORD)


def prepare_noise(device: torch.device) -> None:
    """Compiles now what the first sample would wait for: 50 ms, for which a draft would take a core
    from its target in the midst of an answer."""
    if device.type == "cpu" and has_fma():
        _function()


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """The same without noise: a copy."""
    scores = logits.to(torch.float32, copy=True)
    return scores.sub_(scores.amax(dim=-1, keepdim=True)).div_(max(temperature, COLDEST))


def _by_torch(keys: Tensor, vocab_size: int, device: torch.device) -> Tensor:
    """Noise from uniform numbers between 0 and 1. Small ones keep 31 bits of precision: they make
    the large noise. None is 1, which would make noise of minus infinity."""
    bits = _mixed_bits(hashed_ids(vocab_size, device) ^ upload(keys, device)[:, None])
    uniform = bits.clamp_(max=_LARGEST).float().add_(0.5).mul_(2.0**-31)
    return uniform.neg_().log1p_().neg_().log_().neg_()


@lru_cache(maxsize=8)
def hashed_ids(vocab_size: int, device: torch.device) -> Tensor:
    """All ids, scrambled: (V) of 32 bits."""
    ids: Tensor = torch.arange(vocab_size, device=device) + _GOLDEN & _WORD
    return _mix(ids).to(torch.int32)


def _mix(x: _Integers) -> _Integers:
    """Scrambles 32 bits (the finaliser of MurmurHash3, which is bijective)."""
    x = (x ^ x >> 16) * _FIRST & _WORD
    x = (x ^ x >> 13) * _SECOND & _WORD
    return x ^ x >> 16


def _mixed_bits(x: Tensor) -> Tensor:
    """The same in int32, in place: products wrap, alike on every device. In the last shift copies
    of the sign make the sign 0, which leaves 31 random bits."""
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= _signed(_FIRST)
    x ^= (x >> 13).bitwise_and_(0x7FFFF)
    x *= _signed(_SECOND)
    x ^= x >> 16
    return x


def _signed(x: int) -> int:
    """The int32 of the same 32 bits."""
    return x - (1 << 32) if x >> 31 else x


# -- on the CPU ------------------------------------------------------------------------------------


def _by_our_function(logits: Tensor, temperature: float, keys: "array[int]") -> Tensor:
    rows, vocab_size = logits.shape
    size = -(-vocab_size // LANES) * LANES
    if size > vocab_size:
        padding = logits.new_full((rows, size - vocab_size), -math.inf)
        logits = torch.cat((logits, padding), dim=1)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    scores, ids = torch.empty(rows, size), hashed_ids(size, logits.device)
    places = logits.data_ptr(), ids.data_ptr(), keys.buffer_info()[0], scores.data_ptr()
    _function()(*places, rows, size, logits.stride(0), temperature)
    return scores[:, :vocab_size]


_PARAMETERS = {
    "logits": ADDRESS,  # (rows, size), rows `apart`
    "ids": ADDRESS,  # (size), hashed, of 32 bits
    "keys": ADDRESS,  # (rows), of 32 bits
    "scores": ADDRESS,  # (rows, size)
    "rows": INTEGER,
    "size": INTEGER,
    "apart": INTEGER,
    "temperature": FLOAT,
}


@cache
def _function() -> Function:
    return _compiled().function("perturb", list(_PARAMETERS.values()))


@cache
def _compiled() -> Compiled:
    module = ir.Module("noise")
    write_perturb_row(module)
    _write_perturb(module)
    return Compiled(module)


def _write_perturb(module: ir.Module) -> None:
    with (
        Code(module, "perturb", _PARAMETERS, inner=False) as code,
        code.loop(0, code["rows"]) as row,
    ):
        logits = code.offset(code["logits"], row * code["apart"])
        scores = code.offset(code["scores"], row * code["size"])
        key = code.widened(code.load(code["keys"], row, WORD))
        told = logits, code["ids"], key, scores, code["size"], code["temperature"]
        code.call("perturb_row", *told)


def position_key(code: Code, position: Number, key: Number) -> Number:
    """One of `position_keys`, without the sign, by the key of the seed."""

    def mix(x: Number) -> Number:
        x = (x ^ code.shifted_right(x, 16)) * _FIRST & _WORD
        x = (x ^ code.shifted_right(x, 13)) * _SECOND & _WORD
        return x ^ code.shifted_right(x, 16)

    return mix(mix(position) ^ key)


_OF_ROW = {
    "logits": ADDRESS,  # (size), in whole panels
    "ids": ADDRESS,
    "key": INTEGER,
    "scores": ADDRESS,  # (size), in whole panels; possibly the logits
    "size": INTEGER,
    "temperature": FLOAT,
}


def write_perturb_row(module: ir.Module) -> None:
    """One row of them; what stands behind `size` in its last panel decides nothing."""
    with Code(module, "perturb_row", _OF_ROW) as code:
        logits, size = code["logits"], code["size"]
        top = code.wide(_largest(code, logits, size))
        key, temperature = code.words(code["key"]), code.wide(code["temperature"])
        with code.loop(0, size, LANES) as i:
            score = (code.load_lanes(logits, i) - top) / temperature
            bits = _mixed(code, code.load_words(code["ids"], i) ^ key)
            code.store(score + _gumbel(code, bits), code["scores"], i)


def _largest(code: Code, numbers: Number, size: Number) -> Number:
    lowest = code.wide(-math.inf)
    best, end = Variable(code, lowest), code.words(size)
    with code.loop(0, size, LANES) as i:
        number = (code.indices(i) < end).then(code.load_lanes(numbers, i), lowest)
        best.set((number > best.get()).then(number, best.get()))
    return code.largest(best.get())


def _mixed(code: Code, x: Number) -> Number:
    """As `_mixed_bits`."""
    x = (x ^ code.shifted_right(x, 16)) * _FIRST
    x = (x ^ code.shifted_right(x, 13)) * _SECOND
    return x ^ code.shifted_right(x, 16, signed=True)


def _gumbel(code: Code, bits: Number) -> Number:
    """-log(-log(1 - u)) for uniform numbers u of 31 bits. Where 1 - u is rounded, log(1 - u) is
    corrected by what the rounding has changed, as if it were proportional there (W. Kahan)."""
    bits = (bits < _LARGEST).then(bits, _LARGEST)
    u = (code.floats(bits) + 0.5) * 2.0**-31
    rest = u.like(1.0) - u
    taken = u.like(1.0) - rest
    exponential = code.wide(0.0) - log(code, rest) * (u / taken)
    exponential = taken.equals(u.like(0.0)).then(u, exponential)
    return code.wide(0.0) - log(code, exponential)
