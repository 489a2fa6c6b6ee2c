"""One step of training: losses and gradients in bf16, updates of the weights in fp32."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from training import model as llama
from training.checkpoints import State
from training.data import IGNORED, Batch

EMA = 0.99


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch on the device: tokens (B, T), places in it whose next token is learned, and these."""

    tokens: Tensor
    places: Tensor
    wanted: Tensor


class Learner:
    """Works on a copy of a run's model in bf16, and of its teacher if there is one."""

    def __init__(self, state: State, teacher: llama.Llama | None) -> None:
        self._state = state
        self._model = copy.deepcopy(state.model).bfloat16()
        self._loss = head_loss
        self._teacher = teacher.to(state.device).bfloat16() if teacher else None

    def compile(self, batch: Batch) -> Exception | None:
        """Compile the model for batches like this one. Uncompiled it goes on after an error."""
        lesson = send(batch, self._state.device)
        self._model.fuse(partial(torch.compile, dynamic=False))
        self._loss = torch.compile(head_loss, dynamic=True)
        try:
            self._descend(lesson, len(lesson.places))
        except Exception as error:  # the compilers' errors have no class in common
            self._model.fuse(lambda part: part)
            self._loss = head_loss
            return error
        finally:
            self._model.zero_grad()
        return None

    def learn(self, batches: Sequence[Batch], rate: float) -> Tensor:
        """One step; gives its loss, the mean over the learned tokens, as it was before.

        Waits for nothing on a GPU, so that the next step is prepared meanwhile.
        """
        state = self._state
        lessons = [send(batch, state.device) for batch in batches]
        count = sum(len(lesson.places) for lesson in lessons)
        losses = [self._descend(lesson, count) for lesson in lessons]
        masters, weights = list(state.model.parameters()), list(self._model.parameters())
        for master, weight in zip(masters, weights, strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        follow = min(EMA, (state.step + 1) / (state.step + 10))
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
            torch._foreach_lerp_(list(state.average.values()), masters, 1 - follow)
        state.step += 1
        state.tokens += sum(batch.tokens.numel() for batch in batches)
        return torch.stack(losses).sum()

    def _descend(self, lesson: Lesson, count: int) -> Tensor:
        hidden = self._model(lesson.tokens).index_select(0, lesson.places)
        wanted = lesson.wanted if self._teacher is None else self._taught(lesson)
        loss = self._loss(hidden, self._model.embed.weight, wanted) / count
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def _taught(self, lesson: Lesson) -> Tensor:
        assert self._teacher is not None
        hidden = self._teacher(lesson.tokens).index_select(0, lesson.places)
        return self._teacher.head(hidden).float().softmax(-1)


def head_loss(hidden: Tensor, weight: Tensor, wanted: Tensor) -> Tensor:
    """The summed cross entropy to the wanted tokens (N) or distributions (N, V), head included."""
    logits = functional.linear(hidden, weight).float()
    return functional.cross_entropy(logits, wanted, reduction="sum")


def send(batch: Batch, device: torch.device) -> Lesson:
    """The batch on a device; copies to a GPU go on while the caller does."""
    places = (batch.labels.flatten() != IGNORED).nonzero()[:, 0]
    parts = [batch.tokens, places, batch.labels.flatten()[places]]
    if device.type == "cuda":
        parts = [part.pin_memory().to(device, non_blocking=True) for part in parts]
    return Lesson(*(part.long() for part in parts))


@torch.no_grad()
def held_out_loss(state: State, batches: Sequence[Batch]) -> float:
    """The averaged weights' mean loss over the learned tokens."""
    model = copy.deepcopy(state.model)
    model.load_state_dict(state.average)
    model.bfloat16()
    total, count = torch.zeros((), device=state.device), 0
    for batch in batches:
        lesson = send(batch, state.device)
        hidden = model(lesson.tokens).index_select(0, lesson.places)
        total += head_loss(hidden, model.embed.weight, lesson.wanted)
        count += len(lesson.places)
    return round(total.item() / count, 4)
