"""What `doublespec bench-shapes` is asked, and the models that its parts share."""

import gc
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from doublespec.bench.limits import BUFFER_BYTES, Bandwidth, measure_bandwidth, token_bytes
from doublespec.errors import ConfigError
from doublespec.llm import LLM
from doublespec.models.checkpoints import open_source
from doublespec.models.choice import choose_dtype
from doublespec.models.devices import find_device
from doublespec.models.sizes import DecoderConfig

PROFILE = ".profile.json"  # the ending of its name beside the report


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often. Agreements of None are as the traces recorded."""

    target: str
    draft: str | None
    settings: dict[str, Any] = field(repr=False)
    contexts: tuple[int, ...]
    rows: tuple[int, ...]
    tokens: int
    repeats: int
    traces: tuple[Path, ...]
    agreements: tuple[float | None, ...]
    methods: tuple[str, ...]
    limit: int
    max_tokens: int
    buffer_bytes: int = BUFFER_BYTES
    kept: Path | None = None  # beside this file runs and the profile are kept


class Bench:
    """The models of a plan, read when a part first needs them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.source = open_source(plan.target)
        self.device = find_device(plan.settings["target_device"])
        quantize, kernels = plan.settings["quantize"], plan.settings["kernels"]
        config = self.source.config
        self.dtype = choose_dtype(plan.settings["dtype"], kernels, config, [self.device], quantize)
        self.loaded: dict[str, float] = {}
        self.bandwidth: Bandwidth | None = None
        self._llm: LLM | None = None

    @property
    def llm(self) -> LLM:
        if self._llm is None:
            self._llm = self._load()
        return self._llm

    def close(self) -> None:
        """Forgets the models."""
        if self._llm is not None:
            self._llm.close()
        self._llm = None
        self.tidy()

    def tidy(self) -> None:
        """Frees what a part has left behind."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def find_bandwidth(self) -> Bandwidth:
        if self.bandwidth is None:
            self.bandwidth = measure_bandwidth(self.device, self.plan.buffer_bytes)
        return self.bandwidth

    def limit_seconds(self, config: DecoderConfig, context: int, *, quantized: bool) -> float:
        """Of a token, by the bytes it reads."""
        quantize = self.plan.settings["quantize"] if quantized else None
        read = token_bytes(config, self.dtype, quantize, context).total
        return read / self.find_bandwidth().read

    def _load(self) -> LLM:
        """Nothing but the target is read yet: `ar` needs no draft."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        begun, times = perf_counter(), {"weights": 0.0}

        def report(what: str, done: int, total: int) -> None:
            times["weights"] = perf_counter() - begun

        plan = self.plan
        llm = LLM(plan.target, plan.draft, "ar", progress=report, **plan.settings)
        seconds = perf_counter() - begun
        self.loaded = {"weights_seconds": times["weights"], "seconds": seconds}
        return llm


def kept(plan: Plan, ending: str) -> Path:
    """A file beside the report."""
    if plan.kept is None:
        raise ConfigError("what this part reads is kept beside the report: give --json FILE")
    return plan.kept.with_suffix(ending)
