"""What we need of a model's config.json, as plain numbers: read by transformers, then kept.

With `configs.py` and `hf.py` the only file here that knows transformers, which reads configurations
of all kinds and takes seconds to import. So that it is imported only where a configuration is new.
"""

import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from doublespec import kept
from doublespec.errors import ModelError, reason
from doublespec.models.random_weights import biased_parts
from doublespec.models.sizes import MODEL_TYPES, DecoderConfig, Rotary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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
_KIND = "outline"


@dataclass(frozen=True, slots=True)
class Outline:
    """Of a model: its architecture, as transformers names it, its vocabulary (0: it writes no
    text), and what our decoder needs to know, None of a type that it does not run."""

    model_type: str
    vocab_size: int
    decoder: DecoderConfig | None


def read_outline(path: Path) -> Outline:
    """That of the config.json of a checkpoint whose weights can be read; raises ModelError."""
    try:
        source = _source(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {reason(error)}") from error
    known = kept.find(_KIND, source)
    found = None if known is None else _outline(json.loads(known))
    if found is None:
        found = _made_outline(read_config(path))
        values = asdict(found)
        if found.decoder is not None:
            values["decoder"]["biases"] = sorted(found.decoder.biases)
        kept.keep(_KIND, source, json.dumps(values).encode())
    return found


def _source(path: Path) -> str:
    """All that an outline depends on: the configuration, who reads it, and this file."""
    reader = Path(__file__).read_text(encoding="utf-8")
    return "\n".join([version("transformers"), reader, path.read_bytes().decode("latin-1")])


def _outline(values: dict[str, Any]) -> Outline:
    """The outline that was kept as these values."""
    decoder = values["decoder"]
    if decoder is not None:
        frequencies, factor = decoder["rotary"]["frequencies"], decoder["rotary"]["factor"]
        rotary = Rotary(tuple(frequencies), factor)
        biases = frozenset(decoder["biases"])
        decoder = DecoderConfig(**{**decoder, "rotary": rotary, "biases": biases})
    return Outline(values["model_type"], values["vocab_size"], decoder)


def _made_outline(config: "PreTrainedConfig") -> Outline:
    _check_not_quantised(config)
    kind: str = config.model_type
    decoder = decoder_config(config) if kind in MODEL_TYPES else None
    return Outline(kind, getattr(config.get_text_config(), "vocab_size", 0), decoder)


def read_config(path: Path) -> "PreTrainedConfig":
    """The configuration in a config.json; raises ModelError."""
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except Exception as error:  # what transformers raises is of many kinds, all of one meaning
        raise ModelError(
            f"{path} is no configuration that transformers reads: {reason(error)}"
        ) from error
    return config


def decoder_config(config: "PreTrainedConfig") -> DecoderConfig:
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


def _check_sizes(config: "PreTrainedConfig") -> None:
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


def _checked_rotary(config: "PreTrainedConfig", head_dim: int) -> Rotary:
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


def _max_length(config: "PreTrainedConfig") -> int:
    """The context; where layers slide a window, only texts that fit in it are exact."""
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", config.model_type == "mistral")
    length: int = config.max_position_embeddings
    return min(length, window) if window and slides else length


def _rotary(config: "PreTrainedConfig", head_dim: int) -> Rotary:
    """Rotary embeddings, scaled as the checkpoint says: linear, llama3 or yarn."""
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies, factor = 1.0 / parameters["rope_theta"] ** exponents, 1.0
    elif kind in ("linear", "llama3", "yarn"):
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    else:
        raise ModelError(f"rope type {kind!r} is not supported; default, linear, llama3 or yarn is")
    return Rotary(tuple(frequencies.tolist()), float(factor))


def _check_not_quantised(config: "PreTrainedConfig") -> None:
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
