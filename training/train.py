"""Train or distil a model of the bundled pair from a Hugging Face folder of the same shape.

A run lasts a given time. The learning rate rises, stays, and falls to zero over the last part of
that time. A run can be stopped at any time and goes on from its last checkpoint.
"""

import json
import time
from collections.abc import Iterator
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer
from torch import Tensor

from training import model as llama
from training.checkpoints import State, num_tokens, open_run, save_run
from training.chores import generate
from training.data import LENGTHS, Batch, Turns, batches, encode, pack, read_corpus
from training.learner import Learner, held_out_loss
from training.workers import batches_of

WARM_STEPS = 100
REPORTS = 50  # in a run; every fifth comes with the held-out losses, a checkpoint and an export
SEEDS_OF_A_WORKER = 10**9


def main(
    start: Annotated[Path, typer.Option(help="folder of the model to start from")],
    corpus: Annotated[Path, typer.Option(help="folder with instruct.jsonl.gz and math.jsonl.gz")],
    run: Annotated[Path, typer.Option(help="folder for checkpoints; an old run goes on")],
    minutes: Annotated[float, typer.Option(help="time from now to the end")] = 90.0,
    until: Annotated[float | None, typer.Option(help="end by then, in Unix seconds")] = None,
    decay: Annotated[float, typer.Option(help="share of the time in which the rate falls")] = 0.5,
    rate: Annotated[float, typer.Option(help="highest learning rate")] = 1e-3,
    corpus_share: Annotated[float, typer.Option(help="conversations from the corpus")] = 0.15,
    repeats: Annotated[float, typer.Option(help="rows of random tokens written twice")] = 0.0,
    batch_tokens: Annotated[int, typer.Option(help="tokens of a batch; 7680 or its like")] = 7680,
    batches_a_step: Annotated[int, typer.Option(help="batches whose gradients are summed")] = 1,
    first_seed: Annotated[int, typer.Option(help="seed of the first chore")] = 0,
    teacher: Annotated[Path | None, typer.Option(help="folder of a model to distil")] = None,
    device: Annotated[str | None, typer.Option(help="default: cuda if there is one")] = None,
    workers: Annotated[int, typer.Option(help="processes that make chores")] = 1,
    threads: int = 2,
) -> None:
    """Train for `minutes`; print the mean loss and the held-out losses now and then."""
    began, seconds = time.time(), minutes * 60
    seconds = seconds if until is None else min(seconds, until - began)
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    train_set, held_out = read_corpus(corpus, tokenizer)
    first_seed += num_tokens(run) // 10  # no chore has so few tokens, so none comes twice

    def make(worker: int) -> Iterator[Batch]:
        seed = first_seed + worker * SEEDS_OF_A_WORKER
        return batches(tokenizer, train_set, corpus_share, repeats, seed, batch_tokens)

    stream = batches_of(make, workers)  # before CUDA is used, since they are forked
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 4 * len(LENGTHS)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it would plan anew for each length of rows
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    state = open_run(run, start, torch.device(name))
    checks = {
        "chores": held_out_batches(tokenizer, None),
        "corpus": held_out_batches(tokenizer, held_out),
    }
    learner = Learner(state, llama.load(teacher) if teacher else None)
    if error := learner.compile(next(stream)):
        typer.echo(f"not compiled: {error!r}")
    typer.echo(f"{name}: ready after {time.time() - began:.1f} s of {seconds:.0f}")
    report = Report(state)
    while (passed := (time.time() - began) / seconds) < 1:
        now = rate * schedule(state.step, passed, decay)
        report.add(learner.learn(list(islice(stream, batches_a_step)), now))
        if report.count < int(passed * REPORTS):
            report.write()
            if report.count % 5 == 0:
                keep(state, checks, start, run)
    report.write()
    keep(state, checks, start, run)


class Report:
    """Collects the losses of the steps since its last line."""

    def __init__(self, state: State) -> None:
        self.count = 0
        self._state, self._losses = state, list[Tensor]()
        self._tokens, self._time = state.tokens, time.time()

    def add(self, loss: Tensor) -> None:
        """Keep a loss, which a GPU may still be busy with."""
        self._losses.append(loss)

    def write(self) -> None:
        """Wait for the losses, and print their mean and the speed."""
        mean = torch.stack(self._losses).mean().item() if self._losses else float("nan")
        speed = (self._state.tokens - self._tokens) / (time.time() - self._time)
        step, tokens = self._state.step, self._state.tokens
        typer.echo(f"step {step} loss {mean:.4f} tokens {tokens} {speed:.0f}/s")
        self.count += 1
        self._losses, self._tokens, self._time = [], tokens, time.time()


def keep(state: State, checks: dict[str, list[Batch]], start: Path, run: Path) -> None:
    """Print the held-out losses of the averaged weights; write a checkpoint and an export."""
    losses = {name: held_out_loss(state, found) for name, found in checks.items()}
    typer.echo(f"step {state.step} held-out {json.dumps(losses)}")
    if not all(isfinite(loss) for loss in losses.values()):
        raise ArithmeticError("the losses are no numbers any more; the last export is kept")
    llama.save(state.average, start, run / "export")
    save_run(state, run)


def schedule(step: int, passed: float, decay: float) -> float:
    """The share of the highest rate at a step, when this share of the time has passed."""
    return min(1.0, (step + 1) / WARM_STEPS, (1 - passed) / decay)


def held_out_batches(tokenizer: Tokenizer, corpus: list[Turns] | None) -> list[Batch]:
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


if __name__ == "__main__":
    typer.run(main)
