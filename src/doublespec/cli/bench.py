"""`doublespec bench`: methods and peers on the same prompts, measured so that it cannot flatter."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import typer

from doublespec.bench.markdown import as_markdown
from doublespec.bench.outputs import check_different, check_file, check_output, write_output
from doublespec.bench.peers import OWN_PLAIN, PEERS, check_peers, make_peers
from doublespec.bench.provenance import model_provenance, provenance
from doublespec.bench.questions import (
    SUITE_NAME,
    Item,
    check_prompt_names,
    read_questions,
)
from doublespec.bench.race import REPLAYED, Race
from doublespec.bench.real_replay import Replays, as_replayed
from doublespec.bench.record import record_traces
from doublespec.bench.results import faults, results
from doublespec.bench.runs import RunLog
from doublespec.bench.traces import write_traces
from doublespec.cli import options
from doublespec.cli.bench_replay import (
    check_alone,
    find_replays,
    labelled,
    not_the_trace,
    replay_provenance,
    replayed_work,
)
from doublespec.cli.bench_table import table
from doublespec.cli.bench_work import asked_work
from doublespec.cli.options import errors, terminal
from doublespec.errors import ConfigError
from doublespec.llm import BUNDLED
from doublespec.methods import DRAFTLESS, METHODS, split_name
from doublespec.retrieval.datastore import Datastore
from doublespec.sampling import SamplingParams

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Outputs:
    """The files that a benchmark writes at its end."""

    json: Path | None
    html: Path | None
    markdown: Path | None
    record: Path | None

    @property
    def paths(self) -> list[Path]:
        paths = (self.json, self.html, self.markdown, self.record)
        return [path for path in paths if path is not None]

    @property
    def use_stdout(self) -> bool:
        return Path("-") in self.paths

    def check(self, *, force: bool) -> None:
        """Raises ConfigError if one of them could not be written, or two are the same."""
        check_different(*self.paths)
        check_file(self.record, force=force)
        for path in self.paths:
            check_output(path, force=force)
        options.check_pictures(self.html)


def bench(
    target: options.Target = BUNDLED,
    draft: options.Draft = None,
    random_weights: options.Random = None,
    methods: Annotated[str, typer.Option(help="Comma-separated; default: all that can run.")] = "",
    peers: Annotated[bool, typer.Option("--peers", help="Run the peers, too.")] = False,
    peer_names: Annotated[
        str, typer.Option("--peer-names", help=f"Which peers, of {', '.join(PEERS)}.")
    ] = "",
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="suite, a file in Spec-Bench's schema, or hf:OWNER/NAME/FILE.jsonl."),
    ] = None,
    replay: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead of prompts: compute the answers of this trace file or folder; forwards "
            "are real, choices the trace's. Repeatable."
        ),
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(help="In a replay: share of places where the draft is right."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Questions, spread over categories; each turn of one is a prompt. In a replay: "
            "answers, spread over files."
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(help="Rounds.")] = 2,
    max_tokens: options.MaxTokens = 256,
    max_length: options.MaxLength = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    gamma: options.Gamma = None,
    datastores: options.Datastores = None,
    background: options.Background = "process",
    target_device: options.TargetDevice = None,
    draft_device: options.DraftDevice = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    kernels: options.Kernels = None,
    graphs: options.Graphs = True,
    threads: options.Threads = None,
    resume: Annotated[
        Path | None, typer.Option(help="Keep every run in this file, and go on from it.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the answers as a trace for `simulate`.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as a document.")] = None,
    json_path: options.JsonFile = None,
    html: options.HtmlFile = None,
    force: options.Force = False,
) -> None:
    """Measure methods and peers; exit code 1 if a text differs or the baseline is not the best, 130
    after Ctrl-C, which ends the measuring and reports what is done."""
    outputs = _Outputs(json_path, html, markdown, record)
    outputs.check(force=force)
    if repeat < 1 or (limit is not None and limit < 1):
        raise ConfigError("repeat and limit must be whole numbers from 1 up")
    target, draft = options.model_names(target, draft, random_weights)
    models = target, options.draft_name(target, draft)
    names = method_names(methods, models[1])
    wanted = _peer_names(peers, peer_names, models[1])
    replays = find_replays(replay, agreement, limit, seed, models)
    if replays is not None:
        check_alone(prompts=prompts, peers=wanted, record=record, temperature=temperature)
    if wanted and quantize is not None:
        raise ConfigError("peers read the weights as they are: leave out --quantize, or the peers")
    questions = [] if replays is not None else read_questions(prompts or [SUITE_NAME], limit)
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens)
    settings = {
        "gamma": gamma,
        "datastore": datastores or (),
        "background": background,
        "target_device": target_device,
        "draft_device": draft_device,
        "dtype": dtype,
        "quantize": quantize,
        "kernels": kernels,
        "graphs": graphs,
        "max_length": max_length,
        "threads": threads,
        "wrap": replays,
        "history_bytes": 0,  # answers of earlier rounds would flatter
    }
    with options.loaded(target, draft, **settings) as llm:
        stores = [Datastore(path) for path in datastores or ()]
        if replays is None:
            work = asked_work(llm, questions, stores, params)
        else:
            work = replayed_work(llm, replays, stores)
        items, peers_made = work.items, make_peers(wanted, llm)
        race = Race(llm, work.prompts, names, params, repeat, peers_made, work.lengths)
        sources = ", ".join(name.rpartition("/")[2] for name in prompts or [SUITE_NAME])
        origin = {**provenance(), **model_provenance(llm), "sources": sources}
        if stores:
            names_of_stores = [store.path.name for store in stores]
            origin |= {"datastores": names_of_stores, "left_out": work.left_out}
        if replays is not None:
            origin |= {"sources": "traces", "replay": replay_provenance(replays)}
        stopped = _play(race, _log(resume, race, origin, items))
        report = _report(race, items, origin, replays)
        _show(report, race, items, outputs)
        if record is not None:
            _record(record, race, items)
    if report["faults"]:
        raise typer.Exit(1)
    if stopped:
        raise typer.Exit(130)


def method_names(methods: str, draft: str | None) -> list[str]:
    """The methods to run; `ar`, the reference of texts, always runs. Raises ConfigError."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    names = names or [name for name in METHODS if draft is not None or name in DRAFTLESS]
    check_prompt_names(names)
    for name in names:
        if name != "auto" and split_name(name)[0] not in DRAFTLESS and draft is None:
            raise ConfigError(f"method {name!r} needs a draft model; give one, or leave it out")
    return names if "ar" in names else ["ar", *names]


def _peer_names(all_peers: bool, named: str, draft: str | None) -> list[str]:
    """The peers to run, with the plain decoding that their texts are compared with. Raises
    ConfigError."""
    names = [name.strip() for name in named.split(",") if name.strip()]
    if all_peers and not names:
        names = [n for n in PEERS if draft is not None or n != "transformers-assisted"]
    check_peers(names)
    return list(dict.fromkeys([*(OWN_PLAIN[name] for name in names), *names]))


def _log(
    path: Path | None, race: Race, origin: Mapping[str, Any], items: Sequence[Item]
) -> RunLog | None:
    if path is None:
        return None
    if not path.exists():
        check_file(path, force=True)
    what = {
        **{name: origin[name] for name in ("models", "dtype", "threads", "revision", "versions")},
        "params": str(asdict(race.params)),
        "settings": str(asdict(race.llm.settings)),
        "datastores": origin.get("datastores", []),
        "replay": origin.get("replay"),
        "prompts": [
            [item.id, crc32(str(tokens).encode())]
            for item, tokens in zip(items, race.prompts, strict=True)
        ],
    }
    log = RunLog(path, what)
    wanted = set(race.turns())
    race.runs += [run for run in log.runs if (run.method, run.prompt, run.round) in wanted]
    return log


def _play(race: Race, log: RunLog | None) -> bool:
    """Runs what is left to run; True if Ctrl-C ended it, and something is there to report."""
    total = len(race.names) * len(race.prompts) * race.rounds
    try:
        race.warm_up()
        with options.progress_bar() as bar:
            task = bar.add_task("measuring", total=total, completed=len(race.runs))
            for run in race.play():
                bar.update(task, advance=1)
                if log is not None:
                    log.keep(run)
    except KeyboardInterrupt:
        errors.print(f"stopped after {len(race.runs)} of {total} runs", style="yellow")
        if not race.runs:
            raise
        return True
    return False


def _record(path: Path, race: Race, items: Sequence[Item]) -> None:
    if not any(run.method == "ar" for run in race.runs):
        errors.print(
            f"no answer of 'ar' to record: {path} is not written", style="yellow", markup=False
        )
        return
    traces = record_traces(race.llm, race.runs, race.prompts, items, race.params)
    write_traces(path, traces)


def _report(
    race: Race, items: Sequence[Item], origin: Mapping[str, Any], replays: Replays | None
) -> Report:
    categories = [item.category for item in items]
    own_plain = {name: OWN_PLAIN[name] for name in race.peers}
    found = results(race.by_method(), categories, own_plain, race.params.seed)
    wrong = faults(race.runs, race.peers.keys(), race.llm.codec.end_ids, race.params.max_tokens)
    if replays is not None:
        found, wrong = as_replayed(found), [*wrong, *not_the_trace(race, replays)]
    return {
        "provenance": {
            **origin,
            "params": asdict(race.params),
            "prompts": len(items),
            "rounds": race.rounds,
            "complete": race.is_complete,
        },
        "results": found,
        "peers": {name: "failed" if name in race.failures else "ran" for name in race.peers},
        "failures": dict(race.failures),
        "faults": wrong,
    }


def _show(report: Report, race: Race, items: Sequence[Item], outputs: _Outputs) -> None:
    console = errors if outputs.use_stdout else terminal
    console.print(table(report))
    for name, reason in report["failures"].items():
        said = f"peer {name} failed: {reason}"
        errors.print(said, style="yellow", highlight=False, markup=False)
    for fault in report["faults"]:
        said = f"NOT TO BE BELIEVED: {fault}"
        errors.print(said, style="bold red", highlight=False, markup=False)
    if outputs.json is not None:
        options.write_json(outputs.json, report)
    if outputs.markdown is not None:
        write_output(outputs.markdown, as_markdown(report))
    if outputs.html is not None:
        from doublespec.bench.report import bench_page  # needs the extra `bench`

        runs = labelled(race.by_method(), REPLAYED if "replay" in report["provenance"] else "")
        write_output(outputs.html, bench_page(report, runs, items))
