"""A small Llama for training: the Hugging Face model's mathematics, fused where that is faster.

What works on each token alone sees a batch as one list of tokens, so that batches of any row
length have one shape and are compiled once; only attention, which is not compiled, sees rows.
`load` and `save` read and write Hugging Face folders, so nothing else knows this layout.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class Block(nn.Module):
    """One layer: attention and a gated feed-forward part, each with its norm."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, head = config["hidden_size"], config["head_dim"]
        self.num_heads: int = config["num_attention_heads"]
        self.num_kv: int = config["num_key_value_heads"]
        self.eps: float = config["rms_norm_eps"]
        self.project, self.feed = project, feed
        self.norm_in = nn.RMSNorm(width, eps=self.eps)
        self.norm_mid = nn.RMSNorm(width, eps=self.eps)
        self.qkv = nn.Linear(width, (self.num_heads + 2 * self.num_kv) * head, bias=False)
        self.out = nn.Linear(self.num_heads * head, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * config["intermediate_size"], bias=False)
        self.down = nn.Linear(config["intermediate_size"], width, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, rows: int) -> Tensor:
        """The next hidden state of N tokens in `rows` rows, of the same shape (N, width)."""
        query, key, value = (
            part.view(rows, -1, *part.shape[1:]).transpose(1, 2)
            for part in self.project(
                hidden,
                self.norm_in.weight,
                self.qkv.weight,
                cosine,
                sine,
                self.num_heads,
                self.num_kv,
                self.eps,
            )
        )  # (B, heads, T, head)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.feed(
            hidden,
            mixed.transpose(1, 2).reshape(len(hidden), -1),
            self.out.weight,
            self.norm_mid.weight,
            self.gate_up.weight,
            self.down.weight,
            self.eps,
        )


def project(
    hidden: Tensor,
    norm: Tensor,
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    num_heads: int,
    num_kv: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries, turned keys and values, each (N, heads, head)."""
    normed = functional.rms_norm(hidden, norm.shape, norm, eps)
    heads = functional.linear(normed, qkv).view(len(hidden), num_heads + 2 * num_kv, -1)
    turned, value = heads[:, :-num_kv], heads[:, -num_kv:]
    left, right = turned.chunk(2, -1)
    turned = torch.cat([left * cosine - right * sine, right * cosine + left * sine], -1)
    turned = turned.to(hidden.dtype)
    query, key = turned[:, :num_heads], turned[:, num_heads:]
    repeat = num_heads // num_kv
    return query, key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)


def feed(
    hidden: Tensor,
    mixed: Tensor,
    out: Tensor,
    norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
    eps: float,
) -> Tensor:
    """The hidden state after attention's result is added and the feed-forward part has run."""
    hidden = hidden + functional.linear(mixed, out)
    normed = functional.rms_norm(hidden, norm.shape, norm, eps)
    gate, up = functional.linear(normed, gate_up).chunk(2, -1)
    return hidden + functional.linear(functional.silu(gate) * up, down)


class Llama(nn.Module):
    """Token ids (B, T) to hidden states (B * T, width); `head` turns these into logits."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embed = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
        self.half_head: int = config["head_dim"] // 2
        self.theta: float = config["rope_parameters"]["rope_theta"]

    def forward(self, tokens: Tensor) -> Tensor:
        """The last hidden states, normed, row after row."""
        B, T = tokens.shape
        powers = torch.arange(self.half_head, device=tokens.device) / self.half_head
        places = torch.arange(T, device=tokens.device)[:, None]
        angles = (places * self.theta**-powers).repeat(B, 1)[:, None]  # (N, 1, half head)
        cosine, sine = angles.cos(), angles.sin()
        hidden = self.embed(tokens.flatten())
        for block in self.blocks:
            hidden = block(hidden, cosine, sine, B)
        return self.norm(hidden)

    def fuse(self, fuse: Callable[[Any], Any]) -> None:
        """Pass the parts that see tokens alone through a compiler; all layers share the result."""
        fused = fuse(project), fuse(feed)
        for block in self.blocks:
            block.project, block.feed = fused

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states; the weights are those of the embedding."""
        return functional.linear(hidden, self.embed.weight)


def load(folder: Path) -> Llama:
    """The model of a Hugging Face folder, in fp32."""
    config = json.loads((folder / "config.json").read_text())
    model = Llama(config)
    weights = load_file(folder / "model.safetensors")
    state = {
        "embed.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
    }
    for i in range(config["num_hidden_layers"]):
        for ours, theirs in _layer_names(i).items():
            state[ours] = torch.cat([weights[name] for name in theirs])
    model.load_state_dict(state)
    return model.float()


def save(state: dict[str, Tensor], like: Path, folder: Path) -> None:
    """Write weights as a bf16 Hugging Face folder; it appears whole or not at all."""
    config = json.loads((like / "config.json").read_text())
    weights = {
        "model.embed_tokens.weight": state["embed.weight"],
        "model.norm.weight": state["norm.weight"],
    }
    for i in range(config["num_hidden_layers"]):
        for ours, theirs in _layer_names(i).items():
            sizes = _sizes(config, len(theirs), state[ours].shape[0])
            weights |= dict(zip(theirs, state[ours].split(sizes), strict=True))
    fresh = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in SIDE_FILES:
        shutil.copyfile(like / name, fresh / name)
    halves = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(halves, fresh / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _layer_names(i: int) -> dict[str, list[str]]:
    theirs = f"model.layers.{i}"
    heads = [f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"]
    gates = [f"{theirs}.mlp.{part}_proj.weight" for part in ("gate", "up")]
    return {
        f"blocks.{i}.norm_in.weight": [f"{theirs}.input_layernorm.weight"],
        f"blocks.{i}.norm_mid.weight": [f"{theirs}.post_attention_layernorm.weight"],
        f"blocks.{i}.qkv.weight": heads,
        f"blocks.{i}.out.weight": [f"{theirs}.self_attn.o_proj.weight"],
        f"blocks.{i}.gate_up.weight": gates,
        f"blocks.{i}.down.weight": [f"{theirs}.mlp.down_proj.weight"],
    }


def _sizes(config: dict[str, Any], count: int, rows: int) -> list[int]:
    if count < 3:
        return [rows // count] * count
    kv = config["num_key_value_heads"] * config["head_dim"]
    return [rows - 2 * kv, kv, kv]
