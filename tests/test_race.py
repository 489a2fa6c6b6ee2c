"""The race: what its figures mean, and that they cannot flatter."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from doublespec.bench.prompts import DEMO_PROMPTS
from doublespec.bench.race import BASELINE, Race, Run
from doublespec.llm import LLM, Stream
from doublespec.models.load import LocalDecoder
from doublespec.sampling import SamplingParams
from doublespec.stats import repeated_ngrams


@pytest.fixture(scope="module")
def race(bundled: LLM) -> Race:
    asked = [[{"role": "user", "content": prompt.text}] for prompt in DEMO_PROMPTS[:3]]
    prompts = [bundled.codec.encode_chat(messages) for messages in asked]
    params = SamplingParams(max_tokens=16)
    race = Race(bundled, prompts, ["ar", "double-serial"], params, rounds=2)
    race.warm_up()
    list(race.play())
    return race


def test_no_draft_is_being_loaded_while_others_race() -> None:
    """Not even one that none of them uses, as an LLM begins it for `auto`."""
    with LLM("bundled", "bundled", history_bytes=0) as llm:
        race = Race(llm, [llm.codec.encode("Once upon a time")], ["ar"], SamplingParams(), 1)
        race.warm_up()
        assert not any(threads.is_loading for threads in llm.engine.governors())
        assert llm.engine.wait_for_draft()


def test_every_method_answers_every_prompt_in_every_round(race: Race) -> None:
    turns = {(run.method, run.prompt, run.round) for run in race.runs}
    assert len(turns) == len(race.runs) == 3 * 3 * 2


def test_no_one_meets_a_prompt_that_its_models_have_just_read(race: Race) -> None:
    prompts = [prompt for _, prompt, _ in race.turns()]
    assert all(a != b for a, b in pairwise(prompts))


def test_every_turn_reads_its_whole_prompt(bundled: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the second prompt of a conversation, when the first one was read just before."""
    first = bundled.codec.encode("One two three four five six seven.")
    prompts = [first, [*first, *first], [*first, *first, *first]]
    race = Race(bundled, prompts, ["ar", "double-serial"], SamplingParams(max_tokens=2), rounds=1)
    known = []

    def start(self: Race, name: str, tokens: list[int], params: SamplingParams) -> Stream:
        stream = work(self, name, tokens, params)
        model = self._fastest if name == BASELINE else bundled.target
        assert isinstance(model, LocalDecoder)
        known.append(len(tokens) - model.unread(tokens, len(tokens)))
        return stream

    work = Race.start
    monkeypatch.setattr(Race, "start", start)
    list(race.play())
    assert known == [0] * 9


METHODS = ("ar", "lookup", "sd", "psd", "double", "double-serial", "auto")  # and plain decoding


@pytest.mark.parametrize(
    ("count", "prompts", "most"), [(3, 60, 4), (4, 60, 4), (7, 12, 2), (7, 67, 3)]
)
def test_every_method_follows_every_other_one_about_as_often(
    race: Race, count: int, prompts: int, most: int
) -> None:
    many = Race(race.llm, [[i] for i in range(prompts)], METHODS[:count], race.params, 2)
    turns = list(many.turns())
    assert len({*turns}) == len(turns) == prompts * (count + 1) * 2
    assert all(a[1] != b[1] for a, b in pairwise(turns))
    block = {
        (name, prompt): i // (count + 1)
        for i, (name, prompt, _) in enumerate(turns[: len(turns) // 2])
    }
    psd_like = [name for name in many.names if name in ("psd", "double", "auto")]
    for a, b in combinations(psd_like, 2):  # they share the draft's process, and so its cache
        assert all(abs(block[a, p] - block[b, p]) > 1 for p in range(prompts))
    after = Counter((a[0], b[0]) for a, b in pairwise(turns) if a[0] != b[0])
    assert len(after) == (count + 1) * count
    assert max(after.values()) <= most * min(after.values())  # the more methods, the more alike


def test_runs_are_reported_in_the_order_of_the_names(race: Race) -> None:
    runs = race.by_method()
    assert list(dict.fromkeys(run.method for run in runs)) == race.names
    assert sorted(map(id, runs)) == sorted(map(id, race.runs))


def test_texts_are_compared_with_plain_decoding(race: Race) -> None:
    figures = race.figures()
    assert figures["double-serial"].identical == figures["double-serial"].texts == 6
    assert figures["double-serial"].mean_accepted_length > 1.2
    assert figures["ar"].mean_accepted_length == 1


def test_a_method_that_changes_a_text_is_seen(race: Race) -> None:
    forged = Race.__new__(Race)
    forged.__dict__.update(race.__dict__)
    forged.runs = [_with_other_text(run) for run in race.runs]
    assert forged.figures()["double-serial"].identical == 0


def _with_other_text(run: Run) -> Run:
    if run.method != "double-serial":
        return run
    tokens = (*run.completion.tokens[:-1], 5)
    return replace(run, completion=replace(run.completion, tokens=tokens))


def test_a_slow_baseline_does_not_flatter(race: Race) -> None:
    """Ratios are to the faster of both plain decodings: a disturbed baseline raises none."""
    slowed = Race.__new__(Race)
    slowed.__dict__.update(race.__dict__)
    slowed.runs = [_slower(run) for run in race.runs]
    figures = slowed.figures()
    assert figures["ar"].ratio == 1
    assert figures[BASELINE].ratio < 0.2


def _slower(run: Run) -> Run:
    if run.method != BASELINE:
        return run
    stats = replace(run.completion.stats, seconds=run.completion.stats.seconds * 100)
    return replace(run, completion=replace(run.completion, stats=stats))


def test_repeated_ngrams_are_those_that_stood_in_the_text_before() -> None:
    assert repeated_ngrams(range(100)) == 0
    assert repeated_ngrams([1, 2, 3, 4] * 25) > 0.9
    assert repeated_ngrams([1, 2, 3]) == 0
