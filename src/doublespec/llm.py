"""Text in, text out: the Python API. Knows no logits and no loops."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from operator import index
from pathlib import Path
from reprlib import repr as shortened
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, Self, SupportsIndex

from doublespec.config import Settings
from doublespec.decoding import Step, Steps, ready_steps
from doublespec.drafting.recipe import DraftRecipe
from doublespec.engine import Engine, Explanation
from doublespec.errors import ConfigError
from doublespec.methods import check_method
from doublespec.models.base import LanguageModel, LoadedModel
from doublespec.models.checkpoints import open_source
from doublespec.models.choice import choose_dtype
from doublespec.models.devices import find_device, find_devices, use_threads
from doublespec.models.load import (
    LocalDecoder,
    choose_threads,
    draft_kernels,
    kernels_of,
    load_target,
    measure_cost,
    with_chain,
)
from doublespec.models.parallel import ParallelDecoder
from doublespec.models.vocabulary import check_same_vocabulary
from doublespec.models.weights import Checkpoint, Source
from doublespec.retrieval.datastore import Datastore, fingerprint
from doublespec.retrieval.history import History
from doublespec.sampling import Request, SamplingParams, TokenLogprobs
from doublespec.stats import Stats, summarise
from doublespec.stopping import StopRule
from doublespec.text import (
    Codec,
    Message,
    NumberCodec,
    TextCodec,
    TextStream,
    check_text,
    have_same_vocabulary,
)

BUNDLED = "bundled"  # the name of the model pair inside the package

Prompt = str | Iterable[SupportsIndex]
Progress = Callable[[str, int, int], None]  # what is being read, done, in all


class Wrap(Protocol):
    """What is put around the models once they are read. It goes to the draft's process, too, so
    that it must be importable by name."""

    def target(self, model: LoadedModel) -> LoadedModel: ...

    def draft(self, model: LanguageModel) -> LanguageModel: ...


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. `tokens` holds the end token too, if there was one; `text` does not."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str | None  # "stop", "length", or None if it was cancelled
    stats: Stats
    logprobs: tuple[TokenLogprobs, ...] | None = None


class LLM:
    """A target model, sped up by a draft model and by retrieval.

    The answer depends on the target, the prompt and the sampling parameters alone: every method
    gives the tokens of plain decoding, bit for bit. `target` and `draft` are local folders or hub
    ids, "bundled" for the pair that comes with the package, or "random:SHAPE" for random weights of
    a shape (`models/configs.py`, or a config.json), whose text is token ids; `datastore` is one or
    more files made by `doublespec datastore build`; `wrap` changes what the models answer, for
    benchmarks; other keywords are those of `Settings`. Answers are kept in memory (`history_bytes`)
    to guess later ones from, each for its `tenant` alone. Raises ModelError, DatastoreError or
    ConfigError, each with one sentence that says what to do.
    """

    def __init__(
        self,
        target: str | Path,
        draft: str | Path | None = None,
        method: str = "auto",
        *,
        datastore: str | Path | Sequence[str | Path] = (),
        progress: Progress | None = None,
        wrap: Wrap | None = None,
        **settings: Any,
    ) -> None:
        self._method = check_method(method, has_draft=draft is not None)
        self.settings = make_settings(method=method, **settings)
        report = _reporter(progress)
        source = open_source(find_bundled(target, "target"))
        if source.config is not None:
            _check_max_length(self.settings.max_length, source.config.max_length)
        devices = find_devices(self.settings.target_devices)
        draft_device = find_device(self.settings.draft_device or str(devices[0]))
        kernels, quantize = self.settings.kernels, self.settings.quantize
        dtype = choose_dtype(self.settings.dtype, kernels, source.config, devices, quantize)
        are_set = self.settings.threads is not None
        threads = use_threads(self.settings.threads, len(devices))
        self.settings = replace(self.settings, threads=threads)
        self.target_name = source.name
        self._codec = _open_codec(source)
        self.settings = self._with_datastores(datastore)
        draft_source = None if draft is None else open_source(find_bundled(draft, "draft"))
        if draft_source is not None and not _have_same_vocabulary(source, draft_source):
            draft_codec = _open_codec(draft_source)
            check_same_vocabulary(self._codec.vocabulary, draft_codec.vocabulary)
        model = load_target(
            source,
            devices,
            dtype,
            threads=threads,
            max_length=self.settings.max_length,
            draft=draft_source if draft_device == devices[0] else None,
            quantize=quantize,
            graphs=self.settings.graphs,
            kernels=kernels,
            progress=report("target"),
        )
        _check_max_length(self.settings.max_length, model.max_length)
        cost = measure_cost(model)
        if not are_set:
            cost = choose_threads(model, threads, quantize, cost)
        self.kernels = kernels_of(model)
        self.threads = model.threads if isinstance(model, LocalDecoder) else None
        self.target = model if wrap is None else wrap.target(model)
        cost = with_chain(self.target, cost)
        self.recipe = None
        if draft_source is not None:
            self.recipe = self._recipe(draft_source, cost.seconds, wrap)
        self.engine = Engine(self.target, self.recipe, self.settings, cost, self.threads)
        self.engine.prepare(self._method)

    @property
    def method(self) -> str:
        """The method in use where a call names none."""
        return self._method

    @property
    def codec(self) -> Codec:
        """The target's tokenizer: between text and token ids."""
        return self._codec

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        method: str | None = None,
        tenant: str = "",
        **sampling: Any,
    ) -> Completion:
        """Continues a prompt: a text, or token ids in a list, an array or a tensor. Raises
        ConfigError where it cannot be answered, as do the calls below."""
        return self.stream(prompt, params, method=method, tenant=tenant, **sampling).finish()

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        method: str | None = None,
        tenant: str = "",
        **sampling: Any,
    ) -> Completion:
        """Answers a conversation, through the model's chat template. What an earlier call has
        computed of the same conversation is used again."""
        return self.stream_chat(messages, params, method=method, tenant=tenant, **sampling).finish()

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        method: str | None = None,
        tenant: str = "",
        **sampling: Any,
    ) -> "Stream":
        """Continues a prompt piece by piece: iterate over the result for its text."""
        tokens = self._codec.encode(prompt) if isinstance(prompt, str) else _token_ids(prompt)
        return self._stream(tokens, _make_params(params, sampling), method, tenant)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        method: str | None = None,
        tenant: str = "",
        **sampling: Any,
    ) -> "Stream":
        """Answers a conversation piece by piece."""
        tokens = self._codec.encode_chat(messages)
        return self._stream(tokens, _make_params(params, sampling), method, tenant)

    def load_history(self, path: str | Path) -> None:
        """Adds the answers of a file, so that later ones are guessed from them, too. Raises
        DatastoreError where it is none, or another tokenizer's."""
        self._history().load(_path("history", path), fingerprint(self._codec.vocabulary))

    def save_history(self, path: str | Path) -> None:
        """Writes the answers so far, of all tenants, to a file."""
        self._history().save(_path("history", path), fingerprint(self._codec.vocabulary))

    def _history(self) -> History:
        if self.engine.history is None:
            raise ConfigError("there is no history with history_bytes=0; give it some bytes")
        return self.engine.history

    def explain(self) -> Explanation:
        """What was measured here, and what `auto` has made of it so far."""
        return self.engine.explain()

    def close(self) -> None:
        """Ends background drafters, and the other ranks of a divided target, which then is of no
        more use; may be called again."""
        self.engine.close()
        if isinstance(self.target, ParallelDecoder):
            self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def request(self, tokens: Sequence[int], params: SamplingParams) -> tuple[Request, StopRule]:
        """What the loops need to know to answer these prompt tokens; raises ConfigError."""
        self._check_prompt(tokens)
        end_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids |= self._codec.end_ids
        room = self.target.max_length - len(tokens)
        stop = StopRule(min(params.max_tokens, room), end_ids, params.stop, self._codec.decode)
        return Request(params, len(tokens), end_ids), stop

    def _stream(
        self, tokens: list[int], params: SamplingParams, method: str | None, tenant: str
    ) -> "Stream":
        check_text("tenant", tenant)
        request, stop = self.request(tokens, params)
        chosen = self._method if method is None else method
        steps = self.engine.decode(tokens, request, stop, chosen, tenant)
        return Stream(steps, TextStream(self._codec, params.stop), request)

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ConfigError("the prompt has no tokens; give at least one")
        if len(tokens) >= self.target.max_length:
            raise ConfigError(
                f"the prompt has {len(tokens)} tokens and the context holds "
                f"{self.target.max_length}, the answer included; shorten the prompt"
            )
        wrong = next((t for t in tokens if not 0 <= t < self.target.vocab_size), None)
        if wrong is not None:
            raise ConfigError(
                f"prompt token ids must be from 0 to {self.target.vocab_size - 1}, got {wrong}"
            )

    def _with_datastores(self, paths: str | Path | Sequence[str | Path]) -> Settings:
        """The settings with datastores, each opened once to find out whether it fits."""
        names = _paths(paths)
        if not names:  # of a large vocabulary that takes half a second
            return self.settings
        vocabulary = fingerprint(self._codec.vocabulary)
        for name in names:
            Datastore(Path(name), vocabulary)
        retrieval = replace(
            self.settings.retrieval,
            datastores=tuple(str(Path(name).absolute()) for name in names),
            vocabulary=vocabulary,
        )
        return replace(self.settings, retrieval=retrieval)

    def _recipe(self, source: Source, target_seconds: float, wrap: Wrap | None) -> DraftRecipe:
        return DraftRecipe(
            source=source,
            device=self.settings.draft_runs_on,
            dtype=self.settings.dtype,
            vocab_size=self.target.vocab_size,
            max_length=self.target.max_length,
            gamma=self.settings.gamma,
            target_seconds=target_seconds,
            wrap=None if wrap is None else wrap.draft,
            graphs=self.settings.graphs,
            kernels=draft_kernels(self.settings.kernels),
        )


class Stream:
    """An answer under way: iterate for its pieces of text; to cancel it, stop and `close`."""

    def __init__(self, steps: Steps, text: TextStream, request: Request) -> None:
        self._events = steps
        self._text = text
        self._request = request
        self._turn = Lock()
        self._is_cancelled = False
        self.steps: list[Step] = []

    def __iter__(self) -> Iterator[str]:
        while steps := self._next():
            self.steps += steps
            piece = self._text.push([token for step in steps for token in step.new])
            if steps[-1].finish is not None:
                piece += self._text.finish()
            if piece:
                yield piece

    def finish(self) -> Completion:
        """Reads the answer to its end."""
        for _ in self:
            pass
        return self.completion

    def close(self) -> None:
        """Cancels the answer, from any thread: nothing of it goes on running, but for a step that
        another thread is in the middle of."""
        self._is_cancelled = True
        if self._turn.acquire(blocking=False):
            try:
                self._events.close()
            finally:
                self._turn.release()

    def _next(self) -> list[Step]:
        """The next steps that come at once, if there are any, with all the seconds that they took:
        those of the engine and of its choices of a method, too, which count for the last one, and
        those of other answers that were waited for. What was computed beforehand, as a peer's steps
        are, took what it says itself."""
        if self._is_cancelled:
            return []
        with self._turn:
            begun = perf_counter()
            try:
                steps = ready_steps(self._events)
            except (
                BaseException
            ):  # an interrupt may come between two of them: those before are lost
                self._is_cancelled = True
                self._events.close()
                raise
            seconds = perf_counter() - begun
        if self._is_cancelled:  # meanwhile
            self.close()
        if steps:
            last = steps.pop()
            seconds += sum(step.earlier_seconds - step.seconds for step in steps)
            seconds = max(last.seconds, seconds + last.earlier_seconds)
            steps.append(last._replace(seconds=seconds))
        return steps

    @property
    def completion(self) -> Completion:
        """The answer so far."""
        tokens = tuple(token for step in self.steps for token in step.new)
        wanted = self._request.params.logprobs is not None
        return Completion(
            text=self._text.text,
            tokens=tokens,
            prompt_tokens=self._request.prompt_length,
            finish_reason=self.steps[-1].finish if self.steps else None,
            stats=summarise(self.steps),
            logprobs=tuple(p for s in self.steps for p in s.logprobs) if wanted else None,
        )


def find_bundled(name: str | Path, role: str) -> str:
    """The folder of the bundled pair for the name "bundled", else the name itself."""
    if str(name) != BUNDLED:
        return str(name)
    return str(resources.files("doublespec") / "pair" / role)


def _open_codec(source: Source) -> Codec:
    return TextCodec(source.folder) if isinstance(source, Checkpoint) else NumberCodec()


def _have_same_vocabulary(one: Source, other: Source) -> bool:
    """Whether that is known without reading them."""
    if not (isinstance(one, Checkpoint) and isinstance(other, Checkpoint)):
        return False
    return have_same_vocabulary(one.folder, other.folder)


def make_settings(**values: Any) -> Settings:
    """Settings from keywords; raises ConfigError on unknown ones."""
    return _make(Settings, values)


def _check_max_length(wanted: int | None, longest: int) -> None:
    """Raises ConfigError where the model's context is shorter than what was asked for."""
    if wanted is not None and wanted > longest:
        raise ConfigError(f"max_length must be at most the target's {longest}, got {wanted}")


def _path(what: str, path: object) -> Path:
    """Raises ConfigError on what is no path."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{what} must be the path of a file, got {path!r}")
    return Path(path)


def _paths(paths: object) -> tuple[str | Path, ...]:
    """One path, or several; raises ConfigError on anything else."""
    names = paths if isinstance(paths, Sequence) and not isinstance(paths, str) else (paths,)
    if not all(isinstance(name, str | Path) for name in names):
        raise ConfigError(f"datastore must be the path of a file, or a list of them, got {paths!r}")
    return tuple(names)


def _token_ids(prompt: Iterable[SupportsIndex]) -> list[int]:
    """The ids of a list, an array or a tensor; raises ConfigError on anything else."""
    try:
        return [index(token) for token in prompt]
    except TypeError as error:
        shown = " ".join(shortened(prompt).split())
        raise ConfigError(f"a prompt must be a text or a list of token ids, got {shown}") from error


def _make_params(params: SamplingParams | None, changes: dict[str, Any]) -> SamplingParams:
    if params is not None and not isinstance(params, SamplingParams):
        raise ConfigError(f"params must be SamplingParams, got {params!r}; or give keywords")
    known = {f.name for f in fields(SamplingParams)}
    unknown = sorted(changes.keys() - known)
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no sampling parameter; known: {', '.join(known)}")
    return replace(params or SamplingParams(), **changes)


def _make(kind: type[Settings], values: dict[str, Any]) -> Settings:
    known = [f.name for f in fields(kind)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no setting; known: {', '.join(known)}")
    return kind(**values)


def _reporter(progress: Progress | None) -> Callable[[str], Callable[[int, int], None] | None]:
    def report(what: str) -> Callable[[int, int], None] | None:
        if progress is None:
            return None
        return lambda done, total: progress(what, done, total)

    return report
