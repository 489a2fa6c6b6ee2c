"""A target divided between two ranks gives the tokens of one, and equal bits for every method."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from doublespec.bench.chaos import Census, Leaks
from doublespec.config import Settings
from doublespec.errors import ConfigError, ModelError
from doublespec.llm import LLM
from doublespec.models import parallel
from doublespec.models.checkpoints import open_checkpoint, open_source
from doublespec.models.decoder import Decoder
from doublespec.models.devices import find_devices, use_threads
from doublespec.models.kernels import KernelProbe
from doublespec.models.load import load_target
from doublespec.models.memory import Plan
from doublespec.models.parallel import ParallelDecoder, Share, needed_bytes
from doublespec.models.weights import WHOLE, Checkpoint, Cut, Placement, Size
from tests.checkpoints import write_checkpoint, write_family, write_tokenizer

CPU = torch.device("cpu")
PROMPT = [7, 1, 22, 5, 7, 1, 22, 5, 7, 1]
METHODS_TRIED = ("ar", "lookup", "sd", "double-serial", "psd", "double", "auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Biases after sums, grouped queries, an untied vocabulary."""
    folder = write_family(tmp_path_factory.mktemp("divided") / "model", "llama-biased")
    return write_tokenizer(folder, end_ids=1)


def _load(folder: Path, target_device: str | tuple[str, ...], dtype: str = "float32") -> LLM:
    """With itself as the draft, which works when it is listened to."""
    return LLM(
        folder,
        folder,
        target_device=target_device,
        background="inline",
        dtype=dtype,
        threads=1,
        gamma=3,
        history_bytes=0,
    )


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[LLM]:
    with _load(folder, "cpu") as llm:
        yield llm


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[LLM]:
    with _load(folder, ("cpu", "cpu")) as llm:
        yield llm


def _answer(llm: LLM, method: str, temperature: float) -> tuple[int, ...]:
    completion = llm.generate(
        PROMPT, method=method, temperature=temperature, seed=3, max_tokens=40, ignore_eos=True
    )
    return completion.tokens


# -- two ranks are as good as one ------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0.0, 0.8])
def plain(request: pytest.FixtureRequest, one: LLM) -> tuple[float, tuple[int, ...]]:
    """A temperature, and what plain decoding on one device answers."""
    return request.param, _answer(one, "ar", request.param)


@pytest.mark.parametrize("method", METHODS_TRIED)
def test_two_ranks_give_the_tokens_of_one(
    two: LLM, method: str, plain: tuple[float, tuple[int, ...]]
) -> None:
    temperature, wanted = plain
    assert _answer(two, method, temperature) == wanted


def test_logits_of_two_ranks_are_close_to_those_of_one(one: LLM, two: LLM) -> None:
    tokens = torch.randint(300, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    found, wanted = (llm.target.logits(tokens, 200, 150) for llm in (two, one))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert not torch.equal(found, wanted)  # it is another order of summation


def test_bits_do_not_depend_on_splits_and_caches(two: LLM) -> None:
    """Of a text across borders of key lengths."""
    target = two.target
    text = torch.randint(300, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    wanted = torch.cat([target.logits(text[:stop], 1, 40) for stop in range(40, 101)])
    target.logits([*text[:50], 1, 2, 3], 2, 20)
    start = 39
    for size in (1, 2, 3, 5, 13, 37):
        rows = target.logits(text[: start + size], size, 40)
        assert torch.equal(rows, wanted[start - 39 : start - 39 + size])
        start += size
    assert start == 100


def test_shapes_are_found_for_the_sizes_of_a_rank(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noted(probe: KernelProbe) -> Iterator[object]:
        seen.append(probe.config)
        return iter(())

    monkeypatch.setattr(KernelProbe, "products", noted)
    _plan(folder).read(1, CPU)
    assert [(c.num_heads, c.num_kv_heads, c.intermediate_size) for c in seen] == [(2, 1, 24)]


def test_the_fastest_shapes_have_a_cache_of_their_own_on_every_rank(two: LLM) -> None:
    target = two.target
    assert isinstance(target, ParallelDecoder)
    wanted = target.logits(PROMPT, 4, 5)
    for _ in range(3):
        fastest = target.fastest()
        assert not fastest.shapes.is_canonical()
        found = fastest.logits([3, 4, *PROMPT], 4, 5)
        torch.testing.assert_close(found, fastest.logits([3, 4, *PROMPT], 4, 5))
        assert torch.equal(target.logits([*PROMPT, 9], 5, 5)[:-1], wanted)
        del fastest


# -- what a rank reads -----------------------------------------------------------------------------


def _plan(folder: Path, count: int = 2) -> parallel._Plan:
    checkpoint = open_checkpoint(str(folder))
    return parallel._Plan(checkpoint, checkpoint.config, torch.float32, None, None, count)


@pytest.mark.parametrize("is_random", [False, True])
def test_parts_are_disjoint_and_make_up_the_whole(folder: Path, is_random: bool) -> None:
    source = open_source(f"random:{folder}") if is_random else open_checkpoint(str(folder))
    shares = [Share(source, rank, 2) for rank in range(2)]
    c = source.config
    half, whole = c.intermediate_size // 2, c.intermediate_size
    shapes = {"up_proj": ((half, c.hidden_size), 0), "down_proj": ((c.hidden_size, half), 1)}
    for module, (shape, dim) in shapes.items():
        name = f"model.layers.1.mlp.{module}.weight"
        parts = [share.read(name, shape, (CPU, torch.float32)) for share in shares]
        size = (whole, c.hidden_size) if dim == 0 else (c.hidden_size, whole)
        assert torch.equal(torch.cat(parts, dim), source.read(name, size, (CPU, torch.float32)))
    bias = "model.layers.1.mlp.down_proj.bias"
    assert [share.has(bias) for share in shares] == [True, False]


def test_a_follower_has_no_vocabulary_but_the_embedding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    read = Checkpoint.read

    def noted(
        checkpoint: Checkpoint, name: str, shape: Size, where: Placement, cut: Cut = WHOLE
    ) -> Tensor:
        if cut == WHOLE:
            found.append(name)
        return read(checkpoint, name, shape, where, cut)

    monkeypatch.setattr(Checkpoint, "read", noted)
    part = _plan(folder).read(1, CPU)
    assert "lm_head.weight" not in found
    assert not any("_proj.weight" in name for name in found)  # of these it reads parts
    decoder = Decoder(part.config, part.weights, part.shapes, part.max_length)
    assert decoder.logits(PROMPT, 3, 5).shape == (3, 0)


def test_bytes_are_counted_for_each_rank(folder: Path) -> None:
    config = open_checkpoint(str(folder)).config
    whole = Plan(config, CPU, torch.bfloat16, None, None)
    part = replace(whole, config=config.divided(2))
    table = 2 * config.vocab_size * config.hidden_size
    first, other = needed_bytes(part, 0), needed_bytes(part, 1)
    assert first == part.total
    assert first - other == table  # which has no product with the vocabulary
    in_layers = 2 * config.num_layer_weights()
    assert 2 * (first - part.cache - part.working) == 2 * whole.weights - in_layers
    assert needed_bytes(replace(part, quantize="int8"), 1) < other


# -- what is refused -------------------------------------------------------------------------------


def _refusal(folder: Path, count: int) -> str:
    with pytest.raises(ModelError) as caught:
        load_target(open_checkpoint(str(folder)), [CPU] * count, torch.float32, threads=1)
    return str(caught.value)


def test_what_does_not_divide_is_refused(folder: Path, tmp_path: Path) -> None:
    assert _refusal(folder, 3) == (
        "4 attention heads cannot be divided evenly among 3 target devices; choose a number of "
        "devices that divides 2"
    )
    assert "2 key and value heads cannot be divided evenly among 4" in _refusal(folder, 4)
    odd = write_family(tmp_path, "llama2", intermediate_size=50)
    assert "50 values inside the MLP cannot be divided evenly among 4" in _refusal(odd, 4)


def test_other_models_are_refused(tmp_path: Path) -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 64}
    folder = write_checkpoint(tmp_path, "gpt2", **sizes)
    message = _refusal(folder, 2)
    assert "can be divided among target devices, got 'gpt2'; choose one device" in message


def test_ranks_that_do_not_fit_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU all ranks together, on a GPU each by itself."""
    plan = _plan(folder)
    sizes = Plan(plan.config.divided(2), CPU, torch.float32, None, None)
    both = [needed_bytes(sizes, rank) for rank in range(2)]
    monkeypatch.setattr(parallel, "available_memory", lambda device: sum(both) - 1)
    with pytest.raises(ModelError, match=r"^2 ranks need 0\.\d+ GB .* and cpu has 0\.\d+ GB left"):
        plan.check_memory(0, CPU)
    sizes = replace(sizes, device=torch.device("cuda:0"))
    both = [needed_bytes(sizes, rank) for rank in range(2)]
    monkeypatch.setattr(parallel, "available_memory", lambda device: both[1])
    plan.check_memory(1, torch.device("cuda:1"))
    with pytest.raises(ModelError, match=r"^rank 0 needs .* and cuda:0 has"):
        plan.check_memory(0, torch.device("cuda:0"))


def test_devices_that_cannot_share_a_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert find_devices(["cuda:0", "cuda:1"]) == [torch.device("cuda:0"), torch.device("cuda:1")]
    with pytest.raises(ConfigError, match="all GPUs or all the CPU, got cpu,cuda:1"):
        find_devices(["cpu", "cuda:1"])
    for names in (["cuda:1", "cuda:1"], ["cuda", "cuda:0"]):
        with pytest.raises(ConfigError, match="each rank needs a GPU of its own"):
            find_devices(names)


def test_a_process_of_torchrun_starts_no_ranks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="2 processes of torchrun; start one process without"):
        load_target(open_checkpoint(str(folder)), [CPU, CPU], torch.float32, threads=1)


# -- settings --------------------------------------------------------------------------------------


def test_devices_are_named_by_a_list_or_by_a_text_with_commas() -> None:
    for value in ("cuda:0, cuda:1", ("cuda:0", "cuda:1")):
        settings = Settings(target_device=value)
        assert settings.target_devices == ("cuda:0", "cuda:1")
        assert settings.draft_runs_on == "cuda:0"
    for wrong in ((), (0, 1), 1):
        with pytest.raises(ConfigError, match="target_device must be like 'cuda:0'"):
            Settings(target_device=wrong)
    assert Settings().target_devices == (None,)
    assert Settings(target_device="cpu", draft_device="cuda:3").draft_runs_on == "cuda:3"


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("doublespec.models.devices.usable_cores", lambda: 9)
    assert [use_threads(None, ranks) for ranks in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert use_threads(before, 2) == before


def test_closing_leaves_nothing(folder: Path) -> None:
    census = Census()
    llm = _load(folder, "cpu,cpu", "bfloat16")
    assert _answer(llm, "double-serial", 0.8) == _answer(llm, "ar", 0.8)
    assert census.leaks().processes == 1
    llm.close()
    with pytest.raises(ModelError, match="the model was closed; load it again"):
        llm.generate(PROMPT)
    del llm
    gc.collect()
    assert census.leaks() == Leaks(0, 0, 0)


def test_no_number_is_lost_that_comes_back_while_others_are_asked_for() -> None:
    """Python forgets a decoder whenever it likes; other ranks would keep its cache for ever."""
    numbers = parallel._Numbers()
    back: list[int] = []
    found: list[int] = []

    def forget(phase: str, info: dict[str, int]) -> None:
        back.append(numbers.take())
        numbers.give_back(back[-1])

    threshold = gc.get_threshold()
    gc.callbacks.append(forget)
    gc.set_threshold(1)
    try:
        for _ in range(200):
            found += numbers.given_back()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(forget)
    assert len(back) > 20
    assert [*found, *numbers.given_back()] == back
