"""Checkpoints: what is read, and one sentence for whatever can be wrong with one."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from doublespec import transfer
from doublespec.errors import ConfigError, ModelError
from doublespec.models import load
from doublespec.models.base import Branch, can_branch
from doublespec.models.checkpoints import find_folder, open_checkpoint
from doublespec.models.decoder import Decoder
from doublespec.models.devices import (
    available_memory,
    find_device,
    find_dtype,
    usable_cores,
    use_threads,
)
from doublespec.models.layers import attention, linear, rms_norm, swiglu
from doublespec.models.load import forward_seconds, load_model, undisturbed_seconds
from doublespec.models.toy import ToyModel
from doublespec.models.vocabulary import CommonVocabulary, check_same_vocabulary
from tests.checkpoints import write_family, write_json

CPU = torch.device("cpu")
FIRST_QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_family(tmp_path / "model", "llama2")


def load_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    model = load_model(open_checkpoint(str(folder)), CPU, dtype, canonical=False)
    assert isinstance(model, Decoder)
    return model


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.__delitem__(name)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def refusal(folder: Path | str) -> str:
    """The one sentence with which a model is refused."""
    with pytest.raises(ModelError) as caught:
        load_folder(Path(folder)) if isinstance(folder, Path) else open_checkpoint(folder)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# -- what is read ----------------------------------------------------------------------------------


def test_sharded_weights_are_those_of_one_file(tmp_path: Path) -> None:
    whole = write_family(tmp_path / "whole", "llama2")
    sharded = write_family(tmp_path / "sharded", "llama2", shard_size="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    logits = [load_folder(path).logits([1, 2, 3], 3, 3) for path in (whole, sharded)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_read_in_the_dtype_asked_for(folder: Path, dtype: torch.dtype) -> None:
    def halve(weights: dict[str, Tensor]) -> None:
        weights.update({name: weight.bfloat16() for name, weight in weights.items()})

    change_weights(folder, halve)
    model = load_folder(folder, dtype)
    assert model.dtype == model.logits([1, 2, 3], 1, 3).dtype == dtype
    wanted = load_folder(folder, torch.float32).logits([1, 2, 3], 1, 3)
    torch.testing.assert_close(model.logits([1, 2, 3], 1, 3).float(), wanted, atol=0.15, rtol=0)


def test_the_vocabulary_is_tied_only_if_the_configuration_says_so(tmp_path: Path) -> None:
    """Files of tied models may hold an lm_head, which counts (`test_decoder.py`); files of others
    lack it by mistake."""
    path = write_family(tmp_path, "llama2")
    untied = load_folder(path).logits([1, 2, 3], 1, 3)
    change_config(path, tie_word_embeddings=True)
    assert torch.equal(load_folder(path).logits([1, 2, 3], 1, 3), untied)
    change_weights(path, without("lm_head.weight"))
    assert not torch.allclose(load_folder(path).logits([1, 2, 3], 1, 3), untied, atol=0.1)
    change_config(path, tie_word_embeddings=False)
    assert "has no weight 'lm_head.weight'" in refusal(path)


def test_parameters_are_counted_without_reading_them(folder: Path) -> None:
    count = sum(weight.numel() for weight in load_file(folder / "model.safetensors").values())
    assert open_checkpoint(str(folder)).num_parameters() == count


def test_progress_is_told_layer_by_layer(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    load_model(
        open_checkpoint(str(folder)),
        CPU,
        torch.float32,
        canonical=False,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 2), (2, 2)]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "~/there", "gpt2", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name: str) -> None:
    assert refusal(name) == f"there is no folder {name!r}, and it is not a hub id like 'org/model'"


def test_a_hub_id_that_is_not_here_is_refused_while_offline() -> None:
    message = refusal("no-such-org/no-such-model")
    assert message.startswith("'no-such-org/no-such-model' is no folder here, and the Hugging Face")
    assert "download the model once while online" in message


def test_a_malformed_hub_id_is_refused() -> None:
    assert "'org/a--b..c' is neither a folder nor a model" in refusal("org/a--b..c")


def test_a_folder_under_the_home_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_folder("~/model") == tmp_path / "model"


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder).endswith("has no config.json; a Hugging Face model folder is expected")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"', "\xff"])
def test_a_broken_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "config.json is no configuration that transformers reads" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_attention_heads", 0, "config.json is no configuration that transformers reads"),
        ("hidden_size", "abc", "TypeError: Field 'hidden_size' expected int, got str"),
        ("rms_norm_eps", "x", "TypeError: Field 'rms_norm_eps' expected float, got str"),
        ("rms_norm_eps", -1.0, "must be 0 or more, got -1.0"),
        ("num_hidden_layers", 0, "must be a whole number from 1 up, got 0"),
        ("max_position_embeddings", 0, "must be a whole number from 2 up, got 0"),
        ("num_key_value_heads", 3, "must be a multiple of num_key_value_heads, got 4 and 3"),
        ("rope_parameters", {"rope_theta": "x", "rope_type": "default"}, "give no frequencies"),
        ("rope_parameters", {"rope_theta": 0, "rope_type": "default"}, "that are not finite"),
    ],
)
def test_a_configuration_of_no_decoder_is_refused(
    folder: Path, name: str, value: object, message: str
) -> None:
    """What transformers raised was a user's stack trace, and no layers were run."""
    change_config(folder, **{name: value})
    said = refusal(folder)
    assert name in said or name == "num_attention_heads"
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("model_type", ["gpt-17", None])
def test_an_unknown_architecture_is_refused(folder: Path, model_type: str | None) -> None:
    change_config(folder, model_type=model_type)
    assert "config.json is no configuration that transformers reads" in refusal(folder)


def test_a_model_that_writes_no_text_is_refused(folder: Path) -> None:
    write_json(folder / "config.json", {"model_type": "vit"})
    assert "transformers cannot load" in refusal(folder)


def test_another_activation_is_refused(folder: Path) -> None:
    change_config(folder, hidden_act="gelu")
    assert refusal(folder) == "the activation must be silu, got 'gelu'"


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("gptq", "the format GPTQ"),
        ("awq", "the format AWQ"),
        ("fp8", "the format FP8"),
        ("new", "the format new"),
        (None, "a format without a name"),
    ],
)
def test_quantised_weights_are_refused_by_name(folder: Path, method: str | None, name: str) -> None:
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    assert refusal(folder) == (
        f"quantised weights are not read, and these are in {name}; choose a checkpoint "
        "without quantisation, which --quantize int8 rounds while it is read"
    )


def test_gguf_files_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")
    message = refusal(folder)
    assert message.endswith(
        "weights in the format GGUF are not read, choose the checkpoint they are from"
    )


def test_an_unknown_rope_scaling_is_refused(folder: Path) -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    change_config(folder, rope_parameters=parameters)
    message = refusal(folder)
    assert message == "rope type 'dynamic' is not supported; default, linear, llama3 or yarn is"


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder).endswith("has no weights (model.safetensors)")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_what_to_do(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    message = refusal(folder)
    assert message.endswith("pickled weights are not read, convert them to safetensors")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    path = write_family(tmp_path, "llama2", shard_size="30KB")
    shard = max(path.glob("*.safetensors"))
    shard.unlink()
    assert refusal(path) == f"{path} lacks {shard.name}, which its index names"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 7}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    path = write_family(tmp_path, "llama2", shard_size="30KB")
    (path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    assert refusal(path).endswith("is not an index of safetensors files")


@pytest.mark.parametrize("size", [0, 5, 1000, 20000])
def test_a_truncated_file_is_refused(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    message = refusal(folder)
    assert message.startswith(f"cannot read {path}: ")
    assert message.endswith("; download it again")


def test_a_weight_that_its_index_names_and_its_shard_lacks_is_refused(tmp_path: Path) -> None:
    path = write_family(tmp_path, "llama2", shard_size="30KB")
    index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = path / index["weight_map"][FIRST_QUERY]
    rest = {name: weight for name, weight in load_file(shard).items() if name != FIRST_QUERY}
    save_file(rest, shard, metadata={"format": "pt"})
    assert refusal(path).startswith(f"cannot read {shard}: ")


def test_a_missing_weight_is_refused(folder: Path) -> None:
    change_weights(folder, without(FIRST_QUERY))
    assert refusal(folder) == f"{folder} has no weight {FIRST_QUERY!r}; is the checkpoint complete?"


@pytest.mark.parametrize("name", [FIRST_QUERY, "model.embed_tokens.weight", "model.norm.weight"])
def test_a_weight_of_another_shape_is_refused(folder: Path, name: str) -> None:
    def cut(weights: dict[str, Tensor]) -> None:
        weights[name] = weights[name][1:].contiguous()

    shape = load_file(folder / "model.safetensors")[name].shape
    change_weights(folder, cut)
    message = refusal(folder)
    assert f"{name} in {folder} has shape {(shape[0] - 1, *shape[1:])}" in message
    assert f"config.json says {tuple(shape)}" in message


# -- one vocabulary --------------------------------------------------------------------------------


def test_equal_vocabularies_pass() -> None:
    check_same_vocabulary({"a": 0, "b": 1}, {"b": 1, "a": 0})


@pytest.mark.parametrize(
    ("draft", "difference"),
    [
        ({"a": 0, "x": 1, "c": 2}, "token 1 is 'b' in the target and 'x' in the draft"),
        ({"a": 0, "b": 1}, "token 2 is 'c' in the target and None in the draft"),
        ({"a": 0, "b": 1, "c": 2, "d": 3}, "token 3 is None in the target and 'd' in the draft"),
    ],
)
def test_the_first_token_that_differs_is_named(draft: dict[str, int], difference: str) -> None:
    with pytest.raises(ModelError, match=difference):
        check_same_vocabulary({"a": 0, "b": 1, "c": 2}, draft)


def test_a_draft_is_asked_only_for_tokens_that_the_target_has() -> None:
    draft = ToyModel(40)
    common = CommonVocabulary(draft, 32)
    assert (common.vocab_size, common.max_length) == (32, draft.max_length)
    assert torch.equal(common.logits([1, 2, 3], 2, 1), draft.logits([1, 2, 3], 2, 1)[:, :32])
    assert CommonVocabulary(ToyModel(20), 32).vocab_size == 20


def test_a_draft_with_a_common_vocabulary_branches_if_it_could_before(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_family(tmp_path, "llama2")))
    canonical = Decoder.load(checkpoint, torch.device("cpu"), torch.float32)
    assert not can_branch(CommonVocabulary(canonical, 32))
    common = CommonVocabulary(ToyModel(40), 32)
    assert can_branch(common)
    rows, ends = common.branch_logits([1, 2, 3], 2, [Branch(1, (7,)), Branch(3, (4, 5))], 1)
    assert torch.equal(rows, common.logits([1, 2, 3], 2, 1))
    alone = [common.logits(text, 1, 1) for text in ([1, 7], [1, 2, 3, 4, 5])]
    assert torch.equal(ends, torch.cat(alone))


def test_ids_that_only_the_target_has_are_another_token_to_the_draft() -> None:
    """As the target's padded vocabulary has some, which a prompt may hold."""
    draft = ToyModel(40)
    common = CommonVocabulary(draft, 48)
    assert torch.equal(common.logits([1, 45, 3], 2, 1), draft.logits([1, 0, 3], 2, 1))
    rows, ends = common.branch_logits([1, 45, 3], 1, [Branch(2, (47, 5))], 1)
    wanted = draft.branch_logits([1, 0, 3], 1, [Branch(2, (0, 5))], 1)
    assert torch.equal(rows, wanted[0])
    assert torch.equal(ends, wanted[1])


# -- devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "mps", "meta", "cuda:99"])
def test_an_unusable_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_device(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_is_refused_with_those_known() -> None:
    known = "dtype must be one of bfloat16, float16, float32, got 'int8'"
    with pytest.raises(ConfigError, match=known):
        find_dtype("int8", CPU)


def test_devices_and_dtypes_go_by_their_names() -> None:
    assert find_device("cpu") == find_device("cpu:0") == CPU
    assert find_dtype("float16", CPU) == torch.float16


def test_a_gpu_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a draft shares the target's device is told by their equality."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert (
        find_device(None) == find_device("cuda") == find_device("cuda:1") != find_device("cuda:0")
    )


def test_memory_that_pytorch_holds_unused_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 470)
    assert available_memory(torch.device("cuda:0")) == 130


def test_what_goes_up_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for a copy has the strides of what is copied, and may not be written twice."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    row = torch.tensor([[3, 4]])
    ready = transfer._ready(row.expand(5, -1), torch.device("cuda"))
    assert ready.is_contiguous()
    assert ready.tolist() == 5 * [[3, 4]]


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_a_cpu_computes_in_bfloat16_if_it_has_instructions_for_it(
    flags: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert find_dtype(None, CPU) == dtype


def test_one_core_is_left_free_unless_a_number_of_threads_is_given() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(None)
        assert torch.get_num_threads() == max(1, usable_cores() - 1)
        use_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        use_threads(before)


# -- the parts of a layer --------------------------------------------------------------------------


def noise(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def test_the_parts_of_a_layer_are_what_they_say() -> None:
    x, weight, bias = noise(5, 24), noise(18, 24), noise(18)
    torch.testing.assert_close(linear(weight, bias)(x), x @ weight.T + bias)
    scale = noise(24)
    wanted = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * scale
    torch.testing.assert_close(rms_norm(scale, 1e-3)(x), wanted)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(x), gate * gate.sigmoid() * up)


def test_heads_of_a_group_share_their_keys() -> None:
    query, keys, values = noise(6, 3, 8), noise(1, 2, 7, 8), noise(1, 2, 7, 8)
    mask = torch.zeros(3, 7)
    mask[0, 4:] = -torch.inf
    shared = [part[0].repeat_interleave(3, dim=0) for part in (keys, values)]
    scores = (query @ shared[0].transpose(1, 2)) / 8**0.5 + mask
    wanted = scores.softmax(-1) @ shared[1]
    torch.testing.assert_close(attention(query, keys, values, mask.repeat(3, 1)), wanted)


def test_a_row_of_swiglu_does_not_depend_on_where_threads_divide_the_block() -> None:
    """ATen rounds the end of each thread's part differently: 4 % of silu's float32 values."""
    x = noise(100, 2 * 1003)
    alone = torch.cat([swiglu(row) for row in x.split(1)])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5, 7):
            torch.set_num_threads(count)
            assert torch.equal(swiglu(x), alone)
    finally:
        torch.set_num_threads(threads)


def test_unscaled_rotary_frequencies_are_powers_of_theta(folder: Path) -> None:
    rotary = open_checkpoint(str(folder)).config.rotary
    assert rotary.frequencies == pytest.approx([10000.0 ** (-i / 4) for i in range(4)])
    assert rotary.factor == 1.0


def test_what_disturbs_a_measurement_for_a_moment_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shortest of medians of five; the first forward is of none."""
    medians = [0.004, 0.001, 0.003, *[0.002] * 100]
    times = iter([0.01, *(time for found in medians for time in (9.0, found, found, 0.0, found))])
    monkeypatch.setattr(load.Stopwatch, "seconds", lambda watch, rows: next(times))
    assert undisturbed_seconds(ToyModel()) == 0.001


@pytest.mark.parametrize(("pause", "most"), [(0.0, 100), (0.03, 8)])
def test_slow_models_are_measured_in_few_forwards(
    pause: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_COST_SECONDS", 0.05)

    class Slow(ToyModel):
        def logits(self, *arguments: Any) -> torch.Tensor:
            time.sleep(pause)
            return super().logits(*arguments)

    for measure in (load.measure_cost, undisturbed_seconds):
        model = Slow()
        measure(model)
        assert model.forwards <= most
        assert (model.forwards > 8) == (pause == 0.0)


def test_forward_seconds_are_measured_on_new_rows(folder: Path) -> None:
    assert forward_seconds(load_folder(folder), rows=3, context=10) > 0.0
