"""`doublespec demo`: the bundled pair answers a dozen prompts by every method, side by side."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from doublespec.bench.prompts import DEMO_PROMPTS, DemoPrompt
from doublespec.bench.race import BASELINE, Figures, Race, Run
from doublespec.cli import options
from doublespec.cli.options import errors, terminal
from doublespec.errors import ConfigError
from doublespec.llm import BUNDLED
from doublespec.sampling import SamplingParams

_METHODS = ("ar", "lookup", "sd", "psd", "double", "double-serial", "auto")
_CAPTION = (
    f"'{BASELINE}': plain decoding in its fastest shape; 'ar': as all methods compute, the "
    "reference of texts; ratios are to the faster of the two. M: mean accepted length (tokens a "
    "step). draft, retr.: share of drafted and of retrieved tokens that were kept. rep.: share of "
    "8-grams that stood in the text before. equal: texts equal to those of 'ar'."
)
_LINES = 14  # of an answer, shown while the race goes on


def demo(
    rounds: Annotated[int, typer.Option(help="How often each method answers each prompt.")] = 5,
    max_tokens: options.MaxTokens = 160,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Race the methods on the bundled models, offline; ends with a table."""
    if rounds < 1:
        raise ConfigError(f"rounds must be a whole number from 1 up, got {rounds}")
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens)
    with options.loaded(BUNDLED, BUNDLED, threads=threads, history_bytes=0) as llm:
        asked = [[{"role": "user", "content": prompt.text}] for prompt in DEMO_PROMPTS]
        prompts = [llm.codec.encode_chat(messages) for messages in asked]
        race = Race(llm, prompts, _METHODS, params, rounds)
        race.warm_up()
        _watch(race, show=not as_json and terminal.is_terminal)
    right = _right(race)
    if as_json:
        figures = {name: asdict(row) for name, row in race.figures().items()}
        answers = {"right": sum(right.values()), "prompts": len(right)}
        options.print_json({"methods": figures, **answers})
        return
    if not terminal.is_terminal:
        _print_answers(race)
    terminal.print(_table(race.figures(), rounds))
    wrong = [name for name, is_right in right.items() if not is_right]
    terminal.print(
        f"right by a program's check: {sum(right.values())} of {len(right)} answers"
        + (f" (not {', '.join(wrong)})" if wrong else "")
    )


def _watch(race: Race, *, show: bool) -> None:
    total = len(race.names) * len(race.prompts) * race.rounds
    if not show:
        with options.progress_bar() as bar:
            for _ in bar.track(race.play(), total=total, description="racing"):
                pass
        return
    with Live(console=terminal, refresh_per_second=8, transient=True) as live:
        for done, run in enumerate(race.play(), start=1):
            live.update(Group(_answer(run), _bars(race.figures()), Text(f"{done} of {total} runs")))


def _answer(run: Run) -> Panel:
    prompt = DEMO_PROMPTS[run.prompt]
    answer = run.completion.text.strip().splitlines()[:_LINES]
    text = Text(prompt.text.strip().splitlines()[0] + " ...\n\n", style="dim")
    text.append("\n".join(answer), style="default")
    speed = run.completion.stats.tokens_per_second
    return Panel(text, title=f"{prompt.name}, by {run.method}: {speed:.0f} tokens/s")


def _bars(figures: dict[str, Figures]) -> Table:
    fastest = max(row.tokens_per_second for row in figures.values())
    table = Table.grid(padding=(0, 2))
    for name, row in figures.items():
        bar = ProgressBar(total=fastest, completed=row.tokens_per_second, width=40)
        table.add_row(name, bar, f"{row.tokens_per_second:.0f} tokens/s", f"{row.ratio:.2f}x")
    return table


def _table(figures: dict[str, Figures], rounds: int) -> Table:
    table = Table(
        Column("method", no_wrap=True),
        Column("tok/s", no_wrap=True),
        "ratio",
        "M",
        "draft",
        "retr.",
        "rep.",
        Column("equal", no_wrap=True),
        title=f"{len(DEMO_PROMPTS)} prompts, medians of {rounds} interleaved rounds",
        caption=_CAPTION,
    )
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row.tokens_per_second:.0f}",
            f"{row.ratio:.2f}",
            f"{row.mean_accepted_length:.2f}",
            _percent(row.draft_acceptance),
            _percent(row.retrieval_acceptance),
            _percent(row.repeated_8grams),
            f"{row.identical}/{row.texts}",
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _print_answers(race: Race) -> None:
    for number, prompt in enumerate(DEMO_PROMPTS):
        run = next(run for run in race.runs if run.method == "ar" and run.prompt == number)
        terminal.print(f"\n[bold]{prompt.name}[/bold] ({prompt.category})")
        terminal.print(prompt.text, style="dim", highlight=False, markup=False)
        terminal.print("answer:", style="bold")
        terminal.print(run.completion.text, highlight=False, markup=False)
    errors.print()


def _right(race: Race) -> dict[str, bool]:
    """By prompt: whether plain decoding's answer passes the prompt's check."""
    answers = {run.prompt: run.completion.text for run in race.runs if run.method == "ar"}
    return {prompt.name: _passes(prompt, answers[i]) for i, prompt in enumerate(DEMO_PROMPTS)}


def _passes(prompt: DemoPrompt, answer: str) -> bool:
    return prompt.check(answer)
