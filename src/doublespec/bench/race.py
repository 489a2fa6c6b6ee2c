"""A race: every method answers the same prompts, in turns, against plain decoding.

Turns are interleaved, in an order that changes so that each method follows each other one about as
often: a method leaves caches and processes warm or cold for the next one (a draft beside the target
is an eighth slower after one that let it sleep; docs/log.md). And a method never meets a prompt
that its models have just read, nor one that another method has met a block of turns before, so
that no one finds the prompt in a cache, the draft's in its process included. The baseline is plain
decoding in its fastest shape, with the same stop rule, on one core or on all, whichever is faster
at that moment (beside a busy program, all cores are slower than one); ratios are to it or to `ar`,
whichever is faster.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd
from statistics import median
from typing import Any

from doublespec.bench.peers.base import Peer
from doublespec.decoding import Step, decode_plain
from doublespec.llm import LLM, Completion, Stream
from doublespec.models.base import LanguageModel
from doublespec.models.devices import usable_cores, use_threads
from doublespec.models.load import forward_seconds
from doublespec.sampling import SamplingParams
from doublespec.stats import repeated_ngrams, summarise
from doublespec.text import TextStream

BASELINE = "plain"  # plain decoding in its fastest shape; exact only up to rounding
REPLAYED = " (replayed)"  # stands behind the names of methods whose tokens a trace has chosen


def is_plain(name: str) -> bool:
    """Whether it is one of the two plain decodings."""
    return name.removesuffix(REPLAYED) in (BASELINE, "ar")


def replay_note(replay: Mapping[str, Any]) -> str:
    """One sentence about what was replayed, by a report's provenance."""
    return (
        "Replayed: every forward is real and timed; which tokens are chosen comes from the traces "
        f"{', '.join(replay['traces'])}, where the draft is right at {replay['agreement']:.0%} of "
        "the places."
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of one method, in one round."""

    method: str
    prompt: int
    round: int
    completion: Completion
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """A method's figures over all prompts. `tokens_per_second` is all tokens over the sum of each
    prompt's median time; `ratio` is to the fastest plain decoding's; `identical` counts texts equal
    to those of `ar`, plain decoding as all methods compute."""

    tokens_per_second: float
    ratio: float
    mean_accepted_length: float
    draft_acceptance: float | None
    retrieval_acceptance: float | None
    repeated_8grams: float
    identical: int
    texts: int


class Race:
    """Runs methods over prompts and keeps what came of it. `lengths` bound the answers one by one,
    where they are known."""

    def __init__(
        self,
        llm: LLM,
        prompts: Sequence[list[int]],
        methods: Sequence[str],
        params: SamplingParams,
        rounds: int,
        peers: Mapping[str, Peer] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.llm = llm
        self.prompts = list(prompts)
        self._lengths = lengths
        self.peers = dict(peers or {})
        self.names = [BASELINE, *methods, *self.peers]
        self.params = params
        self.rounds = rounds
        self.runs: list[Run] = []  # also those of an earlier race that this one goes on with
        self.failures: dict[str, str] = {}  # peers that failed, and why
        self._fastest = llm.target.fastest()

    def turns(self) -> Iterator[tuple[str, int, int]]:
        """(method, prompt, round) of every turn, in order."""
        last, stride = -1, _stride(len(self.prompts))
        for block in range(self.rounds * len(self.prompts)):
            round_number, first = divmod(block, len(self.prompts))
            order = _balanced(len(self.names), block)
            prompts = [(first + stride * number) % len(self.prompts) for number in order]
            begin = _without_repeats(prompts, last)
            for place in [*range(begin, len(order)), *range(begin)]:
                last = prompts[place]
                yield self.names[order[place]], last, round_number

    def warm_up(self) -> None:
        """One short answer by each method: draft processes start, kernels are chosen. A draft that
        is being loaded takes a core; `auto` would not wait for it."""
        for name in self.names:
            if name not in self.peers and name != BASELINE:
                self.llm.engine.prepare(name, wait=True)
        self.llm.engine.wait_if_loading()
        for name in self.names:
            self._answer(name, self.prompts[-1], replace(self.params, max_tokens=8))

    def play(self) -> Iterator[Run]:
        """Runs every turn that has not been run; yields each when it is over. What the turns before
        have left is tidied up between them: Python would do it in the midst of an answer, and look
        at all that is loaded, for longer than a short answer takes."""
        done = {(run.method, run.prompt, run.round) for run in self.runs}
        try:
            for name, prompt, round_number in self.turns():
                if (name, prompt, round_number) in done:
                    continue
                gc.collect()
                gc.freeze()  # to be looked at no more
                stream = self._answer(name, self.prompts[prompt], self._params_of(prompt))
                if stream is not None:
                    run = Run(name, prompt, round_number, stream.completion, tuple(stream.steps))
                    self.runs.append(run)
                    yield run
        finally:
            gc.unfreeze()

    def _forget(self, prompt: list[int]) -> None:
        """Lets the targets read a text that `prompt` does not begin with, so that all methods read
        the whole prompt: a conversation's next one begins with the last one, which only the model
        of the baseline would often have just read, where it has a cache of its own."""
        other = [int(prompt[0] == 0)]
        for model in (self._fastest, self.llm.target):
            model.logits(other, 1, 1)

    def _params_of(self, prompt: int) -> SamplingParams:
        if self._lengths is None:
            return self.params
        longest = min(self.params.max_tokens, self._lengths[prompt])
        return replace(self.params, max_tokens=longest)

    def by_method(self) -> list[Run]:
        """The runs in the order of the methods' names, however their turns came."""
        return [run for name in self.names for run in self.runs if run.method == name]

    @property
    def is_complete(self) -> bool:
        """Whether every turn was run, but for those of peers that failed."""
        done = {(run.method, run.prompt, run.round) for run in self.runs}
        return all(turn in done or turn[0] in self.failures for turn in self.turns())

    def _answer(self, name: str, tokens: list[int], params: SamplingParams) -> Stream | None:
        """A whole answer; None from a peer that fails, now or before."""
        if name in self.failures:
            return None
        try:
            stream = self.start(name, tokens, params)
            stream.finish()
        except Exception as error:  # of a peer: reported, and the others go on
            if name not in self.peers:
                raise
            self.failures[name] = f"{type(error).__name__}: {error}"
            return None
        return stream

    def start(self, name: str, tokens: list[int], params: SamplingParams) -> Stream:
        """An answer under way, by a method, by a peer or by the baseline. All of them begin behind
        the same forwards, by which the number of threads of the latter two is chosen: right after
        these a prompt is read 3 to 5 % faster."""
        threads = fastest_threads(self._fastest)
        self._forget(tokens)
        if name != BASELINE and name not in self.peers:  # the engine sets its threads itself
            return self.llm.stream(tokens, params, method=name)
        request, stop = self.llm.request(tokens, params)
        use_threads(threads)
        if name in self.peers:
            events = (step for step in self.peers[name].answer(tokens, request, stop))
            return Stream(events, TextStream(self.llm.codec, params.stop), request)
        at_once = self.llm.engine.cost.at_once
        steps = decode_plain(self._fastest, tokens, request, stop, lambda: at_once)
        return Stream(steps, TextStream(self.llm.codec, params.stop), request)

    def figures(self) -> dict[str, Figures]:
        """The figures of every method that has run, the baseline first."""
        by_name = {name: [run for run in self.runs if run.method == name] for name in self.names}
        by_name = {name: runs for name, runs in by_name.items() if runs}
        reference = {run.prompt: run.completion.tokens for run in by_name.get("ar", [])}
        speeds = {name: _tokens_per_second(runs) for name, runs in by_name.items()}
        base = max(speeds.get(BASELINE, 0.0), speeds.get("ar", 0.0))
        return {
            name: _figures(runs, speeds[name], base, reference) for name, runs in by_name.items()
        }


def _balanced(count: int, block: int) -> list[int]:
    """The order of a block's turns: a row of a Williams square (E. J. Williams, "Experimental
    designs balanced for the estimation of residual effects of treatments", 1949), in which of an
    even number each follows each other one once; of an odd number in rows and reversed rows."""
    zigzag = [place // 2 if place % 2 == 0 else count - 1 - place // 2 for place in range(count)]
    row = [(number + block) % count for number in zigzag]
    return row[::-1] if block // count % 2 else row


def _stride(prompts: int) -> int:
    """How many blocks lie between two methods next to each other in the order of the names when
    they meet the same prompt: more than one, if there are prompts enough."""
    return next((n for n in range(2, prompts - 1) if gcd(n, prompts) == 1), 1)


def _without_repeats(prompts: Sequence[int], last: int) -> int:
    """Where to begin in a cycle of prompts, so that none is met twice in a row after `last`; 0 if
    there is no such place."""
    for begin in range(len(prompts)):
        cycle = [last, *prompts[begin:], *prompts[:begin]]
        if all(a != b for a, b in pairwise(cycle)):
            return begin
    return 0


def fastest_threads(model: LanguageModel) -> int:
    """The number of threads with which a forward takes least time, here and now."""
    seconds = {}
    for count in {1, max(1, usable_cores() - 1), usable_cores()}:
        use_threads(count)
        seconds[count] = forward_seconds(model, repeats=3)
    return min(seconds, key=seconds.__getitem__)


def _tokens_per_second(runs: Sequence[Run]) -> float:
    times: dict[int, list[float]] = {}
    for run in runs:
        times.setdefault(run.prompt, []).append(run.completion.stats.seconds)
    tokens = {run.prompt: run.completion.stats.tokens for run in runs}
    return sum(tokens.values()) / sum(median(seconds) for seconds in times.values())


def _figures(
    runs: Sequence[Run], speed: float, baseline: float, reference: dict[int, tuple[int, ...]]
) -> Figures:
    latest = {run.prompt: run for run in runs}
    answers = [run.completion.tokens for run in latest.values()]
    stats = summarise([step for run in latest.values() for step in run.steps])
    compared = [run for run in runs if run.prompt in reference]
    return Figures(
        tokens_per_second=speed,
        ratio=speed / baseline,
        mean_accepted_length=stats.mean_accepted_length,
        draft_acceptance=stats.draft_acceptance,
        retrieval_acceptance=stats.retrieval_acceptance,
        repeated_8grams=sum(repeated_ngrams(answer) for answer in answers) / len(answers),
        identical=sum(run.completion.tokens == reference[run.prompt] for run in compared),
        texts=len(runs),
    )
