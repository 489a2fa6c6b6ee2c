"""8-bit weights: what is rounded, and that the promise holds for the rounded target."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from doublespec.bench.provenance import model_provenance
from doublespec.config import PRESETS
from doublespec.errors import ConfigError, ModelError
from doublespec.llm import LLM
from doublespec.methods import METHODS
from doublespec.models.checkpoints import open_checkpoint
from doublespec.models.decoder import Decoder
from doublespec.models.kernels import KernelProbe
from doublespec.models.layers import Linear, linear
from doublespec.models.load import LocalDecoder, load_model
from doublespec.models.quantize import find_products, int8_linear, rounded_to_int8
from doublespec.models.shapes import find_shapes
from doublespec.sampling import SamplingParams
from tests.checkpoints import write_checkpoint, write_family
from tests.reference import naive

CPU = torch.device("cpu")
TEXT = "Convert this CSV to JSON:\nname,city\nAnna,Oslo\nTom,Paris\nLena,Rome"


@pytest.fixture(
    scope="module",
    params=[("bfloat16", "torch"), ("float32", "torch"), ("bfloat16", None)],
    ids=["bfloat16", "float32", "default"],
)
def pair(request: pytest.FixtureRequest) -> Iterator[LLM]:
    dtype, kernels = request.param
    options = {"dtype": dtype, "kernels": kernels, "threads": 1, "gamma": 3}
    with LLM("bundled", "bundled", quantize="int8", **options) as llm:
        yield llm


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_method_gives_the_tokens_of_the_quantised_target(
    pair: LLM, temperature: float
) -> None:
    prompt = pair.codec.encode_chat([{"role": "user", "content": TEXT}])
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=40)
    request, stop = pair.request(prompt, params)
    assert isinstance(pair.target, LocalDecoder)
    wanted = tuple(naive(pair.target.fresh(), prompt, request, stop))
    for method in [*METHODS, *(f"double@{preset}" for preset in PRESETS)]:
        assert pair.generate(prompt, params, method=method).tokens == wanted, method


def test_reports_say_what_was_rounded(pair: LLM) -> None:
    assert model_provenance(pair)["quantize"] == "int8"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_quantised_model_is_another_one_and_close_to_it(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    checkpoint = open_checkpoint(str(write_family(tmp_path, "llama-biased")))
    plain, rounded = (
        load_model(checkpoint, CPU, dtype, canonical=True, quantize=quantize)
        for quantize in (None, "int8")
    )
    text = list(range(3, 40))
    wanted, found = (model.logits(text, 8, 30).float() for model in (plain, rounded))
    assert not torch.equal(wanted, found)
    assert (wanted - found).std() < 0.1 * wanted.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [(64, 128), (100, 300), (7, 5)])  # some fit the kernel's tiles
def test_products_are_those_of_the_rounded_weight(
    dtype: torch.dtype, size: tuple[int, int]
) -> None:
    weight = torch.randn(size).to(dtype)
    bias = torch.randn(size[0]).to(dtype)
    rounded, scales = rounded_to_int8(weight)
    restored = rounded.float() * scales.float()[:, None]
    assert ((restored - weight.float()).abs() <= 0.51 * scales.float()[:, None]).all()
    assert rounded.dtype == torch.int8
    rows = torch.randn(9, size[1]).to(dtype)
    wanted = rows.float() @ restored.T + bias.float()
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-4
    found = int8_linear(weight, bias)(rows).float()
    torch.testing.assert_close(found, wanted, atol=tolerance * wanted.std().item(), rtol=0.02)


def test_a_channel_of_zeros_stays_one() -> None:
    product = int8_linear(torch.zeros(16, 64))
    assert not product(torch.randn(3, 64)).any()


def _odd_alone(weight: Tensor, bias: Tensor | None) -> Linear:
    """A product that rounds a lone row differently."""
    exact, other = linear(weight, bias), linear(weight.flip(1), bias)
    return lambda x: exact(x) if len(x) > 1 else other(x.flip(1)) + 1e-3


def test_the_kernels_that_are_tested_are_the_quantised_ones(tmp_path: Path) -> None:
    """Were the plain products tested, a lone row would be found to have the bits of several."""
    checkpoint = open_checkpoint(str(write_family(tmp_path, "llama2")))
    model = load_model(checkpoint, CPU, torch.float32, canonical=False)
    assert isinstance(model, Decoder)
    probe = KernelProbe(model.config, CPU, torch.float32, _odd_alone)
    shapes = find_shapes(probe.products(), probe.attention([32]), probe.vocabulary(), 32)
    assert 1 not in shapes.answer
    assert max(shapes.answer) > 1


def test_a_vocabulary_is_tested_by_its_own_weights_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another order of summation is found, and no other table of its size is made."""
    config = open_checkpoint(str(write_family(tmp_path, "llama2"))).config
    assert config is not None
    size = config.vocab_size, config.hidden_size
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0))
    same, backwards = linear(weight), linear(weight.flip(1))

    def odd_alone(x: Tensor) -> Tensor:
        return same(x) if len(x) > 1 else backwards(x.flip(1))

    make = KernelProbe._linear

    def noted(probe: KernelProbe, *sizes: Any, **options: Any) -> Any:
        assert sizes[:2] != size
        return make(probe, *sizes, **options)

    monkeypatch.setattr(KernelProbe, "_linear", noted)
    for head, is_found in ((odd_alone, True), (same, False)):
        probe = KernelProbe(config, CPU, torch.float32, linear, head)
        shapes = find_shapes(probe.products(), probe.attention([32]), probe.vocabulary(), 32)
        assert (1 not in shapes.answer) == is_found
    with pytest.raises(AssertionError):
        next(KernelProbe(config, CPU, torch.bfloat16, linear, same).vocabulary())


def _odd_alone_if_biased(weight: Tensor, bias: Tensor | None) -> Linear:
    """Another kernel where there is a bias, as cuBLAS has."""
    return linear(weight) if bias is None else _odd_alone(weight, bias)


@pytest.mark.parametrize("family", ["llama2", "llama-biased", "qwen2"])
def test_products_with_a_bias_are_tested_where_a_model_has_one(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_family(tmp_path, family)))
    assert checkpoint.config is not None
    probe = KernelProbe(checkpoint.config, CPU, torch.float32, _odd_alone_if_biased)
    shapes = find_shapes(probe.products(), probe.attention([32]), probe.vocabulary(), 32)
    assert (1 in shapes.answer) == (family == "llama2")
    assert checkpoint.has("model.layers.0.self_attn.q_proj.bias") == (family != "llama2")


def test_layers_are_rounded_one_product_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The products of layers alone, and each by itself."""
    sizes: list[int] = []

    def count(weight: Tensor, bias: Tensor | None = None) -> Linear:
        sizes.append(weight.numel())
        return int8_linear(weight, bias)

    monkeypatch.setattr("doublespec.models.quantize.int8_linear", count)
    checkpoint = open_checkpoint(str(write_family(tmp_path, "llama2")))
    model = load_model(checkpoint, CPU, torch.float32, canonical=False, quantize="int8")
    assert isinstance(model, Decoder)
    assert sum(sizes) == model.config.num_layer_weights()
    assert len(sizes) == 4 * model.config.num_layers


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp8_is_refused_with_what_it_needs(device: str) -> None:
    """PyTorch's kernels are without it; those of tests/test_gpu_kernels.py have it."""
    with pytest.raises(ConfigError, match=f"quantize fp8 cannot be used on {device}.*it needs"):
        find_products("fp8", torch.device(device))


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantize must be one of int8, fp8, got 'int3'"):
        LLM("bundled", quantize="int3")
    with pytest.raises(ConfigError, match="quantize fp8 cannot be used on cpu"):
        LLM("bundled", quantize="fp8")
    folder = write_checkpoint(tmp_path, "gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=99)
    with pytest.raises(ModelError, match="'gpt2' run through transformers, whose weights int8"):
        load_model(
            open_checkpoint(str(folder)), CPU, torch.float32, canonical=True, quantize="int8"
        )
