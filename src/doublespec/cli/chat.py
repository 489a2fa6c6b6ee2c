"""`doublespec chat`: a conversation in the terminal."""

from typing import Annotated

import typer

from doublespec.cli import options
from doublespec.cli.generate import figures, write
from doublespec.cli.options import errors
from doublespec.errors import ConfigError
from doublespec.llm import BUNDLED, LLM, Stream
from doublespec.sampling import SamplingParams

Messages = list[dict[str, str]]


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
    kernels: options.Kernels = None,
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
        "kernels": kernels,
        "graphs": graphs,
        "max_length": max_length,
        "threads": threads,
    }
    loaded = options.loaded(target, draft, method=method, **settings)
    with loaded as llm, options.remembered(llm, history):
        system_messages = [{"role": "system", "content": system}] if system else []
        _check(llm, system_messages, params)
        turns: Messages = []
        while question := _ask():
            asked = [*turns, {"role": "user", "content": question}]
            turns = _answered(llm, system_messages, asked, params) or turns


def _check(llm: LLM, messages: Messages, params: SamplingParams) -> None:
    """Raises ConfigError where no question could be answered."""
    llm.request(llm.codec.encode_chat([*messages, {"role": "user", "content": "?"}]), params)


def _ask() -> str:
    try:
        return errors.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise ConfigError("the question is not UTF-8 text") from error
    except RuntimeError as error:  # Python's word for a stdin that is closed
        raise ConfigError("there is no stdin to ask questions on") from error


def _answered(llm: LLM, system: Messages, asked: Messages, params: SamplingParams) -> Messages:
    """The turns with an answer to the last one, or none where it cannot be answered. The oldest are
    left out when the context is full."""
    try:
        kept = _latest(llm, system, asked, params.max_tokens)
        stream = llm.stream_chat([*system, *kept], params)
    except ConfigError as error:
        errors.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        return []
    if len(kept) < len(asked):
        said = f"(the context is full: the oldest {len(asked) - len(kept)} messages are left out)"
        errors.print(said, style="dim", highlight=False, soft_wrap=True)
    return [*kept, {"role": "assistant", "content": _show(stream)}]


def _latest(llm: LLM, system: Messages, asked: Messages, max_tokens: int) -> Messages:
    """The latest turns that leave room in the context for the answer, or for a quarter of the
    context; at least the last question."""
    most = llm.target.max_length - min(max_tokens, llm.target.max_length // 4)
    kept = asked
    while len(kept) > 1 and len(llm.codec.encode_chat([*system, *kept])) > most:
        kept = kept[2:]
    return kept


def _show(stream: Stream) -> str:
    """Prints an answer as it is made; its text."""
    try:
        write(stream)
    except KeyboardInterrupt:
        stream.close()
        errors.print("\n(stopped)", style="dim")
    errors.print(figures(stream.completion), style="dim", highlight=False)
    return stream.completion.text
