"""`doublespec lossless`: the promise, checked at scale on the user's own models."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from doublespec.bench.chaos import TIMEOUT_SECONDS, Census, attack, memory_growth
from doublespec.bench.exactness import Comparison, check_methods
from doublespec.bench.prompts import DEMO_PROMPTS
from doublespec.cli import options
from doublespec.cli.options import terminal
from doublespec.errors import ConfigError
from doublespec.llm import BUNDLED, LLM, make_settings
from doublespec.methods import DRAFTLESS, METHODS, check_method

_NOT_WITH_CHAOS = ("tokens", "methods", "temperatures", "max_tokens", "background")


def lossless(
    context: typer.Context,
    target: options.Target = BUNDLED,
    draft: options.Draft = None,
    tokens: Annotated[int, typer.Option(help="How many tokens to compare, or more.")] = 20_000,
    methods: Annotated[str, typer.Option(help="Comma-separated; default: all that can run.")] = "",
    temperatures: Annotated[str, typer.Option(help="Comma-separated.")] = "0,0.7,1.2",
    max_tokens: options.MaxTokens = 160,
    chaos: Annotated[
        int | None,
        typer.Option(
            min=1, help="Instead: so many answers while the draft's process is killed and stopped."
        ),
    ] = None,
    seed: options.Seed = 0,
    background: options.Background = "process",
    target_device: options.TargetDevice = None,
    draft_device: options.DraftDevice = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    kernels: options.Kernels = None,
    graphs: options.Graphs = True,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare every method with plain decoding, token by token; exit code 1 if any differs."""
    options.check_count("tokens", tokens)
    has_draft = options.draft_name(target, draft) is not None
    settings = {
        "background": background,
        "target_device": target_device,
        "draft_device": draft_device,
        "dtype": dtype,
        "quantize": quantize,
        "kernels": kernels,
        "graphs": graphs,
        "threads": threads,
        "history_bytes": 0,
    }
    if chaos is not None:
        _check_unused(context, _NOT_WITH_CHAOS)
        _attack(target, draft, {**settings, "background": "process"}, chaos, seed, as_json)
        return
    names, heats = _names(methods, has_draft=has_draft), _numbers(temperatures)
    with options.loaded(target, draft, **settings) as llm:
        comparisons = _compare(llm, names, heats, tokens, max_tokens)
    total = sum(c.tokens for c in comparisons)
    differences = sum(c.differences for c in comparisons)
    if as_json:
        options.print_json(
            {
                "tokens": total,
                "differences": differences,
                "methods": {name: _tokens(comparisons, name) for name in names},
            }
        )
    else:
        _print(comparisons, names)
        terminal.print(f"{total:,} tokens compared, {differences} differ", style="bold")
    if differences:
        raise typer.Exit(1)


def _check_unused(context: typer.Context, names: Sequence[str]) -> None:
    """Raises ConfigError if one of these options was given with --chaos, which takes its own."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"--chaos does not use --{name.replace('_', '-')}; leave it out")


def _attack(
    target: str, draft: str | None, settings: dict[str, Any], count: int, seed: int, as_json: bool
) -> None:
    """The same with a draft that dies and comes back; exit code 1 if a token differs or anything
    is left behind."""
    if options.draft_name(target, draft) is None:
        raise ConfigError("--chaos needs a draft to kill, got none; give one with --draft")
    if len(make_settings(**settings).target_devices) > 1:
        raise ConfigError("--chaos kills every child process; give it one target device")
    with LLM(target) as llm:
        prompts = [_encode(llm, prompt.text) for prompt in DEMO_PROMPTS]

    def load() -> LLM:
        name = options.draft_name(target, draft)
        return LLM(target, name, draft_timeout=TIMEOUT_SECONDS, **settings)

    census = Census()
    with options.progress_bar() as bar:
        attacked = attack(load, prompts, count, seed)
        answers = list(bar.track(attacked, total=count, description="answering under attack"))
    leaks = census.leaks()
    found = {
        "generations": len(answers),
        "tokens": sum(answer.tokens for answer in answers),
        "differences": sum(answer.differences for answer in answers),
        "leaked": leaks.total,
        "signals": sum(answer.signals for answer in answers),
        "drafted": sum(answer.drafted for answer in answers),
        "memory_growth": round(memory_growth(answers), 4),
    }
    if as_json:
        options.print_json(found)
    else:
        terminal.print(
            f"{found['generations']} answers ({found['drafted']} with a draft) under "
            f"{found['signals']} signals: {found['tokens']:,} tokens, {found['differences']} "
            f"differ; left behind: {leaks.processes} processes, {leaks.descriptors} descriptors, "
            f"{leaks.threads} threads; memory {found['memory_growth']:+.1%}",
            style="bold",
        )
    if found["differences"] or found["leaked"]:
        raise typer.Exit(1)


def _compare(
    llm: LLM, names: list[str], heats: list[float], tokens: int, max_tokens: int
) -> list[Comparison]:
    """At least so many tokens, and at least an answer of each method at each temperature."""
    prompts = [_encode(llm, prompt.text) for prompt in DEMO_PROMPTS]
    comparisons: list[Comparison] = []
    least = len(names) * len(heats)  # a method after the other, then the next temperature
    done = 0
    with options.progress_bar() as bar:
        task = bar.add_task("comparing tokens", total=tokens)
        for comparison in check_methods(llm, prompts, names, heats, max_tokens):
            comparisons.append(comparison)
            done += comparison.tokens
            bar.update(task, completed=min(done, tokens))
            if done >= tokens and len(comparisons) >= least:
                break
    return comparisons


def _encode(llm: LLM, text: str) -> list[int]:
    if llm.codec.has_chat_template:
        return llm.codec.encode_chat([{"role": "user", "content": text}])
    return llm.codec.encode(text)


def _names(methods: str, *, has_draft: bool) -> list[str]:
    """The methods to compare, each once. Raises ConfigError where one cannot run."""
    if not methods:
        return [name for name in METHODS if name != "ar" and (has_draft or name in DRAFTLESS)]
    named = (name.strip() for name in methods.split(","))
    return list(dict.fromkeys(check_method(name, has_draft=has_draft) for name in named))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"temperatures must be like 0,0.7,1.2, got {text!r}") from error


def _tokens(comparisons: list[Comparison], name: str) -> int:
    return sum(c.tokens for c in comparisons if c.method == name)


def _print(comparisons: list[Comparison], names: list[str]) -> None:
    table = Table("method", "answers", "tokens", "different")
    for name in names:
        mine = [c for c in comparisons if c.method == name]
        table.add_row(
            name,
            str(len(mine)),
            f"{_tokens(comparisons, name):,}",
            str(sum(c.differences for c in mine)),
        )
    terminal.print(table)
