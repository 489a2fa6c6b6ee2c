"""Two parts of `doublespec bench-shapes`: methods on recorded answers, and those simulated."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

from doublespec.bench.machine import read_machine
from doublespec.bench.questions import Item
from doublespec.bench.race import Race
from doublespec.bench.real_replay import SECOND_CHOICE, Replays, as_replayed
from doublespec.bench.results import faults, results
from doublespec.bench.runs import RunLog, read_runs
from doublespec.bench.traces import Trace
from doublespec.bench.validation import validate
from doublespec.cli.bench_replay import not_the_trace, replay_provenance, replayed_work
from doublespec.cli.shape_models import PROFILE, Bench, Plan, kept
from doublespec.engine import Engine
from doublespec.errors import ConfigError
from doublespec.llm import LLM
from doublespec.models.checkpoints import open_source
from doublespec.sampling import SamplingParams

Found = Iterator[tuple[str, dict[str, Any]]]


def replay(bench: Bench) -> Found:
    """Methods on recorded answers, for each agreement."""
    if not bench.plan.traces:
        raise ConfigError("no traces were given; name some with --replay")
    for agreement in bench.plan.agreements:
        yield from _replay(bench, agreement)


def simulate(bench: Bench) -> Found:
    """The runs of `replay`, simulated with the forwards of `profile`: beside a draft as measured
    there, or as on one processor that both models share. Reads no model."""
    machine = read_machine(kept(bench.plan, PROFILE))
    shared = replace(machine, devices=1, beside_draft=None, draft_beside=None)
    for agreement in bench.plan.agreements:
        runs = read_runs(kept(bench.plan, _runs_ending(agreement)))
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


def _replayed(race: Race, replays: Replays, items: Sequence[Item]) -> dict[str, Any]:
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
    path = kept(plan, _runs_ending(agreement))
    path.unlink(missing_ok=True)
    return RunLog(path, {"replay": replay_provenance(replays), "models": [plan.target, plan.draft]})


def _runs_ending(agreement: float | None) -> str:
    return f".runs-{'recorded' if agreement is None else format(agreement, 'g')}.jsonl"
