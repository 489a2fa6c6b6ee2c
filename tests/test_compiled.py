"""Functions compiled by LLVM: elementary ones against those of double precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llvmlite import ir
from torch import Tensor

from doublespec import kept
from doublespec.compiled import build
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


# -- what is kept from one start to the next -------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


def _compiles(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a function is compiled, which gives what it should either way."""
    begun: list[Any] = []
    make = build.llvm.create_pass_builder
    with monkeypatch.context() as patch:
        patch.setattr(
            build.llvm, "create_pass_builder", lambda *given: begun.append(0) or make(*given)
        )
        inputs = torch.arange(32, dtype=torch.float32)
        assert torch.equal(_values(lambda code, x: x * 3.0, inputs), 3 * inputs)
    return bool(begun)


def test_what_was_compiled_before_is_not_compiled_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _compiles(monkeypatch)
    assert len(list(folder.iterdir())) == 1
    assert not _compiles(monkeypatch)
    inputs = torch.arange(16, dtype=torch.float32)
    assert torch.equal(_values(lambda code, x: x * 5.0, inputs), 5 * inputs)  # another source
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "empty"])
def test_what_was_damaged_is_compiled_anew(
    damage: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _compiles(monkeypatch)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    changed = bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]])
    of_old = whole.replace(b"code 1", b"code 0")
    path.write_bytes({"cut": whole[:-9], "changed": changed, "other": of_old, "empty": b""}[damage])
    assert _compiles(monkeypatch)
    assert path.read_bytes() == whole
    assert not _compiles(monkeypatch)


def test_machine_code_is_for_one_cpu_and_compiler(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _compiles(monkeypatch)
    monkeypatch.setattr(build.llvmlite, "__version__", "another one")
    assert _compiles(monkeypatch)
    of_cpu = build.llvm.get_host_cpu_features
    features = of_cpu()
    features["made-up"] = False
    monkeypatch.setattr(build.llvm, "get_host_cpu_features", lambda: features)
    assert _compiles(monkeypatch)
    assert not _compiles(monkeypatch)


def test_where_nothing_can_be_kept_all_is_compiled_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("not a folder")
    assert _compiles(monkeypatch)
    assert _compiles(monkeypatch)
    monkeypatch.delenv(kept.FOLDER)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", _homeless)
    assert _compiles(monkeypatch)
    assert folder.read_text() == "not a folder"


def _homeless(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")
