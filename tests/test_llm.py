"""The Python API: text in, text out, stats, cancelling, and the errors a user can cause."""

import gc
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch

import doublespec
from doublespec import LLM, ConfigError, DoubleError, ModelError, SamplingParams, engine
from doublespec.decoding import Step
from doublespec.drafting.recipe import DraftRecipe
from doublespec.engine import Engine
from doublespec.llm import Stream, find_bundled
from doublespec.models.base import can_settle
from doublespec.sampling import Request
from doublespec.text import NumberCodec, TextStream
from tests.reference import KnownCosts

CSV = "Turn this CSV into a JSON list of objects.\n\nname,city\nAnna,Oslo\nTom,Paris\nLena,Rome"
QUESTION = [{"role": "user", "content": CSV}]


def test_the_public_names_are_there() -> None:
    assert all(hasattr(doublespec, name) for name in doublespec.__all__)
    assert set(doublespec.__all__) <= set(dir(doublespec))
    assert set(doublespec.METHODS) >= {"ar", "lookup", "sd", "psd", "double", "double-serial"}


def test_a_completion_tells_what_it_took(bundled: LLM) -> None:
    completion = bundled.chat(QUESTION, max_tokens=40, method="double-serial")
    stats = completion.stats
    assert completion.text
    assert stats.tokens == len(completion.tokens)
    assert 0 < stats.steps < stats.tokens
    assert stats.mean_accepted_length == pytest.approx(stats.tokens / stats.steps)
    assert stats.draft_acceptance is not None and 0 < stats.draft_acceptance <= 1
    assert 0 < stats.ttft_seconds < stats.seconds
    assert completion.finish_reason in ("stop", "length")
    assert completion.prompt_tokens == len(bundled.codec.encode_chat(QUESTION))


def test_the_steps_of_an_answer_take_as_long_as_it_takes(bundled: LLM) -> None:
    """Also those that are computed several at once, of which the first one comes last."""
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    bundled.generate("Once upon a time", params, method="ar")
    stream = bundled.stream("Once upon a time", params, method="ar")
    begun = time.perf_counter()
    stream.finish()
    seconds = time.perf_counter() - begun
    assert any(step.earlier_seconds < 0.0 for step in stream.steps) or not can_settle(
        bundled.target
    )
    assert all(step.seconds >= step.target_seconds > 0.0 for step in stream.steps)
    assert sum(step.seconds for step in stream.steps) < seconds
    assert sum(step.seconds + step.earlier_seconds for step in stream.steps) < seconds


def test_what_is_computed_at_once_is_shown_at_once(bundled: LLM) -> None:
    stream = bundled.stream("Once upon a time", max_tokens=60, method="ar", ignore_eos=True)
    seen = []
    for piece in stream:
        assert piece
        assert stream.steps[-1].ready == 0
        seen.append(len(stream.steps))
    assert seen[0] == 1, "the first token does not wait"
    if can_settle(bundled.target):
        assert len(seen) < 40
    assert stream.completion.stats.tokens == seen[-1] == 60


class Interrupted:
    """Steps of a call, between which an interrupt comes, and which would go on behind it."""

    def __init__(self) -> None:
        self.made = 0
        self.is_closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        self.made += 1
        if self.made == 4:
            raise KeyboardInterrupt
        ready = max(0, 5 - self.made) if self.made > 1 else 0
        return Step((self.made,), (), 0, None, 0.0, 0.1, 0.0, 0.1, ready=ready)

    def close(self) -> None:
        self.is_closed = True


def test_an_answer_that_is_interrupted_does_not_go_on_with_a_gap() -> None:
    events: Any = Interrupted()
    stream = Stream(events, TextStream(NumberCodec(), ()), Request(SamplingParams(), 1))
    pieces = iter(stream)
    assert next(pieces) == "1 "
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
    assert events.is_closed
    assert list(stream) == []
    assert stream.completion.tokens == (1,)
    assert stream.completion.finish_reason is None


def test_a_stream_gives_the_text_of_the_completion_piece_by_piece(bundled: LLM) -> None:
    stream = bundled.stream_chat(QUESTION, max_tokens=60)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.completion.text == bundled.chat(QUESTION, max_tokens=60).text


def test_the_end_token_is_a_token_and_no_text(bundled: LLM) -> None:
    free = bundled.generate("one two one two", max_tokens=30)
    stopped = bundled.generate("one two one two", max_tokens=30, stop_token_ids=(free.tokens[7],))
    assert stopped.finish_reason == "stop"
    first = free.tokens.index(free.tokens[7])
    assert stopped.tokens == free.tokens[: first + 1]


def test_a_stop_string_ends_the_text_before_it(bundled: LLM) -> None:
    free = bundled.generate("The quick brown", max_tokens=60, ignore_eos=True).text
    string = free[len(free) // 2 :][:3]
    for method in ("ar", "double-serial"):
        stream = bundled.stream(
            "The quick brown", max_tokens=60, ignore_eos=True, stop=(string,), method=method
        )
        assert "".join(stream) == free[: free.index(string)]
        assert stream.completion.finish_reason == "stop"


def test_logprobs_are_of_the_chosen_tokens(bundled: LLM) -> None:
    for method in ("ar", "double-serial"):
        completion = bundled.generate("Hello", max_tokens=12, logprobs=2, method=method)
        assert completion.logprobs is not None
        assert [entry.token for entry in completion.logprobs] == list(completion.tokens)
        assert all(entry.top[0] == (entry.token, entry.logprob) for entry in completion.logprobs)


def test_a_cancelled_answer_leaves_the_next_one_alone(bundled: LLM) -> None:
    wanted = bundled.chat(QUESTION, max_tokens=40, method="ar").tokens
    for method in ("double", "double-serial"):
        stream = bundled.stream_chat(QUESTION, max_tokens=40, method=method)
        next(iter(stream))
        stream.close()
        assert stream.completion.finish_reason is None
        assert bundled.chat(QUESTION, max_tokens=40, method=method).tokens == wanted


def test_answers_that_take_turns_do_not_disturb_each_other(bundled: LLM) -> None:
    prompts = ["Once upon a time", "def add(a, b):"]
    wanted = [bundled.generate(p, max_tokens=30, method="ar").text for p in prompts]
    streams = [bundled.stream(p, max_tokens=30, method="double") for p in prompts]
    iterators = [iter(stream) for stream in streams]
    while any([next(iterator, None) for iterator in iterators]):
        pass
    assert [stream.completion.text for stream in streams] == wanted


def test_answers_in_several_threads_do_not_disturb_each_other(bundled: LLM) -> None:
    prompts = ["Once upon a time", "def add(a, b):", "The answer is"]
    wanted = [bundled.generate(p, max_tokens=20, method="ar").tokens for p in prompts]
    found: dict[int, tuple[int, ...]] = {}

    def answer(i: int) -> None:
        found[i] = bundled.generate(prompts[i], max_tokens=20, method="double-serial").tokens

    threads = [threading.Thread(target=answer, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(3)] == wanted


def test_the_first_answers_in_several_threads_read_and_measure_one_draft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One after the other: kernels that work on the same rows at once would write anywhere."""
    load, drafter, at_work, most, loads = DraftRecipe.load, DraftRecipe.drafter, [], [0], [0]

    def alone(function: Callable[..., Any], *args: Any) -> Any:
        at_work.append(0)
        most[0] = max(most[0], len(at_work))
        time.sleep(0.05)
        try:
            return function(*args)
        finally:
            at_work.pop()

    def loaded(*args: Any) -> Any:
        loads[0] += 1
        return alone(load, *args)

    monkeypatch.setattr(DraftRecipe, "load", loaded)
    monkeypatch.setattr(DraftRecipe, "drafter", lambda *args: alone(drafter, *args))
    with LLM("bundled", "bundled", method="ar", history_bytes=0) as llm:
        wanted = llm.generate("One, two", max_tokens=12).tokens
        found: list[tuple[int, ...]] = []

        def answer() -> None:
            found.append(llm.generate("One, two", max_tokens=12, method="sd").tokens)

        threads = [threading.Thread(target=answer) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [wanted] * 3
    assert (loads, most) == ([1], [1])


def test_a_stream_that_the_garbage_collector_finds_in_another_answer_holds_up_nothing(
    bundled: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is collected in the middle of a step, where the other answer has the models."""
    wanted = bundled.generate("def add(a, b):", max_tokens=10, method="ar").tokens
    forward = bundled.target.logits

    def collecting(*arguments: Any) -> Any:
        gc.collect()
        return forward(*arguments)

    def drop_half_way() -> None:
        stream = bundled.stream("Once upon a time", max_tokens=40, method="lookup")
        cycle = [stream, iter(stream)]
        next(cycle[1])
        cycle.append(cycle)

    gc.disable()
    try:
        drop_half_way()
        monkeypatch.setattr(bundled.target, "logits", collecting)
        found: list[tuple[int, ...]] = []
        answer = partial(bundled.generate, "def add(a, b):", max_tokens=10, method="lookup")
        thread = threading.Thread(target=lambda: found.append(answer().tokens), daemon=True)
        thread.start()
        thread.join(60)
    finally:
        gc.enable()
    assert found == [wanted]


def test_another_thread_may_cancel_a_stream(bundled: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a step, which is the last one then; and between steps."""
    stream = bundled.stream("Once upon a time", max_tokens=400, ignore_eos=True, method="ar")
    name = "settle" if can_settle(bundled.target) else "logits"
    in_step, forward = threading.Event(), getattr(bundled.target, name)

    def telling(*arguments: Any) -> Any:
        in_step.set()
        time.sleep(0.05)
        return forward(*arguments)

    monkeypatch.setattr(bundled.target, name, telling)
    thread = threading.Thread(target=stream.finish)
    thread.start()
    in_step.wait(60)
    stream.close()
    thread.join(60)
    assert not thread.is_alive()
    assert len(stream.steps) < 10
    assert stream.completion.finish_reason is None
    stream.close()
    assert list(stream) == []


def test_each_llm_uses_its_own_number_of_threads(bundled: LLM) -> None:
    """Also where their answers take turns."""
    used: dict[int, set[int]] = {1: set(), 2: set()}
    with LLM("bundled", method="ar", threads=2, history_bytes=0) as other:
        streams = []
        for llm, number in ((bundled, 1), (other, 2)):
            target = Watched(llm.target, used[number])
            llm.engine._parts.clear()
            llm.engine._target, usual = target, llm.engine._target
            streams.append(llm.stream("Once upon a time", max_tokens=4, method="ar"))
            llm.engine._target = usual
        for _ in itertools.zip_longest(*streams):
            pass
    bundled.engine._parts.clear()
    assert used == {1: {1}, 2: {2}}


class Watched:
    """A model that notes how many threads it is computed with."""

    def __init__(self, model: Any, used: set[int]) -> None:
        self._model, self._used = model, used
        self.vocab_size, self.max_length = model.vocab_size, model.max_length

    def logits(self, *arguments: Any) -> Any:
        self._used.add(torch.get_num_threads())
        return self._model.logits(*arguments)


def test_an_answer_ends_at_the_context_limit() -> None:
    with LLM("bundled", max_length=40) as llm:
        completion = llm.generate([7] * 30, max_tokens=100, ignore_eos=True, method="lookup")
        assert len(completion.tokens) == 10
        assert completion.finish_reason == "length"
        with pytest.raises(ConfigError, match="prompt has 40 tokens and the context holds 40"):
            llm.generate([7] * 40)


def test_an_empty_prompt_begins_with_the_token_that_begins_texts(bundled: LLM) -> None:
    assert bundled.generate("", max_tokens=5).prompt_tokens == 1
    with pytest.raises(ConfigError, match="no tokens"):
        bundled.generate([])


def test_without_a_draft_retrieval_is_used() -> None:
    with LLM("bundled") as llm:
        assert {row.name for row in llm.explain().methods} == {"lookup", "ar"}
        with pytest.raises(ConfigError, match="needs a draft model"):
            llm.generate("x", method="double")


def test_a_draft_can_be_waited_for_before_the_first_answer() -> None:
    """As a race does, in which `auto` would begin without it."""
    with LLM("bundled", "bundled", threads=1, history_bytes=0) as llm:
        assert not llm.engine.background().is_ready()
        llm.engine.prepare("auto", wait=True)
        assert llm.engine.background().is_ready()


@pytest.mark.parametrize("in_turns", [False, True])
def test_auto_loads_a_draft_beside_the_target_when_it_is_worth_that(
    in_turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once where it is likely the best; else once that is no more than a hundredth of the time,
    since it takes a core for seconds. A draft before the target needs none."""
    monkeypatch.setattr(engine, "usable_cores", lambda: 2)
    monkeypatch.setattr(Engine, "_is_faster_in_turns", lambda self: in_turns)
    speeds = {"double-serial": 2.0, "double": 1.0}  # whatever the machine is busy with
    monkeypatch.setattr(Engine, "_draft_speeds", lambda self, kept: speeds)
    monkeypatch.setattr(Engine, "_lost_by_loading", 1e6)
    with LLM("bundled", "bundled", history_bytes=0) as llm:
        draft = llm.engine.background()
        assert draft.was_begun != in_turns
        llm.generate("One, two, three", max_tokens=40)
        assert draft.was_begun != in_turns
        monkeypatch.setattr(Engine, "_lost_by_loading", 0.0)
        for seed in range(9):  # of so many steps that turns end, where it is chosen again
            llm.generate("One, two, three", temperature=1.0, max_tokens=100, seed=seed)
        assert draft.was_begun


def test_a_method_that_cannot_run_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="needs a draft model"):
        LLM("/no/such/folder", method="double@paper")
    with pytest.raises(ConfigError, match="method must be one of"):
        LLM("/no/such/folder", method="magic")


def test_a_draft_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    source = Path(find_bundled("bundled", "draft"))
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="token 300 is"):
        LLM("bundled", tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.generate("x", temperature=-1), "temperature must be a number from 0"),
        (lambda llm: llm.generate("x", colour="red"), "'colour' is no sampling parameter"),
        (lambda llm: llm.generate("x", method="magic"), "method must be one of auto, ar"),
        (lambda llm: llm.generate("x", method="double@home"), "preset after @ must be one of"),
        (lambda llm: llm.generate([99999]), "prompt token ids must be from 0 to 8191"),
        (lambda llm: llm.chat([]), "at least one message"),
        (lambda llm: LLM("bundled", colour="red"), "'colour' is no setting"),
        (lambda llm: LLM("bundled", background="moon"), "background must be one of"),
        (lambda llm: LLM("bundled", dtype="int3"), "dtype must be one of"),
        (lambda llm: LLM("bundled", target_device="tpu"), "device must be"),
        (lambda llm: LLM("bundled", gamma=0), "gamma must be a whole number from 1"),
        (lambda llm: LLM("no/such-model-here"), "no folder here, and the Hugging Face hub"),
        (lambda llm: LLM("bundled", method="nope"), "method must be one of"),
        (lambda llm: LLM("bundled", method=None), "method must be one of"),
        (lambda llm: LLM("bundled", retrieval=5), "retrieval must be RetrievalSettings, got 5"),
        (lambda llm: LLM("bundled", graphs="no"), "graphs must be one of False, True"),
        (lambda llm: LLM("bundled", max_length=9999), "at most the target's 2048, got 9999"),
        (lambda llm: llm.generate("x", method="ar@paper"), "plain decoding takes no preset"),
        (lambda llm: LLM("bundled", datastore=5), "datastore must be the path of a file"),
        (lambda llm: LLM("bundled", datastore=[5]), "datastore must be the path of a file"),
        (lambda llm: LLM("bundled", threads=100_000), "threads must be a whole number from 1 to"),
        (lambda llm: llm.generate(None), "must be a text or a list of token ids, got None"),
        (lambda llm: llm.generate([1.5]), r"a list of token ids, got \[1.5\]"),
        (lambda llm: llm.generate(["a"]), r"a list of token ids, got \['a'\]"),
        (lambda llm: llm.generate(torch.ones(3, 3).long()), "a list of token ids, got tensor"),
        (lambda llm: llm.generate("\ud800"), "the prompt is not Unicode text"),
        (lambda llm: llm.generate("x", {"temperature": 1}), "params must be SamplingParams, got"),
        (lambda llm: llm.generate("x", tenant=5), "tenant must be a string, got 5"),
    ],
)
def test_a_users_mistake_is_one_sentence(bundled: LLM, call, message: str) -> None:
    with pytest.raises(DoubleError, match=message) as caught:
        call(bundled)
    assert "\n" not in str(caught.value)


def test_token_ids_may_be_an_array_or_a_tensor(bundled: LLM) -> None:
    wanted = bundled.generate([5, 6, 7], max_tokens=3).tokens
    for prompt in (np.array([5, 6, 7]), torch.tensor([5, 6, 7]), (5, 6, 7)):
        assert bundled.generate(prompt, max_tokens=3).tokens == wanted


def test_parameters_can_be_given_as_an_object_or_as_keywords(bundled: LLM) -> None:
    params = SamplingParams(temperature=0.9, seed=4, max_tokens=10)
    by_object = bundled.generate("Hello", params)
    by_keywords = bundled.generate("Hello", temperature=0.9, seed=4, max_tokens=10)
    mixed = bundled.generate("Hello", params, max_tokens=4)
    assert by_object.tokens == by_keywords.tokens
    assert mixed.tokens == by_object.tokens[:4]


def test_a_datastore_helps_and_changes_nothing(
    bundled: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that holds the answer itself: every step should settle a run of it."""
    monkeypatch.setattr(engine, "LookupCosts", KnownCosts)
    prompt = "Once upon a time"
    free = bundled.generate(prompt, max_tokens=60, ignore_eos=True, method="ar")
    (tmp_path / "text.txt").write_text(prompt + free.text)
    store = tmp_path / "answers.store"
    build = ["datastore", "build", str(store), "--tokenizer", "bundled", str(tmp_path / "text.txt")]
    subprocess.run([sys.executable, "-m", "doublespec", *build], check=True, capture_output=True)
    with LLM("bundled", "bundled", datastore=store, background="inline", gamma=2) as llm:
        for method in ("lookup", "double", "double-serial"):
            found = llm.generate(prompt, max_tokens=60, ignore_eos=True, method=method)
            assert found.tokens == free.tokens
        with LLM("bundled") as without:
            alone = without.generate(prompt, max_tokens=60, ignore_eos=True, method="lookup")
        helped = llm.generate(prompt, max_tokens=60, ignore_eos=True, method="lookup")
        assert helped.stats.steps < alone.stats.steps
        content = store.read_bytes()
        store.unlink()  # what is open stays open
        assert llm.generate(prompt, max_tokens=60, ignore_eos=True).tokens == free.tokens
    with pytest.raises(DoubleError, match="answers"):
        store.write_bytes(content[:100])
        LLM("bundled", datastore=store)
