"""The parts of `doublespec bench-shapes`: each yields what it finds, name by name, as it goes."""

import gc
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from doublespec.bench.forwards import decode_plain, hottest_kernels, time_rows
from doublespec.bench.limits import BUFFER_BYTES, Bandwidth, measure_bandwidth, token_bytes
from doublespec.bench.machine import read_machine
from doublespec.bench.pair import measure_pair
from doublespec.bench.profile import save_profile
from doublespec.bench.provenance import model_provenance
from doublespec.bench.race import Race
from doublespec.bench.real_replay import SECOND_CHOICE, Replays, as_replayed
from doublespec.bench.results import faults, results
from doublespec.bench.runs import RunLog, read_runs
from doublespec.bench.static_peer import StaticPeer, peer_times
from doublespec.bench.traces import Trace
from doublespec.bench.validation import validate
from doublespec.cli.bench_replay import not_the_trace, replay_provenance, replayed_work
from doublespec.engine import Engine
from doublespec.errors import ConfigError
from doublespec.llm import LLM
from doublespec.models.base import LanguageModel
from doublespec.models.checkpoints import find_shape, open_source
from doublespec.models.devices import find_device
from doublespec.models.memory import needed_bytes
from doublespec.models.native.choice import choose_dtype
from doublespec.models.sizes import DecoderConfig
from doublespec.sampling import SamplingParams

Found = Iterator[tuple[str, dict[str, Any]]]
Part = Callable[["Bench"], Found]

_PROFILE = ".profile.json"


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
    found = measure_pair(bench.llm, bench.plan.contexts[0])
    if bench.plan.kept is not None:
        save_profile(found, _kept(bench.plan, _PROFILE))
    yield "pair", asdict(found)


def replay(bench: Bench) -> Found:
    """Methods on recorded answers, for each agreement."""
    if not bench.plan.traces:
        raise ConfigError("no traces were given; name some with --replay")
    for agreement in bench.plan.agreements:
        yield from _replay(bench, agreement)


def simulate(bench: Bench) -> Found:
    """The runs of `replay`, simulated with the forwards of `profile`: beside a draft as measured
    there, or as on one processor that both models share. Reads no model."""
    machine = read_machine(_kept(bench.plan, _PROFILE))
    shared = replace(machine, devices=1, beside_draft=None, draft_beside=None)
    for agreement in bench.plan.agreements:
        runs = read_runs(_kept(bench.plan, _runs_ending(agreement)))
        traces = _cut(_replays(bench, agreement), bench.plan.max_tokens)
        for kind, chosen in (("beside as measured", machine), ("one processor", shared)):
            found = validate(runs, traces, chosen, SECOND_CHOICE, bench.plan.settings["gamma"])
            yield (
                f"{_name(agreement)}, {kind}",
                {
                    name: {**asdict(both), "differs": both.difference}
                    for name, both in found.items()
                },
            )


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
    "profile": profile,
    "replay": replay,
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


def _replay(bench: Bench, agreement: float | None) -> Found:
    replays = _replays(bench, agreement)
    llm = _replaying(bench.llm, replays)
    work = replayed_work(llm, replays, ())
    params = SamplingParams(max_tokens=bench.plan.max_tokens)
    race = Race(llm, work.prompts, bench.plan.methods, params, 1, None, work.lengths)
    log = _log(bench.plan, replays, agreement)
    begun = perf_counter()
    try:
        race.warm_up()
        prepared = perf_counter() - begun
        for run in race.play():
            if log is not None:
                log.keep(run)
            if len(race.runs) % len(race.names) == 0:
                found = _replayed(race, replays, work.items)
                yield _name(agreement), {"prepare_seconds": prepared, **found}
    finally:
        llm.engine.close()


def _name(agreement: float | None) -> str:
    return "as recorded" if agreement is None else f"agreement {agreement:g}"


def _replays(bench: Bench, agreement: float | None) -> Replays:
    plan = bench.plan
    names = [plan.target] if plan.draft is None else [plan.target, plan.draft]
    vocab_size = min(open_source(name).vocab_size for name in names)
    return Replays(plan.traces, vocab_size, agreement, plan.limit)


def _cut(replays: Replays, longest: int) -> list[Trace]:
    """Its traces, no answer longer than that."""
    return [
        replace(trace, answer=trace.answer[:longest], agrees=trace.agrees[:longest])
        for traces in replays.read().values()
        for trace in traces
    ]


def _replaying(llm: LLM, replays: Replays) -> LLM:
    """The same models, answering from traces; its draft is read anew."""
    other = copy(llm)
    other.target = replays.target(llm.target)
    other.recipe = llm.recipe and replace(llm.recipe, wrap=replays.draft)
    other.engine = Engine(other.target, other.recipe, llm.settings, llm.engine.cost, llm.threads)
    return other


def _replayed(race: Race, replays: Replays, items: Sequence[Any]) -> dict[str, Any]:
    categories = [item.category for item in items]
    wrong = faults(race.runs, (), race.llm.codec.end_ids, race.params.max_tokens)
    return {
        "replay": replay_provenance(replays),
        "answers": len(items),
        "max_tokens": race.params.max_tokens,
        "complete": race.is_complete,
        "results": as_replayed(results(race.by_method(), categories, {})),
        "faults": [*wrong, *not_the_trace(race, replays)],
    }


def _log(plan: Plan, replays: Replays, agreement: float | None) -> RunLog | None:
    """Begun anew."""
    if plan.kept is None:
        return None
    path = _kept(plan, _runs_ending(agreement))
    path.unlink(missing_ok=True)
    return RunLog(path, {"replay": replay_provenance(replays), "models": [plan.target, plan.draft]})


def _kept(plan: Plan, ending: str) -> Path:
    """A file beside the report."""
    if plan.kept is None:
        raise ConfigError("what this part reads is kept beside the report: give --json FILE")
    return plan.kept.with_suffix(ending)


def _runs_ending(agreement: float | None) -> str:
    return f".runs-{'recorded' if agreement is None else format(agreement, 'g')}.jsonl"
