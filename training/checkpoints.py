"""The state of a run, and its checkpoints, from which it goes on."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import model as llama
from training.muon import Muon

_MEMORY = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


@dataclass
class State:
    """All that a checkpoint holds: fp32 weights, their moving average, optimizers, counts."""

    model: llama.Llama
    optimizers: list[torch.optim.Optimizer]
    average: dict[str, Tensor]
    step: int = 0
    tokens: int = 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed.weight.device


def num_tokens(run: Path) -> int:
    """How many tokens the run has seen at its last checkpoint."""
    path = run / "checkpoint.json"
    return int(json.loads(path.read_text())["tokens"]) if path.exists() else 0


def open_run(run: Path, start: Path, device: torch.device) -> State:
    """The state of the run's last checkpoint, or a fresh one from the folder `start`."""
    model = llama.load(start).to(device)
    average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    state = State(model, make_optimizers(model), average)
    path = run / "checkpoint.safetensors"
    if path.exists():
        tensors = load_file(path, device=str(device))
        _restore(state, tensors, json.loads((run / "checkpoint.json").read_text()))
    return state


def make_optimizers(model: llama.Llama) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    others.append(model.embed.weight)
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [Muon(matrices, weight_decay=0.05), adamw]


def save_run(state: State, run: Path) -> None:
    """Write a checkpoint; each file is whole or absent."""
    run.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, weight in state.model.named_parameters():
        tensors[f"weight.{name}"] = weight.detach()
        tensors[f"average.{name}"] = state.average[name]
        for optimizer in state.optimizers:
            for key, value in optimizer.state.get(weight, {}).items():
                tensors[f"{key}.{name}"] = value
    numbers = {"step": state.step, "tokens": state.tokens}
    fresh = run / "checkpoint.safetensors.tmp"
    save_file(tensors, fresh)
    fresh.rename(run / "checkpoint.safetensors")
    fresh = run / "checkpoint.json.tmp"
    fresh.write_text(json.dumps(numbers))
    fresh.rename(run / "checkpoint.json")


def _restore(state: State, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
    state.step, state.tokens = numbers["step"], numbers["tokens"]
    with torch.no_grad():
        for name, weight in state.model.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            state.average[name] = tensors[f"average.{name}"]
            for optimizer in state.optimizers:
                if any(
                    weight is own for group in optimizer.param_groups for own in group["params"]
                ):
                    optimizer.state[weight] = _memory(tensors, name)


def _memory(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensors[f"{key}.{name}"] for key in _MEMORY if f"{key}.{name}" in tensors}
