"""Does the number of rows change a row's bits? A test of this device's kernels that sees it.

Results in bfloat16 hide most differences in the order of summation: a kernel may look invariant on
random data and flip a token a thousand steps later. So the data cancel: each sum here is zero but
for rounding, and what is left is the order of summation itself, in every value.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from doublespec.models.layers import Linear, MakeLinear, attention, linear, rms_norm
from doublespec.models.shapes import KERNEL_ROWS, Kernel, Shapes, attending, standing
from doublespec.models.sizes import DecoderConfig


@dataclass(frozen=True, slots=True)
class KernelProbe:
    """The kernels of a decoder of these sizes, on data that cancel; `product` makes the products of
    its layers. Each is made when it is asked for, since those of a large model are large; the
    largest is `head`, the model's own product with the vocabulary, where that will do."""

    config: DecoderConfig
    device: torch.device
    dtype: torch.dtype
    product: MakeLinear = linear
    head: Linear | None = None

    def products(self) -> Iterator[Kernel]:
        """What every row goes through by itself: products and the norm. With a bias a product may
        be another kernel, so both kinds are tested where some have one."""
        for out_size, in_size in sorted(set(self.config.layer_sizes())):
            yield self._linear(out_size, in_size, self.product)
            if self.config.biased:
                yield self._linear(out_size, in_size, self.product, biased=True)
        yield self._norm()

    def attention(self, key_lengths: list[int]) -> Iterator[Kernel]:
        """Attention over each number of keys."""
        for keys in key_lengths:
            yield self._attention(keys, masked=False)
            yield self._attention(keys, masked=True)

    def vocabulary(self) -> Iterator[Kernel]:
        """What only rows go through whose logits are asked for. In float32 the model's own weights
        do: another order of summation shows in more than half of all values (docs/log.md), and to
        make a table of that size takes seconds, and as much memory again."""
        if self.head is None or self.dtype is not torch.float32:
            yield self._linear(self.config.vocab_size, self.config.hidden_size, linear)
            return
        head, rows = self.head, self._random(KERNEL_ROWS, self.config.hidden_size)
        yield lambda index: head(rows[index])

    def computations(
        self, shapes: Shapes, key_lengths: list[int]
    ) -> Iterator[Callable[[], Tensor]]:
        """Each kernel over each row count that occurs in canonical shapes, to be computed in
        several ways that must give the same bits."""
        assert shapes.key_step is not None
        answer, prompt = (attending(n, shapes.key_step) for n in (shapes.answer, shapes.prompt))
        attended = {max(rows, shapes.lone) for rows in answer} | {*prompt}
        for kernels, counts in (
            (self.products(), {*shapes.answer, *shapes.prompt}),
            ((self._attention(keys, masked=True) for keys in key_lengths), attended),
            (self.vocabulary(), {*shapes.answer}),
        ):
            for kernel in kernels:
                yield from (partial(kernel, standing(rows)) for rows in sorted(counts))

    def _linear(
        self, out_size: int, in_size: int, make: MakeLinear, *, biased: bool = False
    ) -> Kernel:
        half, order = in_size // 2, self._order(in_size // 2 * 2)
        block = self._random(min(out_size, 128), half)
        weight = torch.cat((block, -block), dim=1)[:, order]
        whole = weight.repeat(-(-out_size // len(block)), 1)[:out_size].contiguous()
        product = make(whole, torch.zeros_like(whole[:, 0]) if biased else None)
        rows = self._random(KERNEL_ROWS, half)
        rows = torch.cat((rows, rows), dim=1)[:, order]
        return lambda index: product(rows[index])

    def _attention(self, keys: int, *, masked: bool) -> Kernel:
        """Pairs of equal keys with opposite values; if masked, each row sees its own number."""
        c = self.config
        order = self._order(keys)
        shape = (1, c.num_kv_heads, keys // 2, c.head_dim)
        key, value = self._random(*shape), self._random(*shape)
        key = torch.cat((key, key), dim=2)[:, :, order]
        value = torch.cat((value, -value), dim=2)[:, :, order]
        queries = 0.3 * self._random(KERNEL_ROWS, c.num_heads, c.head_dim)
        positions = torch.arange(KERNEL_ROWS, device=self.device) * 37 % (keys // 2) + keys // 2
        hidden = torch.arange(keys, device=self.device) > positions[:, None]
        masks = torch.zeros((KERNEL_ROWS, keys), dtype=self.dtype, device=self.device)
        if masked:
            masks = masks.masked_fill(hidden, float("-inf"))

        def attend(index: Tensor) -> Tensor:
            mask = masks[index].repeat(c.num_heads // c.num_kv_heads, 1)
            return attention(queries[index].transpose(0, 1), key, value, mask).transpose(0, 1)

        return attend

    def _norm(self) -> Kernel:
        """In float32, as norms compute inside, where every difference shows."""
        rows = self._random(KERNEL_ROWS, self.config.hidden_size).float()
        norm = rms_norm(torch.ones_like(rows[0]), self.config.norm_eps)
        return lambda index: norm(rows[index])

    def _random(self, *size: int) -> Tensor:
        generator = torch.Generator().manual_seed(sum(size))
        return torch.randn(size, generator=generator).to(self.device, self.dtype)

    def _order(self, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(size)
        return torch.randperm(size, generator=generator).to(self.device)
