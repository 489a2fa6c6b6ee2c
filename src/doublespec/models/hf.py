"""Any other causal language model of transformers, through its own cache.

A model from outside is a black box, so its blocks are aligned: a position is always computed in the
same block, at the same row, over the same number of keys. A block that holds new rows is computed
whole, padded at its end, and what is padding is dropped from the cache.

    prompt position p            block [p - p % 64, p - p % 64 + 64)
    answer position p            block of 16 that counts from the first answer position
"""

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from doublespec.errors import ModelError, reason
from doublespec.models.layers import Progress
from doublespec.models.shapes import STRICT, reusable
from doublespec.models.weights import Checkpoint, missing_weight
from doublespec.tokens import Tokens, common_prefix

_PROMPT_ROWS = 64
_ANSWER_ROWS = 16
_ROW_TRIALS = 3
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class TransformersModel:
    """A language model under the full-sequence contract (`models/base.py`)."""

    def __init__(self, model: Any, *, canonical: bool, max_length: int) -> None:
        self._model = model
        self._canonical = canonical
        self._max_length = max_length
        self._longest = max(max_length, longest_text(model.config))
        self._cache: Any = DynamicCache(config=model.config)
        self._cached: list[int] = []
        self._cached_prompt_length = 0
        self._check_cache()
        if canonical:
            self._check_rows()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        canonical: bool = True,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Reads a checkpoint with transformers; raises ModelError if it cannot be used."""
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # what models raise is of many kinds, all of one meaning
            raise ModelError(
                f"transformers cannot load {checkpoint.folder}: {reason(error)}"
            ) from error
        model, report = loaded
        if report["missing_keys"]:
            raise missing_weight(checkpoint.folder, min(report["missing_keys"]))
        length = longest_text(model.config)
        model = model.to(device).eval().requires_grad_(False)
        return cls(model, canonical=canonical, max_length=min(length, max_length or length))

    def fastest(self) -> Self:
        """The same weights in the fastest shapes: the baseline of benchmarks."""
        return type(self)(self._model, canonical=False, max_length=self._max_length)

    @property
    def vocab_size(self) -> int:
        size: int = self._model.config.get_text_config().vocab_size
        return size

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def row_counts(self) -> tuple[int, ...]:
        """The row counts that blocks of an answer come in."""
        return (_ANSWER_ROWS,)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model.dtype
        return dtype

    @torch.inference_mode()
    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        try:
            return self._logits(list(tokens), last, prompt_length)
        except BaseException:  # an interrupt, anywhere: what is cached may be of two lengths
            self._cached, self._cache = [], DynamicCache(config=self._model.config)
            raise

    def _logits(self, tokens: list[int], last: int, prompt_length: int) -> Tensor:
        assert 0 < last <= len(tokens) <= self._max_length
        wanted = len(tokens) - last
        start = min(self._kept(tokens, prompt_length), wanted)
        if self._canonical:
            start = _block_start(start, prompt_length)
        self._crop(start)
        self._cached_prompt_length = prompt_length
        parts = []
        for begin, end, rows in self._blocks(start, len(tokens), prompt_length):
            block = self._forward(tokens[begin:end], begin, rows)
            self._cached += tokens[begin:end]
            if end > wanted:
                parts.append(block[max(wanted - begin, 0) :])
        return torch.cat(parts)

    def _kept(self, tokens: list[int], prompt_length: int) -> int:
        common = common_prefix(self._cached, tokens)
        if not self._canonical:
            return common
        return reusable(common, self._cached_prompt_length, prompt_length, STRICT)

    def _blocks(self, start: int, stop: int, prompt_length: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, rows) of each block that computes positions [start, stop)."""
        if not self._canonical:
            yield start, stop, stop - start
            return
        while start < stop:
            in_prompt = start < prompt_length
            rows = min(_PROMPT_ROWS if in_prompt else _ANSWER_ROWS, self._longest - start)
            end = min(start + rows, stop, prompt_length if in_prompt else stop)
            yield start, end, rows
            start = end

    def _forward(self, tokens: list[int], start: int, rows: int) -> Tensor:
        """Logits (n, V) of n tokens, computed as `rows` rows."""
        padding = rows - len(tokens)
        device = self._model.device
        ids = torch.tensor([[*tokens, *[tokens[-1]] * padding]], device=device)
        positions = torch.arange(start, start + rows, device=device)
        out = self._model(
            input_ids=ids,
            position_ids=positions[None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._forget(start + len(tokens))
        logits: Tensor = out.logits[0, : len(tokens)]
        return logits

    def _crop(self, start: int) -> None:
        self._cached = self._cached[:start]
        self._forget(start)

    def _forget(self, start: int) -> None:
        """Drops what is cached from position `start` on, layer by layer: an interrupted forward has
        written to some of them only."""
        for layer in self._cache.layers:
            layer.crop(min(start - layer.get_seq_length(), 0))

    @torch.inference_mode()
    def _check_cache(self) -> None:
        """Refuses a model whose cache cannot forget, or that does not use it: what a wrong guess
        wrote would stay."""
        try:
            first = self._forward([0, 1, 2], 0, 3)
            fits = all(type(layer) is DynamicLayer for layer in self._cache.layers)
            self._forget(1)
            again = self._forward([1, 2], 1, 2)
            self._forget(0)
        except Exception as error:  # what models raise is of many kinds, all of one meaning
            raise ModelError(self._refusal()) from error
        if not fits or (again - first[1:]).abs().max() > 0.2 * first.float().std():
            raise ModelError(self._refusal())

    @torch.inference_mode()
    def _check_rows(self) -> None:
        """Refuses a model in which a row's bits depend on what is in the others, as where tokens
        are handed to experts: so many as a row goes along with are multiplied at once."""
        config = self._model.config.get_text_config()
        experts = max(_number(config, name) for name in _EXPERTS)
        rows = min(_ANSWER_ROWS, self._longest)
        if experts > 1 or not all(self._is_apart(seed, rows) for seed in range(_ROW_TRIALS)):
            raise ModelError(
                f"in model type {self._model.config.model_type!r} the logits of a token depend on "
                "what is computed beside it (experts that tokens are handed to), so that answers "
                "could not be exact; choose a dense model as the target"
            )

    def _is_apart(self, seed: int, rows: int) -> bool:
        """Whether the first rows of a block have the same bits whatever the last ones are."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(self.vocab_size, (2 * rows,), generator=generator).tolist()
        first, other = text[: rows // 2], text[rows:]
        found = []
        for block in (text[:rows], [*first, *other[len(first) :]], [*first, *first[-1:] * rows]):
            found.append(self._forward(block[:rows], 0, rows)[: len(first)])
            self._forget(0)
        return all(torch.equal(found[0], each) for each in found)

    def _refusal(self) -> str:
        return (
            f"model type {self._model.config.model_type!r} has no cache that can be cropped "
            "(state-space or sliding-window layers); choose a model with full attention"
        )


def _number(config: PreTrainedConfig, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def longest_text(config: PreTrainedConfig) -> int:
    """How many tokens a model reads; 2,048 if its configuration does not say."""
    for name in ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length"):
        length = getattr(config.get_text_config(), name, None)
        if isinstance(length, int) and length > 0:
            return length
    return 2048


def _block_start(position: int, prompt_length: int) -> int:
    """Where the block begins in which `position` is computed."""
    if position < prompt_length:
        return position // _PROMPT_ROWS * _PROMPT_ROWS
    return prompt_length + (position - prompt_length) // _ANSWER_ROWS * _ANSWER_ROWS
