"""Functions compiled by LLVM: elementary ones against those of double precision."""

from collections.abc import Callable

import pytest
import torch
from llvmlite import ir
from torch import Tensor

from doublespec.compiled.build import Compiled, has_fma
from doublespec.compiled.code import ADDRESS, INTEGER, LANES, Code, Number
from doublespec.compiled.functions import exp, log

pytestmark = pytest.mark.skipif(not has_fma(), reason="needs FMA")


def _values(function: Callable[[Code, Number], Number], inputs: Tensor) -> Tensor:
    """Those of a function for float32 inputs, a multiple of LANES of them."""
    module = ir.Module("values")
    parameters = {"inputs": ADDRESS, "outputs": ADDRESS, "count": INTEGER}
    with (
        Code(module, "values", parameters, inner=False) as code,
        code.loop(0, code["count"], LANES) as i,
    ):
        code.store(function(code, code.load_lanes(code["inputs"], i)), code["outputs"], i)
    compiled, outputs = Compiled(module), torch.empty_like(inputs)
    call = compiled.function("values", list(parameters.values()))
    call(inputs.data_ptr(), outputs.data_ptr(), len(inputs))
    return outputs


def _errors(found: Tensor, wanted: Tensor) -> Tensor:
    """In units of the last place of a float32."""
    exponents = torch.frexp(wanted).exponent - 24
    return (found.double() - wanted).abs() / torch.ldexp(torch.ones_like(wanted), exponents)


@pytest.mark.parametrize("low, high", [(-37.0, 38.0), (-3e-4, 3e-4), (-0.1, 0.1)])
def test_logarithms_are_right_to_the_last_bits(low: float, high: float) -> None:
    """Of numbers from 10^low to 10^high: near 1, too, where they vanish."""
    inputs = torch.linspace(low, high, 1 << 16).double().mul(2.302585092994046).exp().float()
    wanted = inputs.double().log()
    assert _errors(_values(log, inputs), wanted).max() < 1.5


def test_powers_are_right_to_the_last_bits() -> None:
    inputs = torch.linspace(-80.0, 80.0, 1 << 16)
    assert _errors(_values(exp, inputs), inputs.double().exp()).max() < 1.5


def test_powers_beyond_float32_are_the_last_within() -> None:
    inputs = torch.tensor([-1e4, 1e4] * (LANES // 2))
    found = _values(exp, inputs)
    assert found[0] == pytest.approx(0.0, abs=1e-37)
    assert found[1].isfinite()
    assert found[1] > 1e38
