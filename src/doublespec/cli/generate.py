"""`doublespec generate`: one prompt, one answer."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from doublespec.cli import options
from doublespec.cli.options import errors
from doublespec.cli.trace import check_trace_path, write_trace
from doublespec.config import DEFAULT_FORKS
from doublespec.engine import Explanation
from doublespec.errors import ConfigError
from doublespec.llm import BUNDLED, LLM, Completion, Stream
from doublespec.methods import DRAFTLESS, split_name
from doublespec.sampling import SamplingParams
from doublespec.stats import Stats
from doublespec.trace.lanes import Timeline


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; '-' reads it from stdin.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from a file.")] = None,
    target: options.Target = BUNDLED,
    draft: options.Draft = None,
    method: options.MethodName = "auto",
    raw: Annotated[bool, typer.Option(help="Continue the text; no chat template.")] = False,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Keep this share of probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the best.")] = 0.0,
    seed: options.Seed = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text; repeatable.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="1 is none.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="0 is none.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="0 is none.")] = 0.0,
    ignore_eos: Annotated[bool, typer.Option(help="Go on after the end token.")] = False,
    gamma: options.Gamma = None,
    schedule: options.Schedule = "free",
    forks: options.Forks = DEFAULT_FORKS,
    datastores: options.Datastores = None,
    history: options.HistoryFile = None,
    background: options.Background = "process",
    target_device: options.TargetDevice = None,
    draft_device: options.DraftDevice = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    kernels: options.Kernels = None,
    graphs: options.Graphs = True,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Record the steps: .jsonl for `doublespec trace`, .json for Perfetto."),
    ] = None,
    force: options.Force = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what was measured and chosen.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Answer one prompt. The text goes to stdout as it is made, figures to stderr."""
    check_trace_path(trace, force=force)
    text = _read_prompt(prompt, prompt_file)
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )
    settings = {
        "gamma": gamma,
        "schedule": schedule,
        "forks": forks,
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
    }
    loaded = options.loaded(target, draft, method=method, **settings)
    with loaded as llm, options.remembered(llm, history):
        stream = _start(llm, text, params, raw)
        try:
            _show(stream, as_json=as_json)
            if explain:
                errors.print(explanation(llm.explain(), llm.method, stream.completion.stats))
        finally:  # also of an answer that was stopped
            if trace is not None:
                write_trace(trace, _trace(llm, stream, target, options.draft_name(target, draft)))


def _show(stream: Stream, *, as_json: bool) -> None:
    if as_json:
        options.print_json(asdict(stream.finish()))
    else:
        write(stream)
        errors.print(figures(stream.completion), style="dim", highlight=False)


def write(stream: Stream) -> None:
    """Writes an answer to stdout as it is made."""
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def figures(completion: Completion) -> str:
    """One line about an answer, for people."""
    stats = completion.stats
    return (
        f"{stats.tokens} tokens, {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.steps} steps of {stats.mean_accepted_length:.2f} tokens, "
        f"first after {stats.ttft_seconds * 1e3:.0f} ms, {completion.finish_reason}"
    )


def _trace(llm: LLM, stream: Stream, target: str, draft: str | None) -> Timeline:
    """What has happened so far, with the texts of its tokens."""
    seen = {token for step in stream.steps for token in (*step.guess, *step.new)}
    return Timeline(
        method=llm.method,
        target=target,
        draft=None if split_name(llm.method)[0] in DRAFTLESS else draft,
        prompt_tokens=stream.completion.prompt_tokens,
        steps=tuple(stream.steps),
        texts={token: llm.codec.decode([token]) for token in sorted(seen)},
    )


def explanation(found: Explanation, method: str, stats: Stats) -> Table:
    """What was measured and chosen, for people; of a method that was asked for its answer alone."""
    draft = "" if found.draft_seconds is None else f", the draft's {found.draft_seconds * 1e3:.2f}"
    table = Table(
        "method",
        "tokens/s",
        "steps",
        "share",
        title="what auto has tried, the fastest first"
        if method == "auto"
        else f"{method}, as was asked for",
        caption=f"a forward of the target takes {found.target_seconds * 1e3:.2f} ms{draft}; each "
        f"row more adds {found.row_cost:.1%}; after a mistake of the draft a step waits for "
        f"{found.waits_for} drafted tokens; threads: {found.threads}",
    )
    if method != "auto":
        table.add_row(method, f"{stats.tokens_per_second:.1f}", str(stats.steps), "100%")
        return table
    for row in found.methods:
        rate = "-" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}"
        table.add_row(row.name, rate, str(row.steps), f"{row.share:.0%}")
    return table


def _start(llm: LLM, text: str, params: SamplingParams, raw: bool) -> Stream:
    if raw or not llm.codec.has_chat_template:
        return llm.stream(text, params)
    return llm.stream_chat([{"role": "user", "content": text}], params)


def _read_prompt(prompt: str | None, path: Path | None) -> str:
    if (prompt is None) == (path is None):
        raise ConfigError("give a prompt, or --prompt-file FILE, and not both")
    if path is not None:
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read the prompt file {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"the prompt file {path} is not UTF-8 text") from error
    return options.read_stdin() if prompt == "-" else prompt or ""
