"""What will not fit is refused before it is read, with the numbers and what would make it fit."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from doublespec.errors import ModelError
from doublespec.llm import LLM
from doublespec.models import memory
from doublespec.models.checkpoints import open_checkpoint, open_source
from doublespec.models.choice import is_native
from doublespec.models.configs import built_in_config
from doublespec.models.devices import gigabytes
from doublespec.models.load import load_model
from doublespec.models.memory import Plan, check_memory
from doublespec.models.outlines import decoder_config
from doublespec.models.sizes import DecoderConfig
from tests.checkpoints import write_checkpoint
from tests.test_random_weights import write_shape

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@dataclass(frozen=True)
class Unreadable:
    """A source that only knows its shape."""

    config: DecoderConfig = field(repr=False)
    name: str = "some-model"
    model_type: str = "llama"

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def has(self, name: str) -> bool:
        raise AssertionError("it was read")

    def read(
        self, name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        raise AssertionError("it was read")

    def num_parameters(self) -> int:
        raise AssertionError("it was read")


def config_of(name: str) -> DecoderConfig:
    return decoder_config(built_in_config(name))


def plan(name: str, quantize: str | None = None, reserve: int | None = None) -> Plan:
    return Plan(config_of(name), CUDA, torch.bfloat16, quantize, reserve)


def available(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: count)


def refusal(source: Unreadable, dtype: torch.dtype, reserve: int | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(source, CPU, dtype, canonical=True, reserve=reserve)
    return str(caught.value)


def test_large_shapes_take_what_their_numbers_say() -> None:
    assert plan("Llama-3.3-70B").weights == 2 * 70_553_706_496
    quantised = plan("Llama-3.3-70B", "int8", 8192)
    assert quantised.cache == 8192 * 80 * 2 * 8 * 128 * 2
    assert 70e9 < quantised.weights < 73e9  # embedding and vocabulary are not rounded
    assert quantised.total < 80e9
    assert plan("Qwen3-32B").total > 65e9


@pytest.mark.parametrize(
    ("name", "quantize", "reserve", "peak"),
    [
        ("Llama-3.1-8B", None, 33280, 20_774_393_856),
        # Beside a second cache of as many tokens, which is taken off.
        ("Qwen3-32B", None, 9216, 73_440_000_000 - 9216 * 64 * 2 * 8 * 128 * 2),
        ("Llama-3.3-70B", "fp8", 9216, 82_530_000_000 - 9216 * 80 * 2 * 8 * 128 * 2),
    ],
)
def test_what_gpus_took_is_what_is_predicted(
    name: str, quantize: str | None, reserve: int, peak: int
) -> None:
    """Peaks as an H200 showed them (docs/benchmarks-gpu.md)."""
    config, device = config_of(name), torch.device("cuda")
    found = Plan(config, device, torch.bfloat16, quantize, reserve, graphs=True, native=True)
    assert found.total == pytest.approx(peak, rel=0.03)


def test_the_longest_cache_that_fits_is_offered_where_reading_fits() -> None:
    """On a GPU, weights are read before there is a cache, which has their working memory then."""
    config, device = config_of("Llama-3.1-8B"), torch.device("cuda")
    whole = Plan(config, device, torch.bfloat16, None, 65536, graphs=False, native=True)
    for room in (whole.weights + 10**9, whole.weights + 3 * 10**9, whole.total - 1):
        tokens = memory._fitting_tokens(whole, room)
        assert (tokens > 0) is (room > whole.weights + 2 * 10**9)
        if tokens:
            assert replace(whole, reserve=tokens).total <= room
            assert replace(whole, reserve=int(1.1 * tokens)).total > room


def test_a_model_that_does_not_fit_is_refused_unread_with_numbers_and_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Unreadable(config_of("Llama-3.1-8B"))
    available(monkeypatch, int(20e9))
    message = refusal(source, torch.float32)
    whole = Plan(source.config, CPU, torch.float32, None, None)
    for count in (whole.total, whole.weights, whole.cache, whole.working):
        assert gigabytes(count) in message
    assert "cache for 1,024 tokens" in message
    assert "cpu has 20.00 GB left; it would fit with --dtype bfloat16 (" in message
    assert " or --quantize int8 (" in message
    assert "--max-length" not in message  # would not do


def test_only_what_makes_it_fit_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Unreadable(config_of("Llama-3.1-8B"))
    available(monkeypatch, int(12.5e9))
    assert "fit with --quantize int8 (" in refusal(source, torch.bfloat16)
    assert refusal(source, torch.float32).endswith(" GB)")
    assert "fit with --dtype bfloat16 and --quantize int8 (" in refusal(source, torch.float32)
    available(monkeypatch, int(5e9))
    assert refusal(source, torch.bfloat16).endswith("left; choose a smaller model")
    available(monkeypatch, int(25e9))
    message = refusal(source, torch.bfloat16, reserve=131072)
    found = re.search(r"--max-length (\d+)", message)
    assert found
    native = is_native(None, source.config, CPU, torch.bfloat16)
    check_memory(source, CPU, torch.bfloat16, None, int(found[1]), native=native)
    with pytest.raises(ModelError):
        check_memory(source, CPU, torch.bfloat16, None, int(found[1]) + 256, native=native)


def test_what_is_offered_is_enough_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_shape(tmp_path / "a.json", num_hidden_layers=60, vocab_size=64)
    config = open_source(name).config
    rounded = Plan(config, CPU, torch.float32, "int8", 256).total
    available(monkeypatch, rounded)
    options = {"dtype": "float32", "threads": 1, "max_length": 256}
    with pytest.raises(ModelError, match=r"--quantize int8 \("):
        LLM(name, **options)
    with LLM(name, quantize="int8", **options) as llm:
        assert llm.generate([1, 2, 3], method="ar", max_tokens=4).tokens


def test_a_draft_on_the_same_device_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the target is read first, and then there is no room for its draft."""
    name = write_shape(tmp_path / "a.json")
    config = open_source(name).config
    assert config is not None
    plan = Plan(
        config, CPU, torch.bfloat16, None, None, native=is_native(None, config, CPU, torch.bfloat16)
    )
    available(monkeypatch, 2 * plan.total - 1)
    LLM(name, threads=1, dtype="bfloat16").close()
    with pytest.raises(ModelError, match=f"left beside the draft's {gigabytes(plan.total)}"):
        LLM(name, name, threads=1, dtype="bfloat16")
    available(monkeypatch, 2 * plan.total)
    LLM(name, name, method="ar", threads=1, dtype="bfloat16").close()


def test_other_models_are_refused_by_the_size_of_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path, "gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=99)
    checkpoint = open_checkpoint(str(folder))
    available(monkeypatch, 3 * checkpoint.num_parameters())
    with pytest.raises(ModelError, match=r"the weights in .* left; choose a smaller model"):
        load_model(checkpoint, CPU, torch.float32, canonical=True)


# -- GPUs ------------------------------------------------------------------------------------------


def gpus(monkeypatch: pytest.MonkeyPatch, *free: float) -> None:
    """So many GPUs, with so many bytes free each."""
    devices = [torch.device("cuda", index) for index in range(len(free))]
    monkeypatch.setattr(memory, "all_devices", lambda: [CPU, *devices])
    monkeypatch.setattr(memory, "available_memory", lambda device: int(free[device.index or 0]))


def gpu_refusal(source: Unreadable, device: str = "cuda") -> str:
    with pytest.raises(ModelError) as caught:
        check_memory(source, torch.device(device), torch.bfloat16, None, None)
    return str(caught.value)


def test_a_model_too_large_for_one_gpu_may_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Unreadable(config_of("Llama-3.3-70B"))
    gpus(monkeypatch, 80e9, 80e9)
    assert gpu_refusal(source).endswith(
        "it would fit with --quantize int8 (77.19 GB) or --target-device cuda:0,cuda:1"
    )
    gpus(monkeypatch, 80e9, 20e9, 80e9)
    assert gpu_refusal(source, "cuda:2").endswith(" or --target-device cuda:2,cuda:0")


def test_as_few_gpus_as_will_do_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Unreadable(config_of("Llama-3.3-70B"))
    gpus(monkeypatch, 48e9, 48e9, 48e9, 48e9)
    wanted = "it would fit with --target-device cuda:0,cuda:1,cuda:2,cuda:3"
    assert gpu_refusal(source).endswith(wanted)  # 8 heads do not divide by 3
    for free in ([48e9], [48e9] * 3, [48e9, 48e9, 48e9, 1e9]):
        gpus(monkeypatch, *free)
        assert gpu_refusal(source).endswith("left; choose a smaller model")


def test_recorded_steps_are_counted_and_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Unreadable(config_of("Llama-3.1-8B"))
    bare = plan("Llama-3.1-8B")
    whole = replace(bare, graphs=True)
    assert whole.total - bare.total == whole.recorded > bare.recorded == 0
    assert replace(whole, quantize="int8").recorded > whole.recorded
    assert replace(whole, device=CPU).recorded == 0
    gpus(monkeypatch, whole.total - 1)
    check_memory(source, CUDA, torch.bfloat16, None, None)
    with pytest.raises(ModelError, match=r", CUDA graphs \d.*or --no-graphs \(") as caught:
        check_memory(source, CUDA, torch.bfloat16, None, None, graphs=True)
    assert gigabytes(whole.recorded) in str(caught.value)
    gpus(monkeypatch, whole.total)
    check_memory(source, CUDA, torch.bfloat16, None, None, graphs=True)
