"""Tiny random checkpoints in Hugging Face format, of any family of transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "<|bos|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

# What `decoder.py` reads, by name: (model type, changes of the configuration).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 4}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "llama-linear": ("llama", {"rope_parameters": _LINEAR}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-nemo": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2.5-yarn": ("qwen2", {"rope_parameters": _YARN, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


def write_family(folder: Path, family: str, **changes: Any) -> Path:
    """Writes a checkpoint of one of FAMILIES."""
    model_type, own = FAMILIES[family]
    return write_checkpoint(folder, model_type, **{**_SIZES, **own, **changes})


def write_checkpoint(
    folder: Path, model_type: str, *, seed: int = 0, shard_size: str = "1GB", **config: Any
) -> Path:
    """Writes config.json and random weights (in shards of at most `shard_size`)."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    randomise(model, seed)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fills all weights such that every one of them shows in the logits: norms that are not 1,
    biases that are not 0, products that keep the size of what they are given."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                std = 1.2 / weight.shape[-1] ** 0.5
                torch.nn.init.normal_(weight, std=std, generator=generator)
            elif name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.5, generator=generator)
            else:
                torch.nn.init.uniform_(weight, 0.5, 1.5, generator=generator)


def write_tokenizer(
    folder: Path,
    *,
    vocab_size: int = 300,
    chat_template: str | None = CHAT_TEMPLATE,
    end_ids: int | Sequence[int] = (1, 5),
    bos_token: str | None = "<|bos|>",
) -> Path:
    """Writes a byte-level BPE tokenizer, its chat template and generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    splits = pre_tokenizers.Split(Regex(r"\s?\w+|\s|[^\s\w]+"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the token at a position is a function of the text before it and of nothing else"
    tokenizer.train_from_iterator([text] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos_token,
        "eos_token": "<|eos|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }
    write_json(folder / "tokenizer_config.json", settings)
    value = end_ids if isinstance(end_ids, int) else list(end_ids)
    write_json(folder / "generation_config.json", {"eos_token_id": value})
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
