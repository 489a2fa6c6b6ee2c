"""The kernels for a GPU, in Triton's interpreter: what they compute, and how a decoder uses them.

That a row's bits do not depend on what is computed beside it, only a GPU can show: `gpu/proof.py`
when a model is loaded there, and tests/test_gpu.py.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="there is no Triton for this system")

from doublespec.errors import ModelError
from doublespec.models import choice
from doublespec.models.base import Branch, Worth
from doublespec.models.checkpoints import open_checkpoint
from doublespec.models.choice import is_native
from doublespec.models.configs import built_in_config
from doublespec.models.decoder import Decoder
from doublespec.models.gpu import decoder as gpu
from doublespec.models.gpu import proof
from doublespec.models.gpu.decoder import GpuDecoder
from doublespec.models.gpu.products import Product, choose_parts, make_product
from doublespec.models.gpu.reading import in_pieces, read_through
from doublespec.models.graphs import GraphWarning, Recording
from doublespec.models.load import _runs_on_gpu
from doublespec.models.memory import GPU_CAPACITY, Plan
from doublespec.models.outlines import decoder_config
from doublespec.models.quantize import rounded_to_fp8, rounded_to_int8
from doublespec.models.shapes import KEY_STEP
from doublespec.noise import Heat
from doublespec.sampling import Request, SamplingParams, choose
from tests.checkpoints import write_family
from tests.test_decoder import random_text

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU there is no interpreter: pytest -m gpu"
)
CPU = torch.device("cpu")
CHUNK = 64
FEW = {"num_attention_heads": 2, "num_key_value_heads": 1}  # each takes as long as another
HALF = torch.float16  # in which the interpreter computes as a GPU does; its bfloat16 are no numbers


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short texts have several: the interpreter takes its time."""
    monkeypatch.setattr(gpu, "CHUNK", CHUNK)
    monkeypatch.setattr(gpu, "GPU_CAPACITY", 2 * CHUNK)


def load(folder: Path, **options: Any) -> GpuDecoder:
    return GpuDecoder.load(open_checkpoint(str(folder)), CPU, HALF, max_length=1000, **options)


def reference(folder: Path) -> Decoder:
    return Decoder.load(
        open_checkpoint(str(folder)), CPU, torch.float32, canonical=False, max_length=1000
    )


def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, atol=0.02 * float(wanted.abs().max()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("gpu"), "qwen3", num_hidden_layers=1, **FEW)


# -- products --------------------------------------------------------------------------------------


def states(rows: int, inputs: int) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1)).to(HALF)


def weight_of(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(2)).to(HALF)


def sums(product: Product, rows: Tensor) -> Tensor:
    out = torch.full((product.parts, len(rows), product.outputs), float("nan"))
    product.into(rows, out, len(rows), early=False)
    return out.sum(0)


@pytest.mark.parametrize(
    ("outputs", "inputs", "rows"),
    [(256, 256, 3), (100, 96, 20), (130, 352, 1), (64, 320, 130), (128, 1024, 2)],
)
def test_a_product_is_the_sum_of_its_parts(outputs: int, inputs: int, rows: int) -> None:
    """Of any sizes: what weights are padded with adds nothing."""
    weight, x = weight_of(outputs, inputs), states(rows, inputs)
    bias = torch.arange(outputs).to(HALF)
    product = make_product(weight, None, bias, choose_parts(outputs, inputs))
    wanted = x.float() @ weight.float().T + bias.float()
    assert torch.allclose(sums(product, x), wanted, atol=1e-3)


def test_small_products_are_divided_and_large_ones_are_not() -> None:
    """A GPU has more processors than a small product has outputs to divide among them."""
    assert choose_parts(51200, 5120) == 1
    assert choose_parts(51200, 5120, "fp8") == choose_parts(51200, 5120, "int8") == 2
    assert choose_parts(5120, 25600) == 4
    assert choose_parts(1024, 3072) == 8
    assert choose_parts(1024, 352) == 1  # parts are whole blocks


@pytest.mark.parametrize("rounding", [rounded_to_fp8, rounded_to_int8])
@pytest.mark.parametrize(("inputs", "rows"), [(384, 1), (256, 17), (96, 3)])
def test_weights_in_8_bits_are_what_they_were_rounded_to(
    rounding: Callable[[Tensor], tuple[Tensor, Tensor]], inputs: int, rows: int
) -> None:
    """They lie in pairs, where the inputs come in blocks of these."""
    rounded, scale = rounding(weight_of(256, inputs))
    product = make_product(rounded, scale, None, 1)
    assert product.is_paired is (inputs % 128 == 0)
    x = states(rows, inputs)
    wanted = x.float() @ (rounded.float() * scale.float()[:, None]).T
    assert close(sums(product, x), wanted)
    exact = weight_of(256, inputs).float()
    assert (x.float() @ exact.T - wanted).abs().max() > 0  # it is another model
    assert F.cosine_similarity(x.float() @ exact.T, wanted).min() > 0.99


@pytest.mark.parametrize("rounding", [None, rounded_to_fp8, rounded_to_int8])
def test_gated_products_are_silu_of_one_half_times_the_other(
    rounding: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
) -> None:
    weight, scale = weight_of(512, 256), None
    if rounding is not None:
        weight, scale = rounding(weight)
    bias, x = torch.linspace(-1, 1, 512).to(HALF), states(3, 256)
    out = torch.full((3, 256), float("nan"), dtype=HALF)
    make_product(weight, scale, bias).gated_into(x, out, 3, early=False)
    whole = weight.float() if scale is None else weight.float() * scale.float()[:, None]
    gate, up = (x.float() @ whole.T + bias.float()).chunk(2, dim=1)
    assert close(out.float(), F.silu(gate) * up)


# -- a decoder -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama3", {}),
        ("llama-biased", {"head_dim": 16, **FEW}),
        ("qwen2.5-yarn", {"num_attention_heads": 3, "hidden_size": 48}),
        ("qwen3", {"head_dim": 24, **FEW}),
        ("llama2", {"intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}),
    ],
)
def test_its_logits_are_those_of_the_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, Any]
) -> None:
    """Across a border of chunks, with branches; the last one with gate and up in one kernel."""
    monkeypatch.setattr(gpu, "_FUSED", 256)
    folder = write_family(tmp_path, family, num_hidden_layers=1, **changes)
    model, wanted = load(folder), reference(folder)
    assert model._is_fused is (family == "llama2")
    text = random_text(CHUNK + 10)
    assert close(model.logits(text, 20, 50), wanted.logits(text, 20, 50))
    branches = [Branch(len(text) - 2, (9, 10)), Branch(len(text), (11,))]
    found = model.branch_logits([*text, 5, 6], 2, branches, 50)
    expected = wanted.branch_logits([*text, 5, 6], 2, branches, 50)
    assert all(map(close, found, expected))
    assert model.unread([*text, 5, 7], 0) == 1


def test_long_texts_and_many_branches_come_in_blocks_that_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of attention have so much room that 64 rows always fit."""
    monkeypatch.setattr(gpu, "_PARTS", 1)
    model, wanted = load(folder), reference(folder)
    blocks: list[int] = []
    step = model._step
    monkeypatch.setattr(
        model, "_step", lambda rows, keys: (blocks.append(rows), step(rows, keys))[1]
    )
    text = random_text(100)
    assert close(model.logits(text, 3, 50), wanted.logits(text, 3, 50))
    assert max(blocks) == 64
    branches = [Branch(90 + i, (i, i + 1, i + 2, i + 3, i + 4)) for i in range(10)]
    more = [*text, *random_text(20, seed=1)]
    found = model.branch_logits(more, 1, branches, 50)
    assert all(map(close, found, wanted.branch_logits(more, 1, branches, 50)))
    assert max(blocks) == 64


def test_ids_of_no_vocabulary_are_not_looked_up(folder: Path) -> None:
    model = load(folder)
    for wrong in (-1, model.vocab_size):
        with pytest.raises(AssertionError):
            model.logits([1, wrong], 1, 2)
    assert model.unread([1, 2], 0) == 2


class Replaying:
    """A device that can do again what it did, and records what has just been run without running
    it."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Callable[[], Tensor], *, is_warm: bool = False) -> Recording:
        assert is_warm
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return Recording(replay, torch.empty(0))


def test_a_step_that_is_met_again_is_replayed(folder: Path) -> None:
    device = Replaying()
    model, wanted = load(folder, capture=device), reference(folder)
    text = random_text(20)
    for stop in range(10, 16):
        assert close(model.logits(text[:stop], 1, 5), wanted.logits(text[:stop], 1, 5))
    assert (device.recorded, device.replayed) == (2, 4)  # the prompt's rows are others
    model._reserve(2 * model._room.capacity)  # its recordings read what is no more
    model.logits(text[:17], 1, 5)
    assert (device.recorded, device.replayed) == (3, 4)


def test_what_is_ready_is_recorded_before_it_is_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of it in the cache."""
    monkeypatch.setattr(gpu, "_LOGITS", 4)
    monkeypatch.setattr(gpu, "_FEWEST_CHUNKS", 1)
    device = Replaying()
    model, wanted = load(folder, capture=device), reference(folder)
    model.get_ready()
    assert device.recorded == 3 * 2  # rows; texts of one chunk, and of two
    assert model.unread([0], 0) == 1
    text = random_text(CHUNK + 3)
    assert close(model.logits(text[:2], 2, 1), wanted.logits(text[:2], 2, 1))
    assert close(model.logits(text[:3], 1, 1), wanted.logits(text[:3], 1, 1))
    assert (device.recorded, device.replayed) == (6, 2)
    model.logits(text[:CHUNK], 1, 1)
    assert close(model.logits(text, 3, 1), wanted.logits(text, 3, 1))
    assert (device.recorded, device.replayed) == (7, 3)


def test_a_device_that_cannot_record_computes_all_the_same(folder: Path) -> None:
    def fail(step: Callable[[], Tensor], *, is_warm: bool = False) -> Recording:
        raise RuntimeError("no memory for it")

    model, wanted = load(folder, capture=fail), reference(folder)
    text = random_text(20)
    with pytest.warns(GraphWarning, match="no memory for it"):
        for stop in range(10, 14):
            assert close(model.logits(text[:stop], 1, 5), wanted.logits(text[:stop], 1, 5))
    assert not model.records


# -- chains ----------------------------------------------------------------------------------------


def by_hand(model: GpuDecoder, text: list[int], count: int, heat: Heat | None = None) -> list[int]:
    text, first = text.copy(), len(text)
    params = SamplingParams() if heat is None else SamplingParams(heat.temperature, seed=heat.seed)
    for _ in range(count):
        logits = model.logits(text, 1, first)
        text += choose(logits, text, len(text), Request(params, first))
    return text[first:]


@pytest.mark.parametrize("heat", [None, Heat(1.0, 7)])
def test_a_chain_is_what_the_model_chooses_one_by_one(folder: Path, heat: Heat | None) -> None:
    """More tokens than come in one go, recorded or not; the text goes on behind it."""
    model, text = load(folder, capture=Replaying()), random_text(12)
    wanted = by_hand(model.fresh(), text, 6, heat)
    for _ in range(3):
        chain = model.chain(text, 6, 300, (), Worth(), heat)
        assert chain.tokens == wanted
        assert min(chain.behind) >= 0
    assert model.unread([*text, *wanted], 0) == 1
    more = [*text, *wanted, 5]
    assert close(model.logits(more, 5, 12), model.fresh().logits(more, 5, 12))
    end = wanted.index(wanted[2]) + 1
    assert model.chain(text, 6, 300, wanted[2:3], Worth(), heat).tokens == wanted[:end]


def test_a_chain_ends_where_it_is_not_worth_it(folder: Path) -> None:
    model, text = load(folder), random_text(12)
    whole = model.chain(text, 8, 300, (), Worth())
    worth = Worth(edges=[whole.behind[2] + 1e-6], chances=[0.5, 0.9], least=0.4)
    chances = [0.9 if behind >= worth.edges[0] else 0.5 for behind in whole.behind]
    reach, count = 1.0, 0
    while reach > worth.least:
        reach *= chances[count]
        count += 1
    assert model.chain(text, 8, 300, (), worth).tokens == whole.tokens[:count]
    assert 0 < count < 8


def test_a_chain_takes_ids_below_a_size_and_the_lowest_of_several(folder: Path) -> None:
    model, text = load(folder), random_text(12, seed=1)
    first = model.chain(text, 1, 300, (), Worth()).tokens[0]
    assert first > 0
    assert model.chain(text, 1, first, (), Worth()).tokens[0] < first
    model._weights.vocabulary.weight.zero_()
    equal = model.fresh().chain(text, 2, 300, (), Worth())
    assert equal == ([0, 0], [0.0, 0.0])


def test_reading_misses_nothing() -> None:
    words = torch.randint(-9, 9, (in_pieces(100_000),), dtype=torch.int32)
    assert read_through(words).tolist() == words.view(3, -1).sum(1).tolist()


# -- where they are used ---------------------------------------------------------------------------


class InOrder:
    """A product whose sums are the same beside any rows, or `wrong` beside many."""

    inputs, outputs, parts = 64, 256, 1

    def __init__(self, *, wrong: bool) -> None:
        self.wrong = wrong

    def into(self, rows: Tensor, out: Tensor, count: int, *, early: bool) -> None:
        terms = rows.float().repeat_interleave(4, dim=1)
        out[0] = terms.cumsum(1) + (1e-6 if self.wrong and count > 16 else 0)

    def gated_into(self, rows: Tensor, out: Tensor, count: int, *, early: bool) -> None:
        out[:] = rows.repeat(1, 2)


def test_the_proof_sees_other_bits_beside_more_rows() -> None:
    assert proof._agrees(InOrder(wrong=False), CPU, torch.float32)  # type: ignore[arg-type]
    assert not proof._agrees(InOrder(wrong=True), CPU, torch.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantize", [None, "fp8", "int8"])
def test_the_proof_sees_products_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, quantize: str | None
) -> None:
    """As those of numbers in 8 bits would be, if one instruction that widens them were another."""
    monkeypatch.setattr(proof, "_OUTPUTS", 64)
    assert proof._is_right(256, 1, CPU, HALF, quantize)

    def swapped(weight: Tensor, *told: Any) -> Product:
        return make_product(weight[:, torch.arange(256) ^ 1], *told)

    monkeypatch.setattr(proof, "make_product", swapped)
    assert not proof._is_right(256, 1, CPU, HALF, quantize)


def test_the_proof_compares_a_text_in_all_ways(folder: Path) -> None:
    class Wrong(GpuDecoder):
        def _logits(self, tokens: Any, last: int, branches: Any) -> Tensor:
            return torch.full((last, 3), float(self.wrong and last == 5 and len(tokens) > 200))

    model = Wrong(*(getattr(load(folder), name) for name in ("config", "_weights", "max_length")))
    for wrong in (False, True):
        Wrong.wrong = wrong
        assert proof._agrees_with_itself(model) is not wrong


def test_where_they_do_not_run_pytorchs_are_used_with_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a compiler for Triton's launchers, say."""
    told = open_checkpoint(str(folder)), CPU, HALF, None
    monkeypatch.setattr(proof, "_TEXT", 20)
    assert _runs_on_gpu(*told, None, None, exact=False)

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(GpuDecoder, "load", fail)
    monkeypatch.setattr(proof, "_agrees", lambda *args: True)
    for exact in (False, True):
        with pytest.warns(RuntimeWarning, match=r"do not run .*C compiler.*PyTorch's are used"):
            assert not _runs_on_gpu(*told, None, None, exact=exact)
        with pytest.raises(ModelError, match=r"native cannot be used on cpu.*choose kernels torch"):
            _runs_on_gpu(*told, "native", None, exact=exact)
    monkeypatch.setattr(proof, "_agrees", lambda *args: False)
    with pytest.warns(RuntimeWarning, match="a product of .* has other bits beside other rows"):
        assert not _runs_on_gpu(*told, None, None, exact=True)


@pytest.mark.parametrize(
    ("capability", "dtype", "quantize", "reason"),
    [
        ((9, 0), torch.bfloat16, "fp8", None),
        ((8, 0), torch.float16, "int8", None),
        ((8, 9), torch.bfloat16, "fp8", "with fp8 layers on cuda:0: it is older than Hopper"),
        ((7, 5), torch.float16, None, "on cuda:0: it is older than Ampere"),
        ((9, 0), torch.float32, None, "in float32"),
    ],
)
def test_a_gpu_runs_on_them_where_it_can(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    quantize: str | None,
    reason: str | None,
) -> None:
    config, device = decoder_config(built_in_config("Qwen3-32B")), torch.device("cuda:0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choice._why_not(config, device, quantize) == (reason if dtype != torch.float32 else None)
    assert is_native(None, config, device, dtype, quantize) is (reason is None)
    assert not is_native("torch", config, device, dtype, quantize)
    monkeypatch.setattr(choice, "version", lambda name: "3.2.0")
    assert not is_native(None, config, device, dtype, quantize)
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert "without Triton" in str(choice._why_not(config, device, quantize))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantize", [None, "fp8"])
def test_what_a_plan_says_of_memory_is_what_they_take(
    monkeypatch: pytest.MonkeyPatch, quantize: str | None, tied: bool
) -> None:
    """Sizes in whole tiles; the cache; and no less than what comes and goes."""
    monkeypatch.setattr(gpu, "CHUNK", KEY_STEP)
    monkeypatch.setattr(gpu, "GPU_CAPACITY", GPU_CAPACITY)
    config = replace(
        decoder_config(built_in_config("Qwen3-0.6B")),
        **{"num_layers": 1, "vocab_size": 1024, "max_length": 2048, "tied": tied},
    )
    source = proof.RandomWeights("random", "qwen3", config)
    model = GpuDecoder.load(source, CPU, HALF, quantize=quantize)
    plan = Plan(config, torch.device("cuda"), HALF, quantize, None, graphs=False, native=True)
    layer, vocabulary = model._weights.layers[0], model._weights.vocabulary
    products = [layer.qkv, layer.output, layer.gate_up, layer.down, vocabulary]
    held = sum(product.weight.nbytes for product in products) + model._weights.embedding.nbytes
    assert held == pytest.approx(plan.weights, rel=0.001)
    room, rows = model._room, model._rows
    assert room.keys.nbytes + room.values.nbytes == plan.cache
    kept = [
        room.mixed,
        room.peaks,
        rows.hidden,
        rows.normed,
        rows.parts,
        rows.query,
        rows.attended,
        rows.gated,
    ]
    logits = 4 * 65 * config.vocab_size
    taken = sum(tensor.nbytes for tensor in kept) + logits
    assert taken <= plan._for_gpu_kernels <= 1.3 * taken
