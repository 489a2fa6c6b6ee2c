"""Real models that replay traces: real forwards, the trace's choices."""

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from doublespec.bench.machine import Curve, Machine
from doublespec.bench.prompts import DEMO_PROMPTS
from doublespec.bench.race import BASELINE, REPLAYED, Race
from doublespec.bench.real_replay import SECOND_CHOICE, Replaying, Replays
from doublespec.bench.replay import Replay
from doublespec.bench.simulate import answers, plans
from doublespec.bench.traces import Trace, write_traces
from doublespec.cli import app
from doublespec.cli.bench_replay import not_the_trace
from doublespec.config import PRESETS
from doublespec.errors import ConfigError
from doublespec.llm import LLM
from doublespec.methods import METHODS
from doublespec.models.base import Branch, Chain, Worth, can_branch, can_chain
from doublespec.models.toy import ToyModel
from doublespec.noise import Heat
from doublespec.sampling import Request, SamplingParams, choose, rank
from doublespec.tokens import Tokens
from tests.test_random_weights import write_shape

PROMPT = tuple(range(20, 40))
ANSWER = (50, 51, 52, 53, 54, 60, 50, 51, 52, 53, 54, 61, 50, 51, 52, 53, 54, 62, 70, 71)
AGREES = tuple(place % 4 != 3 for place in range(len(ANSWER)))
VOCABULARY = 200


def write(path: Path, *traces: Trace) -> Path:
    write_traces(path, traces or [Trace("a", PROMPT, ANSWER, AGREES)])
    return path


@pytest.fixture
def replays(tmp_path: Path) -> Replays:
    return Replays((write(tmp_path / "t.jsonl"),), VOCABULARY)


@pytest.fixture
def shape(tmp_path: Path) -> str:
    return write_shape(tmp_path / "a.json", vocab_size=VOCABULARY)


# -- what is chosen --------------------------------------------------------------------------------


@pytest.mark.parametrize("background", ["process", "thread"])
def test_every_method_gives_the_traces_answer(
    replays: Replays, shape: str, background: str
) -> None:
    settings = {"background": background, "gamma": 3, "threads": 1, "history_bytes": 0}
    with LLM(shape, shape, wrap=replays, **settings) as llm:
        for method in [*METHODS, *(f"double@{preset}" for preset in PRESETS)]:
            completion = llm.generate(list(PROMPT), method=method, max_tokens=len(ANSWER))
            assert completion.tokens == ANSWER, method
        other = llm.generate([1, 2, 3], method="sd", max_tokens=20)
    with LLM(shape, threads=1) as plain:
        assert other.tokens == plain.generate([1, 2, 3], method="ar", max_tokens=20).tokens


@pytest.mark.parametrize("method", ["sd", "psd@lock-step"])
def test_the_draft_is_wrong_where_the_trace_says_so(
    replays: Replays, shape: str, method: str
) -> None:
    """In this process and in its own: were it right elsewhere, or everywhere, steps were longer."""
    with LLM(shape, shape, wrap=replays, gamma=4, threads=1, history_bytes=0) as llm:
        stream = llm.stream(list(PROMPT), method=method, max_tokens=len(ANSWER))
        stream.finish()
        if method == "sd":  # places 3, 7, 11, ... are the target's own
            assert [len(step.new) for step in stream.steps] == [1, 3, 4, 4, 4, 4]
    place, drafted = 0, 0
    for step in stream.steps:
        for offset, token in enumerate(step.guess):
            wanted = ANSWER[place + offset]
            assert (token == wanted) == AGREES[place + offset]
            drafted += 1
            if token != wanted:
                break
        place += len(step.new)
    assert drafted > 8


def test_a_replayed_record_goes_like_what_was_recorded(bundled: LLM, tmp_path: Path) -> None:
    """The steps of a real pair, again from its record alone."""
    prompt = bundled.codec.encode_chat([{"role": "user", "content": DEMO_PROMPTS[0].text}])
    params = SamplingParams(max_tokens=40)
    real = bundled.stream(prompt, params, method="sd")
    answer = real.finish().tokens
    request = Request(params, len(prompt))
    text = [*prompt, *answer[:-1]]
    logits = bundled.engine.draft_model().logits(text, len(answer), len(prompt))
    chosen = choose(logits, text, len(prompt), request)
    agrees = tuple(a == b for a, b in zip(chosen, answer, strict=True))
    path = write(tmp_path / "t.jsonl.gz", Trace("a", tuple(prompt), answer, agrees))
    replays = Replays((path,), bundled.target.vocab_size)
    with LLM("bundled", "bundled", wrap=replays, gamma=3, threads=1, history_bytes=0) as llm:
        again = llm.stream(prompt, replace(params, max_tokens=len(answer)), method="sd")
        assert again.finish().tokens == answer
    assert [len(step.new) for step in again.steps] == [len(step.new) for step in real.steps]


@pytest.mark.parametrize("method", ["sd", "psd@lock-step", "double@paper"])
def test_a_replay_takes_the_steps_of_a_simulation(
    replays: Replays, shape: str, method: str
) -> None:
    """In lock-step no clock decides, so that both must agree step by step."""
    machine = Machine(Curve(((1, 0.024),)), Curve(((1, 0.008),)), 0.024)
    (plan,) = plans(method, machine, gamma=3, guess_tokens=48)
    (trace,) = replays.read()["t"]
    (simulated,) = answers(plan, machine, [Replay(trace, SECOND_CHOICE)])
    with LLM(shape, shape, wrap=replays, gamma=3, threads=1, history_bytes=0) as llm:
        stream = llm.stream(list(PROMPT), method=method, max_tokens=len(ANSWER))
        stream.finish()
    assert [len(step.new) for step in stream.steps] == [len(step.new) for step in simulated]


def test_the_draft_is_wrong_after_any_other_text(replays: Replays) -> None:
    toy = ToyModel(VOCABULARY)
    draft = replays.draft(toy)
    request = Request(SamplingParams(), len(PROMPT))
    text = [*PROMPT, *ANSWER]
    right = draft.logits(text[:25], 5, len(PROMPT))
    chosen = choose(right, text, 21, request)
    assert [*chosen[:2], *chosen[3:]] == [51, 52, 54, 60]
    assert chosen[2] not in text
    assert toy.forwards == 1
    rankings = rank(right, text, 21, request, 2)
    assert [ranking.behind[1] for ranking in rankings if ranking.tokens[0] in text] == [1.0] * 4
    end = draft.logits(text, 1, len(PROMPT))  # nobody knows what follows: its own choice
    assert torch.equal(end, toy.logits(text, 1, len(PROMPT)))
    off = [*text[:23], 99, *[54] * 40]
    wrong = choose(draft.logits(off, 41, len(PROMPT)), off, 24, request)
    assert len(set(wrong)) == 41, "nothing in it repeats, of which retrieval could make use"
    assert not {*wrong} & {*text}


class Chaining(ToyModel):
    """Goes on by itself, and counts the forwards that it makes so."""

    can_chain = True
    chained = 0

    def chain(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None = None,
    ) -> Chain:
        assert not ends
        assert worth == Worth()
        self.chained += most
        return Chain([0] * most, [0.0] * most)


def test_a_draft_that_goes_on_by_itself_does_so_in_a_replay(replays: Replays) -> None:
    """For as many forwards, with the tokens that single ones would choose; behind the answer's end
    and after prompts that are no trace's, too."""
    model = Chaining(VOCABULARY)
    draft = replays.draft(model)
    assert isinstance(draft, Replaying)
    assert can_chain(draft)

    def chosen(text: list[int], most: int) -> list[int]:
        for _ in range(most):
            rows = draft.logits(text, 1, len(PROMPT))
            text = [*text, int(rows[-1].argmax()) if len(rows) else 0]
        return text[-most:]

    for start in (0, 3, 9):
        text = [*PROMPT, *ANSWER[:start]]
        wanted = chosen(text, 6)
        model.chained = 0
        assert draft.chain(text, 6, VOCABULARY, (), Worth()).tokens == wanted
        assert model.chained == 6
        found = draft.chain(text, 6, VOCABULARY, wanted[1:2], Worth()).tokens
        assert found == wanted[: wanted.index(wanted[1]) + 1]
        assert model.chained == 6 + len(found)
        worth = Worth(edges=[0.5], chances=[0.0, 0.5], least=0.2)  # 1 behind: two more, then less
        assert draft.chain(text, 6, VOCABULARY, (), worth).tokens == wanted[:3]
    assert len(draft.chain([*PROMPT, *ANSWER], 3, VOCABULARY, (), Worth()).tokens) == 3
    draft.logits([1, 2, 3], 1, 3)
    assert draft.chain([1, 2, 3], 2, VOCABULARY, (), Worth()).tokens == [0, 0]


def test_a_branch_is_right_where_it_is_the_true_text(replays: Replays) -> None:
    draft = replays.draft(ToyModel(VOCABULARY))
    assert isinstance(draft, Replaying)
    assert can_branch(draft)
    text = [*PROMPT, *ANSWER]
    branches = [Branch(24, (54, 60)), Branch(24, (99,))]
    rows, ends = draft.branch_logits([*text[:24], 98], 1, branches, len(PROMPT))
    assert rows.argmax(-1).item() not in text
    right, wrong = ends.argmax(-1).tolist()
    assert right == 50
    assert wrong not in text
    rows, ends = draft.branch_logits([1, 2, 3], 1, [Branch(2, (5,))], 3)
    assert not (ends == 256.0).any()


def test_agreement_and_limit_choose_the_traces(tmp_path: Path) -> None:
    traces = [replace(Trace(str(n), PROMPT, ANSWER, AGREES), prompt=(n, *PROMPT)) for n in range(5)]
    write(tmp_path / "a.jsonl", *traces)
    write(tmp_path / "b.jsonl", *traces[4:], replace(traces[0], prompt=(9,)))
    every = Replays((tmp_path,), VOCABULARY).read()
    assert {name: [t.id for t in found] for name, found in every.items()} == {
        "a": ["0", "1", "2", "3", "4"],
        "b": ["0"],  # the other one has a prompt of file a
    }
    few = Replays((tmp_path,), VOCABULARY, agreement=0.9, limit=3).read()
    assert [len(found) for found in few.values()] == [2, 1]
    flags = [flag for found in few.values() for trace in found for flag in trace.agrees]
    assert sum(flags) / len(flags) == 0.9


# -- the command -----------------------------------------------------------------------------------


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "--threads", "1", *arguments])


def test_bench_says_on_every_line_that_it_replayed(
    replays: Replays, shape: str, tmp_path: Path
) -> None:
    pair = shape.removeprefix("random:")
    outputs = {kind: tmp_path / f"report.{kind}" for kind in ("json", "markdown", "html")}
    files = [part for kind, path in outputs.items() for part in (f"--{kind}", str(path))]
    run = bench(
        *("--random-weights", f"{pair},{pair}", "--replay", str(replays.paths[0])),
        *("--methods", "sd,lookup@paper", "--repeat", "1", "--agreement", "0.9", *files),
    )
    report: dict[str, Any] = json.loads(outputs["json"].read_text())
    assert run.exit_code == (1 if report["faults"] else 0), run.output
    assert all("fastest shape" in fault for fault in report["faults"])  # that depends on the load
    found = report["results"]
    assert list(found) == [name + REPLAYED for name in (BASELINE, "ar", "sd", "lookup@paper")]
    assert {rows["all"]["tokens"] for rows in found.values()} == {len(ANSWER)}
    assert found["lookup@paper" + REPLAYED]["all"]["retrieval_acceptance"] > 0
    assert found["sd" + REPLAYED]["all"]["ratio_to"] in (BASELINE + REPLAYED, "ar" + REPLAYED)
    assert report["provenance"]["replay"]["agreement"] == 0.9
    assert run.stdout.count("(replayed)") == 4
    rows = [line for line in outputs["markdown"].read_text().splitlines() if line[:3] == "| s"]
    assert rows
    assert all("(replayed)" in row for row in rows)
    assert "Replayed: every forward is real and timed" in outputs["markdown"].read_text()
    assert "<td>sd (replayed)</td>" in outputs["html"].read_text()


def test_a_text_that_is_not_the_traces_is_a_fault(replays: Replays, shape: str) -> None:
    with LLM(shape, threads=1, wrap=replays) as llm:
        race = Race(llm, [list(PROMPT)], ["ar"], SamplingParams(max_tokens=4), 1)
        (_, run) = race.play()
        assert not_the_trace(race, replays) == []
        cheat = replace(run, completion=replace(run.completion, tokens=(50, 51, 9)))
        race.runs.append(cheat)
        assert not_the_trace(race, replays) == ["ar: its texts are not those of the traces"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replay", "{traces}", "--peers"], "--peers"),
        (["--replay", "{traces}", "--temperature", "0.7"], "--temperature"),
        (["--replay", "{traces}", "--prompts", "suite"], "--prompts"),
        (["--replay", "{traces}", "--agreement", "1.5"], "agreement must be a share"),
        (["--replay", "/no/such"], "there is no trace file or folder"),
        (["--agreement", "0.8"], "give --replay TRACES, too"),
        (["--random-weights", "Qwen3-0.6B"], "give --replay TRACES, whose"),
    ],
)
def test_what_a_replay_cannot_is_a_sentence(
    replays: Replays, arguments: list[str], message: str
) -> None:
    filled = [argument.format(traces=replays.paths[0]) for argument in arguments]
    run = bench("--methods", "ar", *filled)
    assert isinstance(run.exception, ConfigError)
    assert message in str(run.exception)


def test_tokens_beyond_the_vocabulary_are_refused_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "t.jsonl", Trace("a", PROMPT, (9000,), (True,)))
    run = bench("--replay", str(path), "--methods", "ar")
    assert "token 9000 is beyond the vocabulary of 8192 tokens" in str(run.exception)
    full = Replays((write(tmp_path / "u.jsonl", Trace("a", (0, 1), (2,), (True,))),), 3)
    with pytest.raises(ConfigError, match="uses all 3 tokens"):
        full.draft(ToyModel(3))
