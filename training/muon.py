"""Muon (Jordan and others, 2024): momentum whose update is made orthogonal, for matrices.

Matrices of one shape are worked on together, since a GPU would wait for forty small ones.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Updates have the size of AdamW's, so that both take the same rate (arXiv 2502.16982)."""

    def __init__(self, matrices: Iterable[Tensor], weight_decay: float) -> None:
        shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            shapes[matrix.shape].append(matrix)
        groups = [{"params": alike} for alike in shapes.values()]
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix by one update."""
        for group in self.param_groups:
            weights = group["params"]
            gradients = [weight.grad for weight in weights]
            memories = [self._memory(weight) for weight in weights]
            torch._foreach_lerp_(memories, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(gradients, memories, MOMENTUM)  # Nesterov
            updates = orthogonal(torch.stack(ahead))
            size = 0.2 * max(weights[0].shape) ** 0.5
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(
                weights, list(updates.to(weights[0].dtype).unbind()), alpha=-group["lr"] * size
            )

    def _memory(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def orthogonal(matrices: Tensor) -> Tensor:
    """The matrices (count, rows, columns) with singular values near 1, by Newton and Schulz."""
    a, b, c = COEFFICIENTS
    found = matrices.bfloat16()
    if tall := found.shape[1] > found.shape[2]:
        found = found.mT
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = a * found + (b * square + c * square @ square) @ found
    return found.mT if tall else found
