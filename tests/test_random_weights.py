"""Random weights: shapes without checkpoints, by the same code that reads those."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from doublespec.bench.provenance import model_provenance
from doublespec.cli import app
from doublespec.errors import ConfigError, ModelError
from doublespec.llm import LLM
from doublespec.models.checkpoints import open_source
from doublespec.models.configs import CONFIGS, built_in_config
from doublespec.models.load import load_model
from doublespec.models.outlines import decoder_config
from tests.checkpoints import FAMILIES, write_family, write_json

CPU = torch.device("cpu")
TINY = {
    "model_type": "qwen3",
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": False,
}


def write_shape(path: Path, **changes: Any) -> str:
    """The name of random weights of a tiny shape."""
    write_json(path, {**TINY, **changes})
    return f"random:{path}"


# As their makers publish them (numbers in the checkpoint; of a tied one, without the copy).
PUBLISHED = {
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-0.6B": 596_049_920,
    "Llama-3.3-70B": 70_553_706_496,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_built_in_shapes_have_the_published_number_of_parameters(name: str) -> None:
    config = decoder_config(built_in_config(name))
    norms_of_heads = 2 * config.head_dim * config.num_layers if name.startswith("Qwen3") else 0
    assert config.num_parameters() + norms_of_heads == PUBLISHED[name]


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path: Path) -> None:
    source = open_source(write_shape(tmp_path / "a.json"))
    again, other = (replace(source, name="x", seed=seed) for seed in (0, 1))
    text = [1, 2, 3, 150]
    logits = [
        load_model(each, CPU, torch.float32, canonical=False).logits(text, 2, 4)
        for each in (source, again, other)
    ]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=0.1)


@pytest.mark.parametrize("layers", [1, 40])
def test_activations_stay_finite_and_of_a_size_in_half_precision(
    tmp_path: Path, layers: int
) -> None:
    source = open_source(write_shape(tmp_path / "a.json", num_hidden_layers=layers))
    for dtype in (torch.bfloat16, torch.float16):
        logits = load_model(source, CPU, dtype, canonical=False).logits(list(range(99)), 99, 99)
        assert logits.isfinite().all()
        assert 0.1 < logits.float().std() < 10.0


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_are_those_that_a_checkpoint_of_the_shape_has(
    tmp_path: Path, family: str
) -> None:
    checkpoint = open_source(str(write_family(tmp_path, family)))
    source = open_source(f"random:{tmp_path}")
    layer = "model.layers.1."
    parts = ("self_attn.q_norm.weight", "self_attn.q_proj.bias", "self_attn.o_proj.bias")
    for part in (*parts, "mlp.down_proj.bias", "mlp.down_proj.weight"):
        assert source.has(layer + part) == checkpoint.has(layer + part), part


def test_every_method_answers_with_random_weights_and_the_drafts_process_makes_its_own(
    tmp_path: Path,
) -> None:
    """The draft has the target's shape and seed: were its weights others, it would not agree."""
    name = write_shape(tmp_path / "a.json")
    with LLM(name, name, threads=1, gamma=3, history_bytes=0, dtype="float32") as llm:
        plain = llm.generate([5, 6, 7], method="ar", max_tokens=24)
        serial = llm.generate([5, 6, 7], method="sd", max_tokens=24)
        parallel = llm.generate([5, 6, 7], method="psd@lock-step", max_tokens=24)
        assert plain.tokens == serial.tokens == parallel.tokens
        assert serial.stats.draft_acceptance == parallel.stats.draft_acceptance == 1.0
        assert plain.text.split() == [str(token) for token in plain.tokens]
        assert llm.generate("5 6 7", method="ar", max_tokens=24).tokens == plain.tokens
        models = model_provenance(llm)["models"]
    write_shape(tmp_path / "a.json", hidden_size=128)
    with LLM(name, threads=1) as other:
        assert model_provenance(other)["models"] != models[:1]
    write_shape(tmp_path / "a.json", model_type="llama")  # of the same sizes
    with LLM(name, threads=1) as other:
        assert model_provenance(other)["models"] != models[:1]


def test_what_random_weights_cannot_is_a_sentence(tmp_path: Path) -> None:
    name = write_shape(tmp_path / "a.json")
    with LLM(name, threads=1) as llm:
        with pytest.raises(ConfigError, match="no tokenizer: give token ids like '17 4 9'"):
            llm.generate("Hello")
        with pytest.raises(ConfigError, match="no chat template"):
            llm.chat([{"role": "user", "content": "Hello"}])
    with pytest.raises(ModelError, match=r"must be one of Qwen3-32B, .*, or the path of a config"):
        open_source("random:Qwen9-1T")
    with pytest.raises(ModelError, match="model type must be one of llama, mistral"):
        LLM(write_shape(tmp_path / "b.json", model_type="gpt2"))
    with pytest.raises(ModelError, match="target and draft must have the same vocabulary"):
        LLM(name, "bundled")


def test_doctor_measures_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("doublespec.cli.doctor"), "_MOST_ROUNDS", 1)
    shape = write_shape(tmp_path / "a.json").removeprefix("random:")
    arguments = ["doctor", "--random-weights", shape, "--trials", "4", "--context", "40"]
    run = CliRunner().invoke(app, [*arguments, "--threads", "1", "--json"])
    report = json.loads(run.stdout)
    assert run.exit_code == 0
    assert report["exact"]
    assert report["profile"]["target"]["seconds"]["1"] > 0


@pytest.mark.parametrize("wrong", [["--draft", "bundled"], ["--random-weights", "a,b,c"]])
def test_random_weights_and_models_are_not_given_both(wrong: list[str]) -> None:
    arguments = ["doctor", "--random-weights", "Qwen3-0.6B", *wrong]
    with pytest.raises(ConfigError, match="--random-weights"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
