"""Names of models in, sources of weights out: a folder, a hub id, or random weights of a shape.

With `configs.py` and `hf.py` the only file here that knows transformers, which reads configurations
of all kinds and takes seconds to import: what our decoder needs of one is noted as plain numbers.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from doublespec.errors import ModelError, reason
from doublespec.models.configs import CONFIGS, built_in_config
from doublespec.models.random_weights import RANDOM, RandomWeights, biased_parts
from doublespec.models.sizes import MODEL_TYPES, DecoderConfig, Rotary
from doublespec.models.weights import Checkpoint, Source, missing_weight, open_tensors

# As quantisers name themselves in a config.json, and as people know them.
_FORMATS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "compressed-tensors": "compressed-tensors",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "quark": "Quark",
    "torchao": "torchao",
    "modelopt": "ModelOpt",
}
# Sizes in a config.json, and the least that a decoder can have.
_LEAST = {
    "vocab_size": 1,
    "hidden_size": 1,
    "intermediate_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 1,
    "max_position_embeddings": 2,
    "sliding_window": 0,  # none
}
_OPTIONAL = ("head_dim", "sliding_window")
_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def open_source(name: str) -> Source:
    """What a model's weights are read from: the checkpoint of that name, or for "random:SHAPE"
    random ones, SHAPE being one of CONFIGS or a config.json. Raises ModelError."""
    if not name.startswith(RANDOM):
        return open_checkpoint(name)
    config = find_shape(name)
    kind: str = config.model_type
    return RandomWeights(name, kind, decoder_config(config))


def find_shape(name: str) -> PreTrainedConfig:
    """The configuration that random weights of that name have; raises ModelError."""
    shape = name.removeprefix(RANDOM)
    if shape in CONFIGS:
        return built_in_config(shape)
    path = Path(shape).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(CONFIGS)
        raise ModelError(
            f"the shape of random weights must be one of {known}, or the path of a config.json, "
            f"got {shape!r}"
        )
    return read_config(path)


def open_checkpoint(name: str) -> Checkpoint:
    """The checkpoint in a local folder or on the Hugging Face hub; raises ModelError."""
    folder = find_folder(name)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; a Hugging Face model folder is expected")
    config = read_config(path)
    _check_not_quantised(config)
    kind: str = config.model_type
    ours = decoder_config(config) if kind in MODEL_TYPES else None
    vocab_size = getattr(config.get_text_config(), "vocab_size", 0)
    checkpoint = Checkpoint(folder, kind, vocab_size, ours, _weight_files(folder))
    if ours is not None:
        _check_small_parts(checkpoint, ours)
    return checkpoint


def _check_small_parts(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Raises ModelError where a bias or a norm is missing that the configuration says is there.
    (Products are missed when they are read.)"""
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    parts = [
        f"{'self_attn' if part in attention else 'mlp'}.{part}.bias"
        for part in sorted(config.biases)
    ]
    if checkpoint.model_type == "qwen3":
        parts += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
    names = (f"model.layers.{i}.{part}" for i in range(config.num_layers) for part in parts)
    missing = next((name for name in names if not checkpoint.has(name)), None)
    if missing is not None:
        raise missing_weight(checkpoint.folder, missing)


def find_folder(name: str) -> Path:
    """The local folder of a model, downloaded from the hub if `name` is a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(f"there is no folder {name!r}, and it is not a hub id like 'org/model'")
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(
            f"{name!r} is neither a folder nor a model that the Hugging Face hub gives: "
            f"{reason(error)}"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name!r} is no folder here, and the Hugging Face hub cannot be reached: give a local "
            "folder, or download the model once while online"
        ) from error


def read_config(path: Path) -> PreTrainedConfig:
    """The configuration in a config.json; raises ModelError."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except Exception as error:  # what transformers raises is of many kinds, all of one meaning
        raise ModelError(
            f"{path} is no configuration that transformers reads: {reason(error)}"
        ) from error
    return config


def _rotary(config: PreTrainedConfig, head_dim: int) -> Rotary:
    """Rotary embeddings, scaled as the checkpoint says: linear, llama3 or yarn."""
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies, factor = 1.0 / parameters["rope_theta"] ** exponents, 1.0
    elif kind in ("linear", "llama3", "yarn"):
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    else:
        raise ModelError(f"rope type {kind!r} is not supported; default, linear, llama3 or yarn is")
    return Rotary(tuple(frequencies.tolist()), float(factor))


def _check_not_quantised(config: PreTrainedConfig) -> None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    values = found if isinstance(found, dict) else vars(found)
    method = values.get("quant_method")
    method = str(getattr(method, "value", method) or "")
    kind = f"the format {_FORMATS.get(method, method)}" if method else "a format without a name"
    raise ModelError(
        f"quantised weights are not read, and these are in {kind}; choose a checkpoint without "
        "quantisation, which --quantize int8 rounds while it is read"
    )


def decoder_config(config: PreTrainedConfig) -> DecoderConfig:
    """What our decoder needs of a transformers configuration; raises ModelError on what it does not
    support."""
    if config.model_type not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ModelError(f"model type must be one of {known}, got {config.model_type!r}")
    if config.hidden_act not in ("silu", "swish"):
        raise ModelError(f"the activation must be silu, got {config.hidden_act!r}")
    _check_sizes(config)
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    return DecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        norm_eps=config.rms_norm_eps,
        tied=config.tie_word_embeddings,
        max_length=_max_length(config),
        rotary=_checked_rotary(config, head_dim),
        biases=biased_parts(config.model_type, vars(config)),
    )


def _check_sizes(config: PreTrainedConfig) -> None:
    """Raises ModelError where no decoder has these sizes: transformers takes most of them."""
    for name, least in _LEAST.items():
        value: Any = getattr(config, name, None)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not (is_whole and value >= least) and not (value is None and name in _OPTIONAL):
            raise ModelError(
                f"{name} in the model's config.json must be a whole number from {least} up, "
                f"got {value!r}"
            )
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise ModelError(
            "num_attention_heads in the model's config.json must be a multiple of "
            f"num_key_value_heads, got {heads} and {groups}"
        )
    norm_eps: float = config.rms_norm_eps
    if not 0 <= norm_eps < math.inf:
        raise ModelError(
            f"rms_norm_eps in the model's config.json must be 0 or more, got {norm_eps}"
        )


def _checked_rotary(config: PreTrainedConfig, head_dim: int) -> Rotary:
    """Raises ModelError where the checkpoint's numbers give no frequencies."""
    try:
        rotary = _rotary(config, head_dim)
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        KeyError,
        AttributeError,
    ) as error:
        raise ModelError(
            f"rope_parameters in the model's config.json give no frequencies: {reason(error)}"
        ) from error
    if not all(map(math.isfinite, (*rotary.frequencies, rotary.factor))):
        raise ModelError(
            "rope_parameters in the model's config.json give frequencies that are not finite: "
            f"{config.rope_parameters}"
        )
    return rotary


def _max_length(config: PreTrainedConfig) -> int:
    """The context; where layers slide a window, only texts that fit in it are exact."""
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", config.model_type == "mistral")
    length: int = config.max_position_embeddings
    return min(length, window) if window and slides else length


def _weight_files(folder: Path) -> dict[str, str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_files(index)
    single = folder / "model.safetensors"
    if not single.is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        hint = "; pickled weights are not read, convert them to safetensors" if pickled else ""
        if any(folder.glob("*.gguf")):
            hint = "; weights in the format GGUF are not read, choose the checkpoint they are from"
        raise ModelError(f"{folder} has no weights (model.safetensors){hint}")
    with open_tensors(single) as file:
        return dict.fromkeys(file.keys(), single.name)


def _indexed_files(index: Path) -> dict[str, str]:
    try:
        files = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{index} is not an index of safetensors files") from error
    missing = sorted(name for name in set(files.values()) if not (index.parent / name).is_file())
    if missing:
        raise ModelError(f"{index.parent} lacks {missing[0]}, which its index names")
    return files
