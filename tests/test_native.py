"""Kernels of our own: the logits of transformers, and bits that depend on the text alone, however
it is split, cached, divided among threads, and whatever is computed beside it."""

import itertools
import mmap
import os
import re
import signal
import sys
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llvmlite import ir
from torch import Tensor
from transformers import AutoModelForCausalLM

from doublespec import LLM
from doublespec.compiled.build import Compiled, has_tiles
from doublespec.compiled.code import ADDRESS, INTEGER, Code
from doublespec.errors import ConfigError, ModelError
from doublespec.models import choice, memory
from doublespec.models.base import Branch, Chain, Worth
from doublespec.models.checkpoints import open_checkpoint
from doublespec.models.choice import choose_dtype, is_native
from doublespec.models.decoder import Decoder
from doublespec.models.load import choose_threads, load_model, load_target, measure_cost
from doublespec.models.memory import FIRST_CAPACITY, Plan
from doublespec.models.native import buffers, decoder, library, pages, tiles
from doublespec.models.native.decoder import NativeDecoder, Packed, pack, pack_int8
from doublespec.models.native.layout import CLAIMED, CLAIMS_APART, PASS, in_order
from doublespec.models.native.library import Library
from doublespec.models.native.model import Storage, _claims, _open, write_model
from doublespec.models.native.pages import in_huge_pages
from doublespec.models.native.products import Tiles
from doublespec.models.native.tiles import scratch_size, tile_shapes
from doublespec.models.quantize import rounded_to_int8
from doublespec.models.sizes import DecoderConfig, Rotary
from doublespec.models.threads import Threads
from doublespec.noise import Heat, _function
from doublespec.oracle import advance
from doublespec.retrieval.chains import Chains
from doublespec.retrieval.recurrence import MOST_GUESSED, Recurrence
from doublespec.sampling import Request, SamplingParams, choose, rank
from doublespec.tokens import common_prefix
from tests.checkpoints import FAMILIES, write_family
from tests.locks import held_by_another_thread

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 96}  # heads of 16
LONG = 300  # more than a block of rows

pytestmark = pytest.mark.skipif(not library.can_compile(), reason="needs FMA and GCC's OpenMP")


def write(folder: Path, family: str, **changes: Any) -> Path:
    return write_family(folder, family, **{**SIZES, **changes})


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> NativeDecoder:
    """A decoder none of whose calls ends early since the machine is busy."""
    model = NativeDecoder.load(open_checkpoint(str(folder)), dtype, **options)
    model.call_seconds = 600.0
    return model


def random_text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference_logits(folder: Path, tokens: list[int]) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def fresh(model: NativeDecoder, tokens: list[int]) -> Tensor:
    """All logits of a text, computed at once by the same weights with an empty cache."""
    return model.fresh().logits(tokens, len(tokens), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grouped queries, norms of queries and keys: whatever the forward pass can do."""
    return write(tmp_path_factory.mktemp("native"), "qwen3")


@pytest.fixture(
    scope="module",
    params=[(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "int8")],
    ids=["fp32", "bf16", "int8"],
)
def model(request: pytest.FixtureRequest, folder: Path) -> NativeDecoder:
    dtype, quantize = request.param
    return load(folder, dtype, quantize=quantize)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- the logits of transformers --------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = write(tmp_path, family)
    tokens = random_text(2 * LONG)
    wanted = reference_logits(folder, tokens)
    logits = load(folder).logits(tokens, len(tokens), 1)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sizes", [{"head_dim": 32}, {"head_dim": 48}, {"head_dim": 80}])
def test_heads_of_any_size_are_turned(sizes: dict[str, int], tmp_path: Path) -> None:
    """Half of one is a number of whole vectors, or not."""
    folder = write(tmp_path, "qwen3", **sizes)
    tokens = random_text(90)
    wanted = reference_logits(folder, tokens)
    torch.testing.assert_close(load(folder).logits(tokens, 90, 1), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("vocab_size", [300, 304])
def test_a_vocabulary_of_any_size_has_its_logits(vocab_size: int, tmp_path: Path) -> None:
    folder = write(tmp_path, "llama3", vocab_size=vocab_size)
    tokens = random_text(30)
    logits = load(folder).logits(tokens, 30, 1)
    assert logits.shape == (30, vocab_size)
    torch.testing.assert_close(logits, reference_logits(folder, tokens), atol=1e-4, rtol=0)


def test_a_tied_table_is_held_once(tmp_path: Path) -> None:
    tied = load(write(tmp_path / "tied", "qwen3-tied"))
    own = load(write(tmp_path / "own", "qwen3"))
    assert (tied._table.shape, own._table.shape) == ((19, 64, 16), (300, 64))
    assert tied._weights.embedding.numel() == 0


def write_halves(folder: Path, family: str) -> Path:
    """A checkpoint in bfloat16."""
    write(folder, family)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def test_a_checkpoint_in_bfloat16_has_the_same_bits_in_both_precisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are held in either, and computed with in float32, where there is no matrix unit."""
    monkeypatch.setattr(decoder, "has_tiles", lambda: False)
    folder, tokens = write_halves(tmp_path, "llama3"), random_text(LONG)
    both = [fresh(load(folder, dtype), tokens) for dtype in (torch.float32, torch.bfloat16)]
    assert torch.equal(*both)


needs_tiles = pytest.mark.skipif(not has_tiles(), reason="needs a matrix unit (Intel's AMX)")


@needs_tiles
@pytest.mark.parametrize("family", ["llama3", "qwen3-tied"])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_matrix_unit_computes_nearly_the_same(
    family: str, quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each input 16 bits count, not 24; and still no row knows of another."""
    folder, tokens = write_halves(tmp_path, family), random_text(LONG)
    model = load(folder, torch.bfloat16, quantize=quantize)
    whole = fresh(model, tokens)
    for threads in (1, 2):
        model.use_threads(threads)
        for rows in (1, 2, 7, 8, 9, 15, 16, 17, 33, 60):
            model.logits(tokens[: LONG - 60], 1, 1)
            assert torch.equal(
                model.logits(tokens[: LONG - 60 + rows], rows, 1), whole[-60:][:rows]
            )
    monkeypatch.setattr(decoder, "has_tiles", lambda: False)
    without = fresh(load(folder, torch.bfloat16, quantize=quantize), tokens)
    torch.testing.assert_close(whole, without, atol=5e-4, rtol=0)
    assert not torch.equal(whole, without)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("outputs", [32, 40])
def test_panels_hold_every_weight_at_its_place(dtype: torch.dtype, outputs: int) -> None:
    """Sixteen outputs side by side; numbers of bfloat16 in pairs: of outputs that are eight apart,
    or for a matrix unit of neighbouring inputs. What is missing of the last panel is 0."""
    weight = torch.arange(outputs * 6).view(outputs, 6).remainder(251).to(dtype)
    panels = pack(weight).panels
    assert panels.shape == (-(-outputs // 16), 6, 16)
    wide = dtype == torch.bfloat16
    for panel, i, lane in itertools.product(range(len(panels)), range(6), range(16)):
        output = 16 * panel + (8 * (lane % 2) + lane // 2 if wide else lane)
        wanted = weight[output, i] if output < outputs else 0
        assert panels[panel, i, lane] == wanted
    if wide:
        pairs = pack(weight, tiled=True).panels.view(-1, 3, 16, 2)
        padded = torch.cat((weight, weight.new_zeros(-outputs % 16, 6)))
        assert torch.equal(pairs, padded.view(-1, 16, 3, 2).transpose(1, 2))


@needs_tiles
@pytest.mark.parametrize("outputs", [16, 80, 300])
@pytest.mark.parametrize("depth", [32, 96, 704])
@pytest.mark.parametrize("sixteens", [None, 2])
def test_a_product_on_a_matrix_unit_has_the_same_bits_for_any_number_of_rows(
    outputs: int, depth: int, sixteens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where weights are read several times, as the cache holds the inputs of so few rows."""
    if sixteens is not None:
        monkeypatch.setattr(tiles, "_CACHED", sixteens * 16 * (depth + 32))
    config = DecoderConfig(300, 64, depth, 1, 4, 2, 16, 1e-5, False, 99, Rotary((1.0,) * 8))
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, depth, generator=generator).bfloat16()
    bias, rows = (torch.randn(*size, generator=generator) for size in ((outputs,), (75, depth)))
    kernels = Library(config, Storage("float32", "tiled"))
    packed, scratch = pack(weight, bias, tiled=True), torch.empty(scratch_size(config))
    more = scratch.data_ptr(), tile_shapes().ctypes.data
    whole = multiply(kernels, packed, rows, more=more)
    wanted = rows.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(whole[:, :outputs].double(), wanted, atol=1e-3, rtol=0)
    for count in range(1, len(rows)):
        part = multiply(kernels, packed, rows[-count:].contiguous(), more=more)
        assert torch.equal(part, whole[-count:])


def test_weights_in_bfloat16_are_rounded(folder: Path) -> None:
    tokens = random_text(30)
    exact, rounded = (
        load(folder, d).logits(tokens, 30, 1) for d in (torch.float32, torch.bfloat16)
    )
    assert 0 < (exact - rounded).abs().max() < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_layers_are_those_of_pytorchs_kernels(dtype: torch.dtype, tmp_path: Path) -> None:
    """The same whole numbers and scales, with biases."""
    source = open_checkpoint(str(write(tmp_path, "llama-biased")))
    tokens = random_text(60)
    ours = NativeDecoder.load(source, dtype, quantize="int8").logits(tokens, 60, 1)
    theirs = load_model(
        source, CPU, dtype, canonical=False, quantize="int8", kernels="torch"
    ).logits(tokens, 60, 1)
    tolerance = 1e-4 if dtype is torch.float32 else 0.2
    torch.testing.assert_close(ours, theirs.float(), atol=tolerance, rtol=0)
    exact = NativeDecoder.load(source, dtype).logits(tokens, 60, 1)
    assert (exact - ours).std() > 3e-3


# -- bits that depend on the text alone ------------------------------------------------------------


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[list[int], int, list[Branch]]]:
    """Requests (tokens, last, branches) of one base text: it grows, is cut back, is followed by
    guesses that turn out wrong, with branches from anywhere."""
    base = random_text(LONG, seed=draw(st.integers(0, 3)))
    requests = []
    for _ in range(draw(st.integers(2, 6))):
        length = draw(st.one_of(st.integers(1, 60), st.integers(1, len(base))))
        tokens = base[:length] + random_text(draw(st.integers(0, 20)), draw(st.integers(10, 12)))
        last = draw(st.one_of(st.integers(1, min(40, len(tokens))), st.just(len(tokens))))
        runs = st.lists(st.integers(0, 299), min_size=1, max_size=6).map(tuple)
        branch = st.builds(Branch, st.integers(1, len(tokens)), runs)
        requests.append((tokens, last, draw(st.lists(branch, max_size=4))))
    return requests


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=calls(), count=st.integers(1, 3))
def test_bits_depend_on_the_text_alone(
    model: NativeDecoder,
    threads: None,
    requests: list[tuple[list[int], int, list[Branch]]],
    count: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "usable_cores", lambda: 3)
        used = model.fresh()
    for tokens, last, branches in requests:
        torch.set_num_threads(count)
        rows, ends = used.branch_logits(tokens, last, branches, 1)
        torch.set_num_threads(1)
        assert torch.equal(rows, fresh(model, tokens)[-last:])
        for branch, end in zip(branches, ends, strict=True):
            alone = fresh(model, [*tokens[: branch.start], *branch.tokens])[-1]
            torch.testing.assert_close(end, alone, atol=1e-4, rtol=0)


def test_one_token_at_a_time_equals_many_at_once(model: NativeDecoder) -> None:
    tokens, used = random_text(LONG), model.fresh()
    rows = [used.logits(tokens[:stop], 1, 20) for stop in range(1, len(tokens) + 1)]
    assert torch.equal(torch.cat(rows), fresh(model, tokens))


def test_what_is_cached_is_not_computed_again(model: NativeDecoder) -> None:
    tokens, used = random_text(100), model.fresh()
    used.logits(tokens, 1, 60)
    assert used.unread([*tokens, 5], 60) == 1
    filled: list[tuple[int, int]] = []
    fill = used._memory.room.rows.fill
    used._memory.room.rows.fill = lambda start, new, ahead: (  # type: ignore[method-assign]
        filled.append((start, len(new))) or fill(start, new, ahead)
    )
    used.logits([*tokens[:90], 5, 6], 1, 60)
    assert filled == [(90, 2)]


def test_the_baseline_of_benchmarks_works_in_the_same_memory(model: NativeDecoder) -> None:
    """Where that lies makes one decoder faster than another with the same weights."""
    tokens, used = random_text(FIRST_CAPACITY + 10), model.fresh()
    fastest = used.fastest()
    used.use_threads(3)
    assert fastest._num_threads is None and fastest.threads is None
    used.logits(tokens[:100], 1, 60)
    assert fastest.unread([*tokens[:100], 5], 60) == 1
    rows = fastest.logits(tokens, 5, 60)  # it grows
    assert used.unread(tokens, 60) == 0
    assert torch.equal(rows, fresh(model, tokens)[-5:])
    assert torch.equal(used.logits([*tokens[:90], 5], 1, 60), fresh(model, [*tokens[:90], 5])[-1:])


def test_growing_the_cache_changes_no_bit(model: NativeDecoder) -> None:
    tokens, used = random_text(FIRST_CAPACITY + 10), model.fresh()
    before = used.logits(tokens[:FIRST_CAPACITY], 5, 30)
    after = used.logits(tokens, 15, 30)
    assert torch.equal(before, after[:5])
    assert torch.equal(after, fresh(model, tokens)[-15:])


@pytest.mark.parametrize("part", ["check_cache", "_lay_out"])
def test_an_interrupt_while_the_cache_grows_changes_no_bit(
    model: NativeDecoder, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, used = random_text(FIRST_CAPACITY + 20), model.fresh()
    used.logits(tokens[:FIRST_CAPACITY], 1, 30)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"doublespec.models.native.decoder.{part}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            used.logits(tokens, 1, 30)
    short = tokens[: FIRST_CAPACITY - 10]
    assert torch.equal(used.logits(short, 1, 30), fresh(model, short)[-1:])
    assert torch.equal(used.logits(tokens, 1, 30), fresh(model, tokens)[-1:])


def test_an_interrupt_leaves_no_lie_in_the_cache(
    model: NativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = model.fresh()
    before, other = random_text(100), [*random_text(80), *random_text(60, seed=5)]
    used.logits(before, 1, 50)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(used._library, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            used.logits(other, 1, 50)
    for tokens in (before, other):
        assert torch.equal(used.logits(tokens, 10, 50), fresh(model, tokens)[-10:])


def test_a_text_that_is_changed_afterwards_changes_nothing(model: NativeDecoder) -> None:
    tokens, used = random_text(50), model.fresh()
    used.logits(tokens, 1, 20)
    tokens[10] = 7
    assert torch.equal(used.logits(tokens, 1, 20), fresh(model, tokens)[-1:])


def test_a_text_as_long_as_the_context_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama2", max_position_embeddings=50)
    tokens, model = random_text(50), load(folder)
    model.logits(tokens[:49], 1, 40)
    wanted = reference_logits(folder, tokens)[-1:]
    torch.testing.assert_close(model.logits(tokens, 1, 40), wanted, atol=1e-4, rtol=0)
    assert load(folder, max_length=40).max_length == 40


def test_a_cache_that_does_not_fit_is_refused(
    model: NativeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = model.fresh()
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    with pytest.raises(ModelError, match="the cache for 2048 tokens needs"):
        used.logits(random_text(FIRST_CAPACITY + 1), 1, 1)


# -- products --------------------------------------------------------------------------------------


def multiply(
    library: Library, packed: Packed, rows: Tensor, threads: int = 1, more: tuple[int, ...] = ()
) -> Tensor:
    count, inputs = packed.panels.shape[0], packed.panels.shape[1]
    outputs = torch.full((len(rows) * len(packed.bias) + 100,), 7.0)
    library.multiply(
        rows.data_ptr(), inputs, len(rows), packed.panels.data_ptr(), 16, 16 * inputs, inputs,
        packed.bias.data_ptr(), 0 if packed.scale is None else packed.scale.data_ptr(), 0, count,
        outputs.data_ptr(), 16 * count, 0, *more, threads,
    )  # fmt: skip
    assert (outputs[-100:] == 7).all(), "written beyond its end"
    return outputs[:-100].view(len(rows), -1)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("outputs", [16, 80, 300])
def test_a_product_of_any_number_of_rows_has_the_same_bits(
    storage: str, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the tiles of a CPU with AVX-512 and of one without, whichever this is."""
    config = DecoderConfig(300, 64, 96, 1, 4, 2, 16, 1e-5, False, 99, Rotary((1.0,) * 8))
    generator = torch.Generator().manual_seed(outputs)
    dtype = torch.bfloat16 if storage == "bfloat16" else torch.float32
    weight = torch.randn(outputs, 70, generator=generator).to(dtype)
    bias, rows = (torch.randn(*size, generator=generator) for size in ((outputs,), (41, 70)))
    exact = weight
    if storage == "int8":
        rounded, scales = rounded_to_int8(weight)
        exact = rounded.float() * scales[:, None]
    found = []
    for registers in (8, 32):
        monkeypatch.setattr(library, "_tiles", lambda count=registers: Tiles(count))
        kernels = Library(config, Storage("float32", storage))
        packed = pack_int8(weight, bias) if storage == "int8" else pack(weight, bias)
        whole = multiply(kernels, packed, rows)
        wanted = rows.double() @ exact.double().T + bias.double()
        torch.testing.assert_close(whole[:, :outputs].double(), wanted, atol=1e-4, rtol=0)
        for count in range(1, len(rows)):
            for threads in (1, 3):
                part = multiply(kernels, packed, rows[-count:].contiguous(), threads)
                assert torch.equal(part, whole[-count:])
        found.append(whole)
    assert torch.equal(*found)


# -- chains ----------------------------------------------------------------------------------------


def step_by_step(
    model: NativeDecoder, text: list[int], count: int, size: int, heat: Heat | None
) -> Chain:
    """The same by one forward and one choice at a time."""
    chain, (temperature, seed) = Chain([], []), heat or (0.0, 0)
    request = Request(SamplingParams(temperature=temperature, seed=seed), 1)
    for _ in range(count):
        ahead = [*text, *chain.tokens]
        (ranking,) = rank(model.logits(ahead, 1, 1)[:, :size], ahead, len(ahead), request, 2)
        chain.tokens.append(ranking.tokens[0])
        chain.behind.append(ranking.behind[1])
    return chain


@pytest.mark.parametrize("size", [300, 129, 7])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("heat", [None, Heat(0.7, 3), Heat(1.5, 1 << 40), Heat(1e-60, 2)])
def test_a_chain_is_what_single_forwards_choose(
    folder: Path, size: int, threads: int, heat: Heat | None
) -> None:
    model, other = load(folder), load(folder)
    model.use_threads(threads)
    text = random_text(40)
    wanted = step_by_step(other, text, 12, size, heat)
    found = model.chain(text, 12, size, (), Worth(), heat)
    assert found.tokens == wanted.tokens
    assert found.behind == pytest.approx(wanted.behind)
    assert torch.equal(model.logits(text, 40, 1), other.logits(text, 40, 1))  # its cache is right
    behind = [*text, *wanted.tokens[:5]]
    assert model.chain(behind, 7, size, (), Worth(), heat).tokens == wanted.tokens[5:]
    assert model.chain(random_text(1), 1, size, (), Worth()).tokens[0] < size
    assert torch.equal(model.logits(behind, 45, 1), other.logits(behind, 45, 1))


def chosen(model: NativeDecoder, text: list[int], count: int, heat: Heat | None) -> list[int]:
    """What `sampling.choose` makes of one forward after the other, by a model of its own."""
    params = SamplingParams(heat.temperature, seed=heat.seed) if heat else SamplingParams()
    ahead, other = text.copy(), model.fresh()
    for _ in range(count):
        ahead += choose(other.logits(ahead, 1, 1), ahead, len(ahead), Request(params, 1))
    return ahead[len(text) :]


@pytest.mark.parametrize("heat", [None, Heat(0.7, 3), Heat(1.5, (1 << 63) - 1), Heat(1e-60, 2)])
@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_settled_is_what_single_forwards_choose(
    folder: Path, heat: Heat | None, stopped: bool
) -> None:
    """However much of a guess holds, however many forwards are made, and also where each of them is
    stopped behind every layer."""
    model, text = load(folder), random_text(40)
    wanted = chosen(model, text, 12, heat)
    wrong = (wanted[4] + 1) % 300
    if stopped:
        model.call_seconds = 0.0
    guesses = [], wanted[:5], [*wanted[:4], wrong, *wanted[5:8]], [wrong, 1], wanted[:8]
    for guess in guesses:
        kept = common_prefix(guess, wanted) + 1
        for passes in (1, 3):
            model.logits(text[:-1], 1, 1)
            found = model.settle(text, guess, passes, (), heat)
            assert found == wanted[: len(found)]
            assert len(found) >= kept
            assert stopped or len(found) == kept + passes - 1
            after = [*text, *found]
            assert torch.equal(model.logits(after, 9, 1), fresh(model, after)[-9:])  # its cache
        assert model.settle([*text, 7], guess, 1, (), heat) != []  # the text before it is known
        del model._memory.cached[25:]  # more is to be read at the same time
        assert model.settle(text, guess, 2, (), heat)[:kept] == wanted[:kept]
    assert model.settle(random_text(LONG, seed=1), [], 1, (), heat) == []


@pytest.mark.parametrize("name", ["heat", "ends", "tokens", "behind", "guess"])
def test_an_interrupt_while_kernels_are_told_leaves_no_lie(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the next answer is chosen by is its own, also if it asks for the same again."""
    model, text, ends = load(folder), random_text(40), frozenset({1, 2})
    asked = [5, 6], 90, ends, Heat(1.4, 8)
    wanted = chosen(model, text, 90, asked[-1])
    wanted = wanted[: next((i + 1 for i, t in enumerate(wanted) if t in ends), 90)]
    model.logits(text[:-1], 1, 1)
    model.settle(text, [], 1, frozenset(), Heat(0.3, 4))
    hold = model._plan._hold

    def interrupted(what: str, numbers: Any) -> Any:
        if what == name:
            raise KeyboardInterrupt
        return hold(what, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(model._plan, "_hold", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.settle(text, *asked)
    found = model.settle(text, *asked)
    assert found == wanted[: len(found)]
    assert len(found) == min(len(wanted), 90)


def test_nothing_is_settled_behind_an_end(folder: Path) -> None:
    model, text = load(folder), random_text(40)
    wanted = chosen(model, text, 8, None)
    model.logits(text[:-1], 1, 1)
    stop = wanted.index(wanted[3]) + 1
    assert model.settle(text, wanted, 3, frozenset({wanted[3]}), None) == wanted[:stop]
    assert model.settle(text, [], 8, frozenset({wanted[3]}), None) == wanted[:stop]
    assert model.settle(text, [], 8, frozenset(), None) == wanted  # none is remembered


FREE = (1.0,) * (MOST_GUESSED + 1)  # what rows cost: as many tokens are guessed as can be


def guesses(text: list[int], most: int, costs: tuple[float, ...] = FREE) -> Recurrence:
    chains = Chains()
    chains.extend(text)
    return Recurrence().begin(chains, costs, most)


@pytest.mark.parametrize("heat", [None, Heat(0.7, 3), Heat(1.5, (1 << 63) - 1)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_guessed_ahead_is_judged_by_the_next_pass(
    folder: Path, heat: Heat | None, threads: int, stopped: bool
) -> None:
    """Behind a guess, too, and where each pass is stopped behind every layer; the tokens are the
    same, right or wrong as guesses are."""
    model, text = load(folder), random_text(40)
    model.use_threads(threads)
    wanted = chosen(model, text, 16, heat)
    if stopped:
        model.call_seconds = 0.0
    wrong = [*wanted[:9], (wanted[9] + 1) % 300, 5, 6, *wanted[12:]]
    for guess, passes in (([], 16), (wanted[:3], 8), ([wanted[0], 299], 9), (wanted[:8], 1)):
        most = min(len(guess) + passes, 16)
        for told in (wanted, wrong):
            model.logits(text[:-1], 1, 1)
            recurrence = guesses([*text, 7, *told[1:], 8], most)  # where it stands already
            found = model.settle(text, guess, passes, (), heat, recurrence.guesser)
            judged = recurrence.over(found)
            assert found == wanted[: len(found)]
            after = [*text, *found]
            assert torch.equal(model.logits(after, 9, 1), fresh(model, after)[-9:])  # its cache
            assert stopped or len(found) == most
            if not guess and not stopped:
                kept = [common_prefix(one.shown, wanted[one.place :]) for one in judged]
                assert sum(kept) > 5
                assert (told is wanted) == all(
                    count == len(one.shown) for count, one in zip(kept, judged, strict=True)
                )
        again = model.settle(text, [], 8, (), heat)  # without it
        assert again == wanted[: len(again)]


def test_a_guess_ahead_is_cut_where_it_must_be(folder: Path) -> None:
    """By the room that there is for it, at ids that the model does not have, and behind an end."""
    model, text = load(folder), random_text(40)
    wanted = chosen(model, text, 16, None)
    for odd in (300, 1 << 30):
        model.logits(text[:-1], 1, 1)
        recurrence = guesses([*text, *wanted[:6], odd, *wanted[:3]], 16)
        assert model.settle(text, [], 16, (), None, recurrence.guesser) == wanted
    recurrence = guesses([*text, 7, *wanted, 8], 16)
    few = recurrence.guesser._replace(most=1)
    assert model.settle(text, [], 16, (), None, few) == wanted
    assert max(len(one.shown) for one in recurrence.over(wanted)) > 1  # so many were guessed
    recurrence = guesses([*text, 7, *wanted, 8], 16)
    found = model.settle(text, [], 3, (), None, recurrence.guesser, 16)
    judged = recurrence.over(found)
    assert found == wanted[: len(found)]
    assert 3 < len(found) == 3 + sum(len(one.shown) for one in judged)  # in three passes
    recurrence = guesses([*text, 7, *wanted, 8], 5)
    assert model.settle(text, [], 9, (), None, recurrence.guesser, 5) == wanted[:5]
    end = wanted[9]
    stop = wanted.index(end) + 1
    recurrence = guesses([*text, 7, *wanted, 8], 16)
    assert model.settle(text, [], 16, frozenset({end}), None, recurrence.guesser) == wanted[:stop]
    assert model.settle(text, [], 16, (), None) == wanted  # nothing of it is remembered


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_chosen_from_outside(folder: Path, odd: float) -> None:
    model, text = load(folder), random_text(40)
    model.logits(text[:-1], 1, 1)
    model._weights.vocabulary.bias[17] = odd
    for temperature in (0.0, 0.8):
        request = Request(SamplingParams(temperature), 1)
        assert model.settle(text, [], 4, (), request.params.heat) == []
        settled = advance(model, text, [1, 2], request).tokens
        assert settled[0] == chosen(model, text, 1, request.params.heat)[0]


def test_a_chain_ends_behind_an_id_that_ends_the_answer(folder: Path) -> None:
    model = load(folder)
    whole = model.chain(random_text(40), 12, 300, (), Worth()).tokens
    end = whole[4]
    found = model.chain(random_text(40), 12, 300, {end, 299}, Worth()).tokens
    assert found == whole[: whole.index(end) + 1]


def test_a_chain_goes_on_while_that_is_worth_it(folder: Path) -> None:
    model = load(folder)
    whole = model.chain(random_text(40), 12, 300, (), Worth())
    edges, chances = (0.02, 0.05, 0.1), (0.5, 0.7, 0.9, 0.99)
    for least in (0.9, 0.5, 0.2, 0.05):
        reach, wanted = 1.0, 0
        while wanted < 12 and (wanted == 0 or reach > least):
            reach *= chances[bisect_right(edges, whole.behind[wanted])]
            wanted += 1
        found = model.chain(random_text(40), 12, 300, (), Worth(edges, chances, least))
        assert found == Chain(whole.tokens[:wanted], whole.behind[:wanted])


def test_an_interrupted_chain_leaves_a_cache_that_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = load(folder), load(folder)
    text = random_text(40)
    model.logits(text, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(model._library, "chain", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.chain(text, 5, 300, (), Worth())
    assert torch.equal(model.logits(text, 40, 1), other.logits(text, 40, 1))


# -- which models run on them ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_the_default(folder: Path, dtype: torch.dtype) -> None:
    config = open_checkpoint(str(folder)).config
    assert is_native(None, config, CPU, dtype)
    assert is_native("native", config, CPU, dtype)
    assert not is_native("torch", config, CPU, dtype)


@pytest.mark.parametrize(
    ("device", "dtype", "quantize", "reason"),
    [
        ("cuda:0", torch.float32, None, "(on cuda:0|without Triton).*"),
        ("cpu", torch.float16, None, "in float16"),
        ("cpu", torch.float32, "fp8", "with fp8 layers"),
    ],
)
def test_what_they_cannot_compute_is_left_to_pytorch_and_refused_where_asked_for(
    folder: Path, device: str, dtype: torch.dtype, quantize: str | None, reason: str
) -> None:
    config, place = open_checkpoint(str(folder)).config, torch.device(device)
    assert not is_native(None, config, place, dtype, quantize)
    with pytest.raises(ConfigError, match=f"kernels native cannot be used {reason}; choose"):
        is_native("native", config, place, dtype, quantize)


def test_sizes_that_are_no_whole_vectors_are_left_to_pytorch(tmp_path: Path) -> None:
    odd = open_checkpoint(str(write_family(tmp_path, "llama2")))  # heads of 8
    assert isinstance(load_model(odd, CPU, torch.float32, canonical=True), Decoder)
    with pytest.raises(ConfigError, match=r"sizes \(32, 48, 8\), not all multiples of 16"):
        load_model(odd, CPU, torch.float32, canonical=True, kernels="native")


def test_several_devices_are_left_to_pytorch(folder: Path) -> None:
    with pytest.raises(ConfigError, match="kernels native cannot be used on several devices"):
        load_target(
            open_checkpoint(str(folder)), [CPU, CPU], torch.float32, threads=1, kernels="native"
        )


def test_a_cpu_without_fma_is_left_to_pytorch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "can_compile", lambda: False)
    with pytest.raises(ConfigError, match="on this CPU or with this build of PyTorch"):
        is_native("native", open_checkpoint(str(folder)).config, CPU, torch.float32)


def test_the_precision_that_suits_them_is_bfloat16(folder: Path, tmp_path: Path) -> None:
    config = open_checkpoint(str(folder)).config
    odd = open_checkpoint(str(write_family(tmp_path, "llama2"))).config
    pytorchs = choose_dtype(None, "torch", config, [CPU])
    assert choose_dtype(None, None, config, [CPU]) == torch.bfloat16
    assert choose_dtype("float32", None, config, [CPU]) == torch.float32
    assert choose_dtype(None, None, odd, [CPU]) == pytorchs
    assert choose_dtype(None, None, config, [CPU, CPU]) == pytorchs


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_an_llm_answers_alike_by_all_methods_on_either(kernels: str) -> None:
    settings = {"kernels": kernels, "dtype": "float32", "background": "thread"}
    with LLM("bundled", "bundled", **settings) as llm:
        assert isinstance(llm.target, NativeDecoder if kernels == "native" else Decoder)
        prompt = "A dog and a cat"
        texts = {
            method: llm.generate(prompt, method=method, max_tokens=24, temperature=0.8).tokens
            for method in ("ar", "lookup", "sd", "double")
        }
    assert len(set(texts.values())) == 1
    assert len(texts["ar"]) == 24


def test_what_samples_is_compiled_with_the_model(folder: Path) -> None:
    """Not when the first token is sampled."""
    _function.cache_clear()
    load_model(open_checkpoint(str(folder)), CPU, torch.float32, canonical=False)
    assert _function.cache_info().currsize == 1


def test_all_cores_need_no_proof(model: NativeDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doublespec.models.load.usable_cores", lambda: 2)
    used = model.fresh()
    choose_threads(used, 1, None, measure_cost(used))
    assert used.threads is not None
    assert used.threads.may_change
    tokens = random_text(100)
    assert torch.equal(used.logits(tokens, 100, 1), fresh(model, tokens))


class _Watched:
    """Counts the calls of forwards."""

    def __init__(self, library: Library) -> None:
        self.chain = library.chain
        self.calls = 0
        self._library = library

    def forward(self, *arguments: Any) -> None:
        self.calls += 1
        self._library.forward(*arguments)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_forward_is_interrupted_and_gone_on_with(model: NativeDecoder, threads: int) -> None:
    tokens = random_text(LONG + 7)
    wanted = fresh(model, tokens)
    used = model.fresh()
    used.use_threads(threads)
    used._library = watched = _Watched(used._library)  # type: ignore[assignment]
    assert torch.equal(used.logits(tokens, len(tokens), 1), wanted)
    assert watched.calls == 2  # a block each
    used = model.fresh()
    used.use_threads(threads)
    used._library, used.call_seconds = watched, 0.0  # type: ignore[assignment]
    watched.calls = 0
    assert torch.equal(used.logits(tokens, len(tokens), 1), wanted)
    assert watched.calls == 2 * model.config.num_layers


class _Impatient(Threads):
    """Takes any layer for a late one."""

    def __init__(self, model: NativeDecoder) -> None:
        layers = model.config.num_layers
        super().__init__(1, 2, (), lambda rows: 1.0, layers, set_threads=self._set)
        self._model = model
        self.used: list[int] = []
        self.late: list[float] = []

    def _set(self, number: int) -> None:
        self.used.append(number)
        self._model.use_threads(number)

    def begin(self, rows: int) -> None:
        super().begin(rows)
        self.patience = 1e-9

    def _choose(self, rows: int, blocks: Any) -> bool:
        super()._choose(rows, blocks)
        return True

    def took(self, seconds: float) -> None:
        self.late.append(seconds)
        super().took(seconds)


def test_a_late_layer_ends_the_use_of_all_cores(model: NativeDecoder) -> None:
    tokens, used = random_text(20), model.fresh()
    threads = _Impatient(used)
    used.choose_threads(threads)
    assert torch.equal(used.logits(tokens, 20, 1), fresh(model, tokens))
    assert threads.used == [2, 1, 1]  # at first, after a layer, and between forwards
    assert [0 < seconds < 1 for seconds in threads.late] == [True]


def test_the_memory_of_a_plan_holds_one_table_and_a_cache_in_float32(folder: Path) -> None:
    config = open_checkpoint(str(folder)).config
    assert config is not None
    plan = Plan(config, CPU, torch.bfloat16, None, None, native=True)
    assert plan.cache == plan.cache_tokens * config.cache_bytes_per_token(torch.float32)
    assert plan.weights == config.num_parameters() * 2


# -- cores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 64, 100])
def test_a_core_does_its_own_share_and_then_what_others_have_not_begun(
    threads: int, count: int
) -> None:
    module, told = ir.Module(), {"pass": ADDRESS, "thread": INTEGER, "threads": INTEGER}
    with Code(module, "open", told, inner=False) as code:
        _open(code, "mlp", "down")
    more = {"all": INTEGER, "done": ADDRESS}
    with (
        Code(module, "work", told | more, inner=False) as code,
        _claims(code, "down", code["all"], 4) as piece,
        code.loop(*piece) as i,
    ):
        number = code.load(code["done"], 0, INTEGER) + 1
        code.store(number, code["done"], 0)
        code.store(i, code["done"], number)
    compiled = Compiled(module)
    begin = compiled.function("open", list(told.values()))
    work = compiled.function("work", [*told.values(), *more.values()])
    claims = torch.full((len(CLAIMED), threads, CLAIMS_APART), 9, dtype=torch.int64)
    of_pass = in_order(PASS, {**dict.fromkeys(PASS, 0), "claims": claims.data_ptr()})
    place = of_pass.buffer_info()[0]
    done = torch.zeros(count + 1, dtype=torch.int64)

    def made(thread: int) -> list[int]:
        done.zero_()
        work(place, thread, threads, count, done.data_ptr())
        return [int(number) for number in done[1 : done[0] + 1]]

    for thread in range(threads):
        begin(place, thread, threads)
    last = count * (threads - 1) // threads
    parts = [count * thread // threads for thread in range(threads + 1)]
    assert made(threads - 1) == [*range(last, count), *range(last)]  # while the others are away
    assert not any(made(thread) for thread in range(threads))
    for thread in range(threads):
        begin(place, thread, threads)
        claims[CLAIMED.index("down"), thread, 0] = 4  # are begun already
    shares = [range(start + 4, stop) for start, stop in itertools.pairwise(parts)]
    assert made(0) == list(itertools.chain.from_iterable(shares))


# -- memory ----------------------------------------------------------------------------------------


def test_weights_that_serve_several_rows_are_asked_for_beforehand(folder: Path) -> None:
    config = open_checkpoint(str(folder)).config
    assert config is not None
    source = str(write_model(config, Storage("bfloat16", "int8"), Tiles(8)))
    found = re.findall(r'(define [^\n]*@"tile_(\w+)_(\d+)_\d+".*?\n})', source, re.DOTALL)
    assert {storage for _, storage, _ in found} == {"bfloat16", "float32", "int8"}
    for code, _, rows in found:
        assert ("llvm.prefetch" in code) == (int(rows) > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(3, 5, 16), (1 << 9, 257, 16)])
def test_weights_in_huge_pages_are_the_same(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = torch.arange(prod(shape)).remainder(251).sub(100).view(shape).to(dtype)
    found = in_huge_pages(values.transpose(0, 1))
    assert found.is_contiguous()
    assert torch.equal(found, values.transpose(0, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="only there it can be seen")
def test_large_weights_are_meant_for_huge_pages() -> None:
    found = in_huge_pages(torch.ones(5 << 20, dtype=torch.int8).view(-1, 16))
    first, last = found.data_ptr(), found.data_ptr() + (4 << 20) - 1
    assert first % (2 << 20) == 0
    assert are_meant_for_huge_pages(first, last)


def are_meant_for_huge_pages(*places: int) -> bool:
    flags = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, stop = (int(number, 16) for number in match.groups())
        elif line.startswith("VmFlags:"):
            flags |= {place: line.split() for place in places if start <= place < stop}
    return all("hg" in flags[place] for place in places)


@pytest.mark.skipif(sys.platform != "linux", reason="only there it can be seen")
def test_small_weights_share_huge_pages_and_overwrite_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "_shared", pages._Shared())
    sizes = [1, 63, 64, 65, 1000, *[700_000] * 40]  # more than are mapped at a time
    found = [
        in_huge_pages(torch.full((size,), i, dtype=torch.int8)) for i, size in enumerate(sizes)
    ]
    places = [tensor.data_ptr() for tensor in found]
    assert are_meant_for_huge_pages(*places)
    assert all(place % 64 == 0 for place in places)
    assert places[4] - places[0] == 64 + 64 + 64 + 128
    assert all(torch.equal(t, torch.full_like(t, i)) for i, t in enumerate(found))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
def test_a_process_that_is_forked_while_others_read_weights_reads_its_own() -> None:
    with held_by_another_thread(pages._shared._mutex.lock):
        pid = os.fork()
        if pid == 0:
            signal.alarm(5)  # who waits for a thread that it lacks is ended
            os._exit(0 if in_huge_pages(torch.ones(16))[-1] == 1 else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_shared_pages_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_shared", pages._Shared())
    mapped, usual = [], mmap.mmap

    def make(*args: Any, **options: Any) -> mmap.mmap:
        memory = usual(*args, **options)
        mapped.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(mmap, "mmap", make)
    found = [in_huge_pages(torch.ones(700_000, dtype=torch.int8)) for _ in range(40)]
    assert [memory() is None for memory in mapped] == [False, False]
    found = found[1:]
    assert mapped[0]() is not None
    found = found[-1:]
    assert [memory() is None for memory in mapped] == [True, False]


def test_a_system_without_huge_pages_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # it knows no such advice
    values = torch.arange(3 << 20, dtype=torch.int32).view(-1, 16)
    assert torch.equal(in_huge_pages(values), values)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert torch.equal(in_huge_pages(values), values)
