"""The parts of `doublespec bench-shapes`: each yields what it finds, name by name, as it goes."""

from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch

from doublespec.bench.forwards import decode_plain, hottest_kernels, time_rows
from doublespec.bench.pair import measure_pair
from doublespec.bench.profile import save_profile
from doublespec.bench.provenance import model_provenance
from doublespec.bench.static_peer import StaticPeer, peer_times
from doublespec.cli.shape_models import PROFILE, Bench, kept
from doublespec.cli.shape_replay import Found, replay, simulate
from doublespec.errors import ConfigError
from doublespec.models.base import LanguageModel
from doublespec.models.checkpoints import find_shape
from doublespec.models.memory import needed_bytes
from doublespec.models.sizes import DecoderConfig

Part = Callable[[Bench], Found]

# Contexts of a profile are spread. At a border of key lengths, as most round numbers are, some of
# its forwards would be recorded anew while they are timed.
_BEHIND_BORDER = 64


def load(bench: Bench) -> Found:
    """How long it takes until the target can answer."""
    origin = model_provenance(bench.llm)
    rest = bench.loaded["seconds"] - bench.loaded["weights_seconds"]
    yield "target", {**bench.loaded, "beyond_weights_seconds": rest}
    yield "model", {**origin, "row_counts": list(bench.llm.target.row_counts)}


def memory(bench: Bench) -> Found:
    """What was predicted before loading, against the peak so far, when steps of all sizes are
    recorded: to be measured before other parts."""
    llm, settings = bench.llm, bench.llm.settings
    predicted = needed_bytes(
        bench.source,
        bench.device,
        bench.dtype,
        settings.quantize,
        settings.max_length,
        graphs=settings.graphs,
        native=llm.kernels == "native",
    )
    time_rows(llm.target, bench.plan.contexts[0], bench.plan.rows, 1)
    yield "target", {"predicted_bytes": predicted, **_peak(bench.device, predicted)}


def _peak(device: torch.device, predicted: int) -> dict[str, Any]:
    if device.type != "cuda":
        return {"note": f"the peak on {device} is not known"}
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.max_memory_allocated(device)
    return {
        "peak_bytes": allocated,
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
        "used_bytes_of_device": total - free,
        "differs": allocated / predicted - 1,
    }


def bandwidth(bench: Bench) -> Found:
    """What the device reads a second."""
    found = bench.find_bandwidth()
    yield "read", {"bytes_per_second": found.read, **found.reads}
    yield "copy", {"bytes_per_second": found.copy, "buffer_bytes": found.buffer_bytes}


def plain(bench: Bench) -> Found:
    """Plain decoding of the target, and forwards over several rows, in its fastest shape."""
    assert bench.source.config is not None
    yield from _decode(bench, bench.llm.target.fastest(), bench.source.config, quantized=True)


def canonical(bench: Bench) -> Found:
    """The same in the shapes that all methods compute in."""
    assert bench.source.config is not None
    yield from _decode(bench, bench.llm.target, bench.source.config, quantized=True)


def draft(bench: Bench) -> Found:
    """The same of the draft."""
    recipe = bench.llm.recipe
    if recipe is None or recipe.source.config is None:
        raise ConfigError("no draft was given")
    begun = perf_counter()
    model = bench.llm.engine.draft_model()
    yield "load", {"seconds": perf_counter() - begun}
    yield from _decode(bench, model, recipe.source.config, quantized=False)


def kernels(bench: Bench) -> Found:
    """Where the time of a step goes on the device."""
    context = bench.plan.contexts[0]
    seconds, found = hottest_kernels(bench.llm.target.fastest(), context, 5)
    yield "target", {"step_seconds": seconds, "kernels": [asdict(kernel) for kernel in found]}


def profile(bench: Bench) -> Found:
    """What `doublespec simulate --profile` reads."""
    found = measure_pair(bench.llm, bench.plan.contexts[0] + _BEHIND_BORDER)
    if bench.plan.kept is not None:
        save_profile(found, kept(bench.plan, PROFILE))
    yield "pair", asdict(found)


def peer(bench: Bench) -> Found:
    """transformers with a static cache, as it is and compiled. Our own models are given up first:
    there may not be room for both."""
    bench.close()
    config = find_shape(bench.plan.target)
    model = StaticPeer(bench.source, config, bench.device, bench.dtype)
    context, tokens = bench.plan.contexts[0], bench.plan.tokens
    yield "static", peer_times(model, context, tokens, compiled=False)
    if bench.device.type == "cuda":
        yield "static, compiled", peer_times(model, context, tokens, compiled=True)


PARTS: dict[str, Part] = {
    "load": load,
    "memory": memory,
    "bandwidth": bandwidth,
    "plain": plain,
    "canonical": canonical,
    "draft": draft,
    "kernels": kernels,
    "replay": replay,
    "profile": profile,
    "simulate": simulate,
    "peer": peer,
}


def _decode(bench: Bench, model: LanguageModel, config: DecoderConfig, *, quantized: bool) -> Found:
    plan = bench.plan
    for context in plan.contexts:
        found = decode_plain(model, context, plan.tokens)
        limit = bench.limit_seconds(config, context, quantized=quantized)
        shown = {
            "tokens_per_second": 1 / found.seconds,
            "limit_tokens_per_second": 1 / limit,
            "share_of_limit": limit / found.seconds,
        }
        yield f"{context:,} tokens", {**shown, **asdict(found)}
        times = time_rows(model, context, plan.rows, plan.repeats)
        seconds = {str(count): second for count, second in times.seconds.items()}
        shares = {str(count): times.share(count) for count in plan.rows}
        yield f"rows after {context:,} tokens", {"seconds_by_rows": seconds, "shares": shares}
