"""The public dimensions of some models, by name. Knows no weights."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _qwen3(hidden: int, inner: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": tied,
    }


def _llama3(
    hidden: int, inner: int, layers: int, heads: int, *, factor: float = 8.0, tied: bool = False
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": tied,
    }


# As the config.json of each says.
CONFIGS: Final = {
    "Qwen3-32B": _qwen3(5120, 25600, 64, 64, tied=False),
    "Qwen3-14B": _qwen3(5120, 17408, 40, 40, tied=False),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Llama-3.3-70B": _llama3(8192, 28672, 80, 64),
    "Llama-3.1-8B": _llama3(4096, 14336, 32, 32),
    "Llama-3.2-1B": _llama3(2048, 8192, 16, 32, factor=32.0, tied=True),
}


def built_in_config(name: str) -> "PreTrainedConfig":
    """The configuration of one of CONFIGS."""
    from transformers import AutoConfig

    values = dict(CONFIGS[name])
    config: PreTrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
    return config
