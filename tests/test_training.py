"""The parts that train the bundled pair; the training itself is not run here."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training import model as llama
from training.checkpoints import make_optimizers, num_tokens, open_run, save_run
from training.data import IGNORED, LENGTHS, Batch
from training.learner import Learner, held_out_loss
from training.muon import orthogonal
from training.workers import batches_of
from transformers import AutoModelForCausalLM

DRAFT = Path(__file__).parents[1] / "src/doublespec/pair/draft"


def some_batch(rows: int = 3, length: int = 20) -> Batch:
    tokens = torch.randint(6, 8000, (rows, length), generator=torch.Generator().manual_seed(1))
    labels = tokens.roll(-1, 1)
    labels[:, -1] = IGNORED
    return Batch(tokens, labels)


def test_the_model_is_that_of_transformers() -> None:
    batch = some_batch()
    model = llama.load(DRAFT)
    theirs = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32)
    with torch.no_grad():
        logits = model.head(model(batch.tokens)).view(*batch.tokens.shape, -1)
        torch.testing.assert_close(logits, theirs(batch.tokens).logits, atol=1e-3, rtol=1e-3)


def test_learning_a_batch_lowers_its_loss_and_is_kept(tmp_path: Path) -> None:
    state = open_run(tmp_path, DRAFT, torch.device("cpu"))
    learner, batch = Learner(state, None), some_batch()
    losses = [learner.learn([batch, batch], 3e-3).item() for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5
    save_run(state, tmp_path)
    again = open_run(tmp_path, DRAFT, torch.device("cpu"))
    assert num_tokens(tmp_path) == again.tokens == 8 * 2 * batch.tokens.numel()
    assert held_out_loss(again, [batch]) == held_out_loss(state, [batch]) < losses[0]
    step = [Learner(found, None).learn([batch], 3e-3).item() for found in (state, again)]
    assert step[0] == step[1]
    for ours, theirs in zip(state.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_export_is_read_again_to_the_same_weights(tmp_path: Path) -> None:
    model = llama.load(DRAFT)
    llama.save(dict(model.named_parameters()), DRAFT, tmp_path / "export")
    for ours, theirs in zip(
        model.parameters(), llama.load(tmp_path / "export").parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_every_weight_has_one_optimizer() -> None:
    model = llama.load(DRAFT)
    found = [
        weight
        for optimizer in make_optimizers(model)
        for group in optimizer.param_groups
        for weight in group["params"]
    ]
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16)])
def test_updates_are_nearly_orthogonal(shape: tuple[int, int, int]) -> None:
    found = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(2)))
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_rows_of_every_length_fill_a_batch() -> None:
    assert all(7680 % length == 0 for length in LENGTHS)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_worker_is_left_out_and_the_last_one_is_missed() -> None:
    def make(worker: int) -> Iterator[Batch]:
        for i in range(3):
            if worker == 0 and i == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield Batch(torch.full((1, 2), 10 * worker + i), torch.zeros(1, 2))

    stream = batches_of(make, 2)
    found = [int(next(stream).tokens[0, 0]) for _ in range(4)]
    assert sorted(found) == [0, 10, 11, 12]
    with pytest.raises(RuntimeError, match="every worker"):
        next(stream)
