"""What only a CUDA device can show: `pytest -m gpu` (docs/gpu.md). A warning is a failure here."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from doublespec import LLM, sampling
from doublespec.models import graphs
from doublespec.models.base import Worth
from doublespec.models.checkpoints import open_checkpoint, open_source
from doublespec.models.decoder import Decoder
from doublespec.models.graphs import find_capture
from doublespec.models.memory import FIRST_CAPACITY
from doublespec.noise import Heat
from doublespec.sampling import Request, SamplingParams, choose
from tests.checkpoints import write_family
from tests.test_decoder import CROSSING, random_text

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EVERYTHING = SamplingParams(
    temperature=0.8,
    top_k=40,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.2,
    frequency_penalty=0.1,
    logit_bias={3: 1.0, 5: -2.0},
)


@contextmanager
def no_waiting() -> Iterator[None]:
    """PyTorch raises where the host waits for the device."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module", params=[True, False], ids=["canonical", "fastest"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Decoder, Decoder]:
    """The same decoder without and with recorded steps."""
    folder = write_family(tmp_path_factory.mktemp("gpu"), "qwen3", hidden_size=256, head_dim=64)
    checkpoint, capture = open_checkpoint(str(folder)), find_capture(DEVICE)
    options = {"canonical": request.param}
    plain, recorded = (
        Decoder.load(checkpoint, DEVICE, torch.bfloat16, capture=each, **options)
        for each in (None, capture)
    )
    return plain, recorded


def test_recorded_steps_have_the_bits_of_computed_ones(pair: tuple[Decoder, Decoder]) -> None:
    """Three times, so that every bucket is recorded; in the fastest shapes, where recordings may be
    padded, they have those of any other forward but for rounding."""
    plain, recorded = pair
    tokens = random_text(CROSSING)
    for seed in range(3):
        text = [*tokens[:260], *random_text(40, seed=seed)]
        stop = 200
        for size in (1, 1, 3, 1, 5, 1, 3, 1, 8, 1, 3, 5, 16, 1, 8, 1, 3, 5, 8, 1, 1):
            stop += size
            wanted = plain.logits(text[:stop], size, 200)
            found = recorded.logits(text[:stop], size, 200)
            if plain.can_branch:
                torch.testing.assert_close(found, wanted, atol=0.1, rtol=0.1)
            else:
                assert torch.equal(found, wanted)


def test_recordings_outlive_those_that_are_forgotten(
    pair: tuple[Decoder, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working memory of a product is none of a graph that is gone, and a cache that has grown
    none of the old one."""
    monkeypatch.setattr(graphs, "MEETINGS", 1)
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 3)
    plain, _ = pair
    capture = find_capture(DEVICE)
    parts = plain.config, plain._weights, plain.shapes, plain.max_length
    recorded = Decoder(*parts, capture)
    for length in (200, 700, FIRST_CAPACITY - 100, FIRST_CAPACITY + 200):
        text, stop = random_text(length + 700, seed=length), length
        for size in 8 * (1, 3, 1, 5, 1, 8, 1, 16, 2, 1):
            stop += size
            wanted = plain.logits(text[:stop], size, length)
            found = recorded.logits(text[:stop], size, length)
            if plain.can_branch:
                torch.testing.assert_close(found, wanted, atol=0.1, rtol=0.1)
            else:
                assert torch.equal(found, wanted)


def test_a_step_waits_only_for_its_tokens(pair: tuple[Decoder, Decoder]) -> None:
    _, recorded = pair
    tokens, request = random_text(CROSSING), Request(EVERYTHING, 100)
    for stop in range(120, 130):  # recorded by then
        logits = recorded.logits(tokens[:stop], 1, 100)
        choose(logits, tokens, stop, request)
    with no_waiting():
        logits = recorded.logits(tokens[:130], 1, 100)
        best = sampling._scores(logits, tokens, 130, request).argmax(-1)
    assert best.tolist() == choose(logits, tokens, 130, request)


def test_rows_chosen_together_are_those_chosen_alone_on_the_device() -> None:
    logits = torch.randn((48, 50257), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    text, request = random_text(100), Request(EVERYTHING, 20)
    alone = [choose(logits[i : i + 1], text, 40 + i, request)[0] for i in range(len(logits))]
    assert choose(logits, text, 40, request) == alone


# -- kernels of our own ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small model on our kernels; a checkpoint that they can compute."""
    pytest.importorskip("triton")
    from doublespec.models.gpu.decoder import GpuDecoder

    folder = write_family(tmp_path_factory.mktemp("ours"), "qwen3", hidden_size=256, head_dim=64)
    checkpoint = open_checkpoint(str(folder))
    return GpuDecoder.load(checkpoint, DEVICE, torch.bfloat16, capture=find_capture(DEVICE))


@pytest.mark.parametrize("quantize", [None, "int8", "fp8"])
@pytest.mark.parametrize("name", ["random:Qwen3-0.6B", "random:Llama-3.2-1B"])
def test_our_kernels_hold_on_this_device(name: str, quantize: str | None) -> None:
    pytest.importorskip("triton")
    from doublespec.models.gpu.proof import find_difference

    if quantize == "fp8" and torch.cuda.get_device_capability(DEVICE) < (9, 0):
        pytest.skip("fp8 needs Hopper")
    capture = find_capture(DEVICE)
    assert find_difference(open_source(name), DEVICE, torch.bfloat16, quantize, capture) is None


def test_our_rows_have_the_same_bits_in_any_blocks(ours: Any) -> None:
    text, rng = random_text(700), random.Random(0)
    wanted = ours.fresh().logits(text, len(text), 0)
    model = ours.fresh()
    for trial in range(12):
        model, start = model if trial % 2 else ours.fresh(), rng.randrange(1, 650)
        while start < len(text):
            stop = min(start + rng.choice([1, 1, 2, 3, 5, 8, 16, 17, 33, 64]), len(text))
            rows = model.logits(text[:stop], stop - start, start)
            assert torch.equal(rows, wanted[start:stop])
            start = stop


def test_a_chain_on_the_device_is_what_is_chosen_one_by_one(ours: Any) -> None:
    text = random_text(100)
    for heat in (None, None, None, Heat(0.8, 3)):
        params = SamplingParams() if heat is None else SamplingParams(temperature=0.8, seed=3)
        chain, tokens = ours.chain(text, 10, 300, (), Worth(), heat).tokens, text.copy()
        for _ in chain:
            logits = ours.fresh().logits(tokens, 1, 100)
            tokens += choose(logits, tokens, len(tokens), Request(params, 100))
        assert [*text, *chain] == tokens


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_answers_are_those_of_plain_decoding(kernels: str) -> None:
    with LLM("bundled", "bundled", kernels=kernels, target_device=str(DEVICE)) as llm:
        assert llm.kernels == kernels
        for heat in (0.0, 0.8):
            params = SamplingParams(temperature=heat, seed=1, max_tokens=40)
            wanted = llm.generate("Sort these words: pear, fig, apple.", params, method="ar").tokens
            for method in ("lookup", "sd", "double-serial", "double", "auto"):
                found = llm.generate("Sort these words: pear, fig, apple.", params, method=method)
                assert found.tokens == wanted
