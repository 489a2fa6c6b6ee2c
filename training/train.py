"""Train or distil a model of the bundled pair from a Hugging Face folder of the same shape.

A run lasts a given time. The learning rate rises, stays, and falls to zero over the last part of
that time. A run can be stopped at any time and goes on from its last checkpoint.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training import model as llama
from training.chores import generate
from training.data import IGNORED, LENGTHS, Batch, batches, encode, pack, read_corpus

EMA = 0.99
WARM_STEPS = 100


@dataclass
class State:
    """All that a checkpoint holds."""

    model: llama.Llama
    optimizers: list[torch.optim.Optimizer]
    average: dict[str, Tensor]
    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)


def main(
    start: Annotated[Path, typer.Option(help="folder of the model to start from")],
    corpus: Annotated[Path, typer.Option(help="folder with instruct.jsonl.gz and math.jsonl.gz")],
    run: Annotated[Path, typer.Option(help="folder for checkpoints; an old run goes on")],
    minutes: Annotated[float, typer.Option(help="time from now to the end")] = 90.0,
    decay: Annotated[float, typer.Option(help="share of the time in which the rate falls")] = 0.5,
    rate: Annotated[float, typer.Option(help="highest learning rate")] = 1e-3,
    corpus_share: Annotated[float, typer.Option(help="conversations from the corpus")] = 0.15,
    repeats: Annotated[float, typer.Option(help="rows of random tokens written twice")] = 0.0,
    batch_tokens: Annotated[int, typer.Option(help="tokens a step")] = 8192,
    first_seed: Annotated[int, typer.Option(help="seed of the first chore")] = 0,
    teacher: Annotated[Path | None, typer.Option(help="folder of a model to distil")] = None,
    threads: int = 2,
) -> None:
    """Train for `minutes`; print the mean loss and the held-out losses now and then."""
    torch.set_num_threads(threads)
    state = open_run(run, start)
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    train_set, held_out = read_corpus(corpus, tokenizer)
    checks = {
        "chores": held_out_batches(tokenizer, None),
        "corpus": held_out_batches(tokenizer, held_out),
    }
    student = Learner(state.model, llama.load(teacher) if teacher else None)
    seed = first_seed + state.step * 1000
    stream = batches(tokenizer, train_set, corpus_share, repeats, seed, batch_tokens)
    began, done = time.monotonic(), state.tokens
    while (passed := (time.monotonic() - began) / 60 / minutes) < 1:
        set_rate(state, rate * schedule(state.step, passed, decay))
        learn(state, student, next(stream))
        if state.step % 25 == 0:
            speed = (state.tokens - done) / (time.monotonic() - began)
            mean = sum(state.losses[-25:]) / 25
            typer.echo(f"step {state.step} loss {mean:.4f} tokens {state.tokens} {speed:.0f}/s")
        if state.step % 100 == 0:
            save_run(state, run)
        if state.step % 300 == 0:
            losses = {name: held_out_loss(state.model, found) for name, found in checks.items()}
            typer.echo(f"step {state.step} held-out {json.dumps(losses)}")
    save_run(state, run)
    llama.save(state.average, start, run / "export")


class Learner:
    """The loss of a batch: next tokens, or with a teacher the distance to its distribution."""

    def __init__(self, model: llama.Llama, teacher: llama.Llama | None) -> None:
        self._model, self._teacher = model, teacher
        self._body = torch.compile(model, dynamic=False)
        self._teach = torch.compile(teacher, dynamic=False) if teacher else None
        torch._dynamo.config.recompile_limit = 4 * len(LENGTHS)

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss over the learned tokens."""
        at = batch.labels != IGNORED
        wanted = batch.labels[at] if self._teacher is None else self._taught(batch, at)
        with torch.autocast("cpu", torch.bfloat16):
            return head_loss(self._body(batch.tokens)[at], self._model.embed.weight, wanted)

    @torch.no_grad()
    def _taught(self, batch: Batch, at: Tensor) -> Tensor:
        assert self._teacher is not None and self._teach is not None
        with torch.autocast("cpu", torch.bfloat16):
            return self._teacher.head(self._teach(batch.tokens)[at]).float().softmax(-1)


@torch.compile(dynamic=True)
def head_loss(hidden: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """The cross entropy to the wanted tokens (N) or distributions (N, V), head included."""
    return functional.cross_entropy(functional.linear(hidden, weight).float(), wanted)


def learn(state: State, learner: Learner, batch: Batch) -> None:
    """One step; the moving average follows the weights."""
    loss = learner.loss(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    follow = min(EMA, (state.step + 1) / (state.step + 10))
    with torch.no_grad():
        for name, weight in state.model.named_parameters():
            state.average[name].lerp_(weight, 1 - follow)
    state.losses.append(loss.item())
    state.step += 1
    state.tokens += batch.tokens.numel()


def schedule(step: int, passed: float, decay: float) -> float:
    """The share of the highest rate at a step, when this share of the time has passed."""
    return min(1.0, (step + 1) / WARM_STEPS, (1 - passed) / decay)


def set_rate(state: State, rate: float) -> None:
    """Give every parameter this learning rate."""
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def held_out_batches(
    tokenizer: Tokenizer, corpus: list[list[tuple[str, str]]] | None
) -> list[Batch]:
    """A fixed set of conversations: held-out chores, or those given."""
    if corpus is None:
        chores = [generate(seed, held_out=True) for seed in range(192)]
        corpus = [[(chore.prompt, chore.answer)] for chore in chores]
    rows = sorted((encode(tokenizer, turns) for turns in corpus), key=lambda row: len(row[0]))
    rows = [row for row in rows if len(row[0]) <= LENGTHS[-1]]
    return [
        pack(rows[i : i + 32], max(len(row) for row, _ in rows[i : i + 32]))
        for i in range(0, len(rows), 32)
    ]


def held_out_loss(model: llama.Llama, found: list[Batch]) -> float:
    """Mean loss a token of the learned tokens."""
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in found:
            at = batch.labels != IGNORED
            logits = model.head(model(batch.tokens)[at]).float()
            total += functional.cross_entropy(logits, batch.labels[at], reduction="sum").item()
            count += int(at.sum())
    return round(total / count, 4)


def open_run(run: Path, start: Path) -> State:
    """The state of the run's last checkpoint, or a fresh one from the folder `start`."""
    model = llama.load(start)
    average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    state = State(model, make_optimizers(model), average)
    path = run / "checkpoint.safetensors"
    if path.exists():
        _restore(state, load_file(path), json.loads((run / "checkpoint.json").read_text()))
    return state


def make_optimizers(model: llama.Llama) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    others.append(model.embed.weight)
    muon = torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


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
    keys = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
    return {key: tensors[f"{key}.{name}"] for key in keys if f"{key}.{name}" in tensors}


if __name__ == "__main__":
    typer.run(main)
