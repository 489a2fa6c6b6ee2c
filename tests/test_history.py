"""Earlier answers as a source, on both sides: what they are worth, and whose they are."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from doublespec import LLM, ConfigError, engine
from doublespec.cli import app
from doublespec.config import RetrievalSettings
from doublespec.drafting.background import StyledDrafter
from doublespec.drafting.base import Drafter
from doublespec.drafting.retrieved import Retrieval
from doublespec.errors import DatastoreError
from doublespec.retrieval.history import History, open_history
from doublespec.sampling import Request, SamplingParams
from tests.drafts import EchoRecipe, in_process
from tests.reference import KnownCosts

CSV = "Turn this CSV into a JSON list of objects.\n\nname,city\nAnna,Oslo\nTom,Paris\nLena,Rome"
QUESTION = [{"role": "user", "content": CSV}]
COMMON = [1, 2, 3, 4, 5, 6, 7, 8]  # what all tenants' texts begin with
ANN, BOB = range(100, 200), range(200, 300)


@pytest.fixture(autouse=True)
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LookupCosts", KnownCosts)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM("bundled", "bundled", background="inline", gamma=1) as made:
        yield made


def steps_of(llm: LLM, method: str, tenant: str) -> int:
    return llm.chat(QUESTION, max_tokens=60, method=method, tenant=tenant).stats.steps


@pytest.mark.parametrize("method", ["lookup", "double", "double-serial"])
def test_an_answer_given_before_is_given_in_a_few_steps(llm: LLM, method: str) -> None:
    first = llm.chat(QUESTION, max_tokens=60, method=method, tenant="ann")
    again = llm.chat(QUESTION, max_tokens=60, method=method, tenant="ann")
    other = llm.chat(QUESTION, max_tokens=60, method=method, tenant="bob")
    assert first.tokens == again.tokens == other.tokens
    assert again.stats.steps < first.stats.steps
    assert again.stats.steps < other.stats.steps, "what Ann was answered is not Bob's"


@pytest.mark.parametrize("method", ["double@paper", "double-serial@paper"])
def test_published_methods_search_no_history(llm: LLM, method: str) -> None:
    assert steps_of(llm, method, "") == steps_of(llm, method, "")


def test_published_lookup_searches_no_history(llm: LLM) -> None:
    steps_of(llm, "lookup@paper", "")
    assert steps_of(llm, "lookup@paper", "") > 2 * steps_of(llm, "lookup", "")


def test_a_cancelled_answer_is_kept_as_far_as_it_went(llm: LLM) -> None:
    stream = llm.stream_chat(QUESTION, max_tokens=60, method="ar")
    next(iter(stream))
    stream.close()
    assert llm.engine.history is not None
    assert [tuple(entry.tokens) for entry in llm.engine.history.entries()] == [
        stream.completion.tokens
    ]


def test_prompts_are_kept_by_choice() -> None:
    with LLM("bundled", history_prompts=True) as llm:
        answer = llm.generate([5, 6, 7, 8, 9], max_tokens=4)
        assert llm.engine.history is not None
        assert [entry.tokens for entry in llm.engine.history.entries()] == [
            [5, 6, 7, 8, 9, *answer.tokens]
        ]


def test_no_bytes_mean_no_history(tmp_path: Path) -> None:
    with LLM("bundled", history_bytes=0) as llm:
        assert steps_of(llm, "lookup", "") < 2 * steps_of(llm, "lookup", "")
        assert llm.engine.history is None
        with pytest.raises(ConfigError, match="history_bytes"):
            llm.save_history(tmp_path / "history")
    with pytest.raises(ConfigError, match="history_bytes"):
        LLM("bundled", history_bytes=1000)


def test_a_saved_history_serves_the_next_process(llm: LLM, tmp_path: Path) -> None:
    before = steps_of(llm, "lookup", "ann")
    llm.save_history(tmp_path / "history")
    with LLM("bundled") as another:
        another.load_history(tmp_path / "history")
        assert steps_of(another, "lookup", "ann") < before / 2


def test_a_history_is_a_file(llm: LLM) -> None:
    for use in (llm.load_history, llm.save_history):
        with pytest.raises(ConfigError, match="history must be the path of a file, got 5"):
            use(5)  # type: ignore[arg-type]


def test_generate_remembers_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "answers"
    command = ["generate", "Count to ten.", "--draft", "none", "--max-tokens", "9"]
    for _ in range(2):
        assert CliRunner().invoke(app, [*command, "--history", str(file)]).exit_code == 0
    header, *answers, _ = file.read_text().splitlines()
    assert "doublespec history" in header
    assert len(answers) == 2
    file.write_text(header.replace('"vocabulary": "', '"vocabulary": "another-') + "\n")
    failed = CliRunner().invoke(app, [*command, "--history", str(file)])
    assert isinstance(failed.exception, DatastoreError)
    assert "tokenizer" in str(failed.exception)
    assert "another-" in file.read_text(), "a file that is not understood is not overwritten"


# -- whose they are ------------------------------------------------------------------------------


@pytest.fixture
def shared() -> History:
    """Ann's texts hold tokens from 100 on, Bob's from 200 on; all go on after the same tokens."""
    history = History(1 << 20)
    for i in range(0, 90, 5):
        history.add([*COMMON, *ANN[i : i + 9]], "ann")
        history.add([*COMMON, *BOB[i : i + 9]], "bob")
    return history


def offered(drafter: Drafter, history: History, tenant: str) -> set[int]:
    request = Request(SamplingParams(), 1, tenant=history.number_of(tenant))
    texts = [COMMON[:stop] for stop in range(1, 9)]
    texts += [[*COMMON, *tokens[i : i + 3]] for tokens in (ANN, BOB) for i in range(0, 95, 5)]
    return {token for text in texts for token in drafter.propose(text, 48, request)}


def test_the_target_is_never_offered_the_text_of_another_tenant(shared: History) -> None:
    drafter = Retrieval(RetrievalSettings(), shared.index_of).lookup()
    for _ in range(2):
        ann, bob = offered(drafter, shared, "ann"), offered(drafter, shared, "bob")
        assert ann & set(ANN) and not ann & set(BOB)
        assert bob & set(BOB) and not bob & set(ANN)
        assert not offered(drafter, shared, "eve") & {*ANN, *BOB}


def told(background: StyledDrafter, text: list[int], tenant: int) -> list[int]:
    """What a lock-step draft made of a text: it is asked twice, so that it has the time."""
    request = Request(SamplingParams(), 1, tenant=tenant)
    background.follow(text, 40, request)
    return background.follow(text, 40, request).tokens


def test_a_draft_process_searches_the_same_texts_for_the_same_tenant_alone(shared: History) -> None:
    ann, bob, eve = (shared.number_of(name) for name in ("ann", "bob", "eve"))
    background = in_process(EchoRecipe(shared.descriptor))
    try:
        assert told(background, COMMON, ann)[0] in ANN
        assert told(background, COMMON, bob)[0] in BOB
        assert told(background, COMMON, eve) == [0]
        for start in range(0, 85, 10):
            assert not set(told(background, [*COMMON, *BOB[start : start + 3]], ann)) & set(BOB)
            assert not set(told(background, [*COMMON, *ANN[start : start + 3]], bob)) & set(ANN)
        shared.add([900, 901, 902, 903], "eve")
        assert told(background, [900, 901], eve)[:2] == [902, 903], "an answer is seen at once"
        assert 902 not in told(background, [900, 901], ann)
    finally:
        background.close()


def test_the_memory_has_no_name_on_any_disk(shared: History) -> None:
    name = Path(f"/proc/self/fd/{shared.descriptor}")
    if not name.is_symlink():
        pytest.skip("needs /proc")
    assert "memfd:" in str(name.readlink())


def test_texts_that_make_room_for_others_are_never_read_as_theirs() -> None:
    """Ann searches while the memory is filled again and again, by both. Every half is emptied and
    given to other texts under her eyes; what she is offered is hers all the same."""
    history = History(1 << 16)
    index = open_history(history.descriptor)(history.number_of("ann"))
    found, done = set[int](), threading.Event()

    def search() -> None:
        while not done.is_set():
            for text in ([1], [1, 2], COMMON):
                match = index.lookup(text, 48)
                found.update(match.tokens if match else ())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=search)
    thread.start()
    try:
        for _ in range(150):
            for tokens, tenant in ((ANN, "ann"), (BOB, "bob")):
                history.add([*COMMON, *tokens], tenant)
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
    assert found & set(ANN)
    assert not found & set(BOB)


def test_tenants_without_texts_are_forgotten_and_no_number_is_given_twice() -> None:
    history = History(1 << 16)
    numbers = []
    for i in range(40):
        numbers.append(history.number_of(f"tenant {i}"))
        history.add(list(range(100)), f"tenant {i}")
    assert len(set(numbers)) == 40
    assert history.number_of("tenant 0") not in numbers, "its texts are gone"
    assert history.index("tenant 0").lookup([1, 2, 3], 5) is None


def test_a_forked_process_adds_nothing_and_names_nobody(
    shared: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that number tenants apart would give one number to two of them."""
    ann, before = shared.number_of("ann"), list(shared.entries())
    monkeypatch.setattr(os, "getpid", lambda: 1)
    shared.add([1, 2, 3], "ann")
    assert list(shared.entries()) == before
    assert shared.number_of("ann") == ann
    assert shared.index("new").lookup(COMMON, 5) is None
