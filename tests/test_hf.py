"""Models of other families, through the cache of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from doublespec.errors import ModelError
from doublespec.models import hf
from doublespec.models.checkpoints import open_checkpoint
from doublespec.models.hf import TransformersModel
from doublespec.models.load import load_model
from tests.checkpoints import write_checkpoint

CPU = torch.device("cpu")
CONTEXT = 200
_GPT2 = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
# Learned positions, learned positions with an offset, two kinds of rotary ones, and none (ALiBi).
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {**_SIZES, "intermediate_size": 48},
    "phi": {**_SIZES, "intermediate_size": 48},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT},
}
_WINDOWED = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
REFUSED: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "gemma2": {**_WINDOWED, "sliding_window": 32},
    "gemma3_text": {**_WINDOWED, "sliding_window": 32},
    "recurrent_gemma": {**_WINDOWED, "num_hidden_layers": 3, "lru_width": 32},
    "qwen3_next": {
        **_WINDOWED,
        "num_hidden_layers": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}
TOKEN_IDS = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def write(folder: Path, family: str, config: dict[str, Any]) -> Path:
    return write_checkpoint(folder, family, **{**TOKEN_IDS, **config})


def load(
    folder: Path, dtype: torch.dtype = torch.float32, **options: bool | int
) -> TransformersModel:
    return TransformersModel.load(open_checkpoint(str(folder)), CPU, dtype, **options)


def random_text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module", params=["gpt2", "opt", "gpt_neox"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(request.param), request.param, FAMILIES[request.param])


@pytest.mark.parametrize("canonical", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_a_full_forward(family: str, canonical: bool, tmp_path: Path) -> None:
    """To the end of the context, in pieces, with a wrong guess in between."""
    path = write(tmp_path, family, FAMILIES[family])
    tokens = random_text(CONTEXT)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = reference(torch.tensor([tokens])).logits[0]
    model = load(path, canonical=canonical)
    pieces = [model.logits(tokens[:80], 80, 70), model.logits(tokens[:170], 90, 70)]
    model.logits([*tokens[:165], *random_text(20, seed=1)], 20, 70)
    pieces.append(model.logits(tokens, 30, 70))
    torch.testing.assert_close(torch.cat(pieces), wanted, atol=1e-4, rtol=0)


def all_logits(folder: Path, dtype: torch.dtype, tokens: list[int], prompt_length: int) -> Tensor:
    return load(folder, dtype).logits(tokens, len(tokens), prompt_length)


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[list[int], int, int]]:
    """Requests (tokens, last, prompt_length) of one base text, cut back and continued wrongly."""
    base = random_text(CONTEXT, seed=draw(st.integers(0, 2)))
    requests = []
    for _ in range(draw(st.integers(1, 5))):
        tokens = base[: draw(st.one_of(st.integers(1, CONTEXT), st.integers(CONTEXT - 9, CONTEXT)))]
        wrong = random_text(draw(st.integers(0, 20)), seed=draw(st.integers(10, 12)))
        tokens = (tokens + wrong)[:CONTEXT]
        last = draw(st.integers(1, min(40, len(tokens))))
        prompt_length = draw(st.sampled_from([1, 50, 70, 130]))
        requests.append((tokens, last, min(prompt_length, len(tokens))))
    return requests


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=calls(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_bits_do_not_depend_on_what_was_asked_before(
    folder: Path, requests: list[tuple[list[int], int, int]], dtype: torch.dtype
) -> None:
    used = load(folder, dtype)
    for tokens, last, prompt_length in requests:
        wanted = all_logits(folder, dtype, tokens, prompt_length)[-last:]
        assert torch.equal(used.logits(tokens, last, prompt_length), wanted)


def test_an_interrupt_leaves_no_lie_in_the_cache(folder: Path) -> None:
    """Interrupted in its last layer, a forward has written to the caches of the others: all were
    cropped by as much, which left the last one too short."""
    model = load(folder)
    tokens, other = random_text(100), [*random_text(70), *random_text(60, seed=5)]
    model.logits(tokens, 1, 50)
    last_layer = model._cache.layers[-1]
    update = last_layer.update
    last_layer.update = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.logits(other, 1, 50)
    last_layer.update = update
    for text in (tokens, other):
        wanted = all_logits(folder, torch.float32, text, 50)[-10:]
        assert torch.equal(model.logits(text, 10, 50), wanted)


def interrupted(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.filterwarnings("ignore")  # of transformers, about kernels that are not installed
def test_a_model_whose_cache_cannot_forget_is_refused(family: str, tmp_path: Path) -> None:
    path = write(tmp_path, family, REFUSED[family])
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(caught.value) == (
        f"model type {family!r} has no cache that can be cropped (state-space or sliding-window "
        "layers); choose a model with full attention"
    )


MIXTRAL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": CONTEXT,
    "sliding_window": None,
}


@pytest.mark.parametrize("names", [("num_local_experts",), ()], ids=["by its name", "by its bits"])
def test_experts_are_refused_in_a_target(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is multiplied with a token depends on which others go to the same expert."""
    path = write(tmp_path, "mixtral", MIXTRAL)
    monkeypatch.setattr(hf, "_EXPERTS", names or ("no_such_number",))
    if not names:
        monkeypatch.setattr(hf, "_ROW_TRIALS", 20)
    with pytest.raises(ModelError, match=r"'mixtral'.*depend on what is computed beside it.*dense"):
        load(path)
    assert len(load(path, canonical=False).logits([5, 6, 7], 1, 2)) == 1  # as a draft it will do


def test_an_interrupt_in_the_middle_of_a_crop_leaves_no_lie(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of a layer are cut by then, and values are not."""
    model, tokens = load(folder), random_text(100)
    model.logits(tokens, 1, 50)

    def interrupted_crop(layer: DynamicLayer, count: int) -> None:
        assert layer.keys is not None
        layer.keys = layer.keys[..., :count, :]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DynamicLayer, "crop", interrupted_crop)
        model.logits(tokens[:60], 1, 50)
    for text in (tokens, tokens[:60]):
        assert torch.equal(
            model.logits(text, 5, 50), all_logits(folder, torch.float32, text, 50)[-5:]
        )


def test_a_missing_weight_is_refused_not_made_up(tmp_path: Path) -> None:
    path = write(tmp_path, "gpt2", {**_GPT2, "n_layer": 1})
    config = (path / "config.json").read_text(encoding="utf-8")
    (path / "config.json").write_text(config.replace('"n_layer": 1', '"n_layer": 2'))
    with pytest.raises(ModelError, match=r"has no weight '.*h\.1\..*'; is the checkpoint complete"):
        load(path)


def test_max_length_is_that_of_the_positions_or_what_was_asked_for(folder: Path) -> None:
    assert load(folder).max_length == CONTEXT
    assert load(folder, max_length=90).max_length == 90
    assert len(load(folder, max_length=90).logits(random_text(90), 1, 80)) == 1


def test_any_family_is_loaded_by_the_class_that_reads_it(folder: Path) -> None:
    model = load_model(open_checkpoint(str(folder)), CPU, torch.float32, canonical=True)
    assert isinstance(model, TransformersModel)
    assert (model.vocab_size, model.device, model.dtype) == (300, CPU, torch.float32)
