"""`doublespec bench --replay`: what is asked and checked when the answers are known beforehand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from doublespec.bench.questions import Item
from doublespec.bench.race import Race, Run
from doublespec.bench.real_replay import SECOND_CHOICE, Replays
from doublespec.bench.stored import is_stored
from doublespec.bench.traces import Trace, mean_agreement
from doublespec.cli.bench_work import Work
from doublespec.errors import ConfigError
from doublespec.llm import LLM, find_bundled
from doublespec.models.checkpoints import open_source
from doublespec.models.random_weights import RANDOM
from doublespec.retrieval.datastore import Datastore


def find_replays(
    paths: Sequence[Path] | None,
    agreement: float | None,
    limit: int | None,
    seed: int,
    models: tuple[str, str | None],
) -> Replays | None:
    """What to replay, if anything. Raises ConfigError where models and options do not fit."""
    if not paths:
        if agreement is not None:
            raise ConfigError("--agreement is the draft's with a trace: give --replay TRACES, too")
        if any(name and name.startswith(RANDOM) for name in models):
            raise ConfigError(
                "random weights answer nothing worth measuring: give --replay TRACES, whose "
                "answers they then compute"
            )
        return None
    target, draft = models
    names = [find_bundled(target, "target"), *([find_bundled(draft, "draft")] if draft else [])]
    vocab_size = min(open_source(name).vocab_size for name in names)
    files = tuple(path.absolute() for path in paths)
    return Replays(files, vocab_size, agreement, limit, seed)


def check_alone(**others: object) -> None:
    """Raises ConfigError if an option was given that a replay leaves no room for."""
    for name, value in others.items():
        if value:
            flag = name.replace("_", "-")
            raise ConfigError(f"--replay answers from traces, which --{flag} cannot; leave one out")


def replayed_work(llm: LLM, replays: Replays, stores: Sequence[Datastore]) -> Work:
    """The prompts of the traces that are in no store, their files being the categories. Raises
    ConfigError where a prompt does not fit in the context."""
    found = replays.read()
    every = [(name, trace) for name, traces in found.items() for trace in traces]
    kept = [(name, trace) for name, trace in every if not is_stored(trace.answer, stores)]
    if not kept:
        raise ConfigError("the answers of all traces are in the datastore; replay others")
    for _, trace in kept:
        if len(trace.prompt) >= llm.target.max_length:
            raise ConfigError(
                f"the prompt of {trace.id} has {len(trace.prompt)} tokens and the context holds "
                f"{llm.target.max_length}, the answer included; replay others"
            )
    return Work(
        [_item(llm, name, trace) for name, trace in kept],
        [list(trace.prompt) for _, trace in kept],
        [len(trace.answer) for _, trace in kept],
        len(every) - len(kept),
    )


def _item(llm: LLM, name: str, trace: Trace) -> Item:
    text = llm.codec.decode(trace.prompt)
    return Item(trace.id, name, ({"role": "user", "content": text},))


def replay_provenance(replays: Replays) -> dict[str, object]:
    """What was replayed, for reports."""
    found = replays.read()
    traces = [trace for traces in found.values() for trace in traces]
    return {
        "traces": list(found),
        "agreement": round(mean_agreement(traces), 4),
        "second_choice": SECOND_CHOICE,
        "seed": replays.seed,
    }


def not_the_trace(race: Race, replays: Replays) -> list[str]:
    """A sentence if an answer is not what the trace says; that would be a fault of ours."""
    answers = {t.prompt: t.answer for traces in replays.read().values() for t in traces}

    def is_wrong(run: Run) -> bool:
        tokens = run.completion.tokens
        return tokens != answers[tuple(race.prompts[run.prompt])][: len(tokens)]

    wrong = sorted({run.method for run in race.runs if is_wrong(run)})
    return [f"{name}: its texts are not those of the traces" for name in wrong]


def labelled(runs: Sequence[Run], label: str) -> list[Run]:
    """The runs, with the label behind the names of their methods."""
    return [replace(run, method=run.method + label) for run in runs]
