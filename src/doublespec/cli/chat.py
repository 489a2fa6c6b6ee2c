"""`doublespec chat`: a conversation in the terminal."""

from typing import Annotated

import typer

from doublespec.cli import options
from doublespec.cli.generate import figures, write
from doublespec.cli.options import errors
from doublespec.llm import BUNDLED, LLM
from doublespec.sampling import SamplingParams


def chat(
    target: options.Target = BUNDLED,
    draft: options.Draft = None,
    method: options.MethodName = "auto",
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    gamma: options.Gamma = None,
    datastores: options.Datastores = None,
    history: options.HistoryFile = None,
    target_device: options.TargetDevice = None,
    draft_device: options.DraftDevice = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    graphs: options.Graphs = True,
    max_length: options.MaxLength = None,
    threads: options.Threads = None,
) -> None:
    """Talk with a model; an empty line or Ctrl-D ends, Ctrl-C stops an answer."""
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    settings = {
        "gamma": gamma,
        "datastore": datastores or (),
        "target_device": target_device,
        "draft_device": draft_device,
        "dtype": dtype,
        "quantize": quantize,
        "graphs": graphs,
        "max_length": max_length,
        "threads": threads,
    }
    loaded = options.loaded(target, draft, method=method, **settings)
    with loaded as llm, options.remembered(llm, history):
        messages = [{"role": "system", "content": system}] if system else []
        while question := _ask():
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": _answer(llm, messages, params)})


def _ask() -> str:
    try:
        return errors.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""


def _answer(llm: LLM, messages: list[dict[str, str]], params: SamplingParams) -> str:
    stream = llm.stream_chat(messages, params)
    try:
        write(stream)
    except KeyboardInterrupt:
        stream.close()
        errors.print("\n(stopped)", style="dim")
    errors.print(figures(stream.completion), style="dim", highlight=False)
    return stream.completion.text
