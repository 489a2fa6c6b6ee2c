"""The benchmark: its figures by hand, and that no cheat passes unseen."""

import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from doublespec.bench import race
from doublespec.bench.markdown import as_markdown
from doublespec.bench.outputs import check_output, replace_file
from doublespec.bench.peers import PEERS, check_peers, make_peers
from doublespec.bench.questions import Item, as_items, read_questions
from doublespec.bench.race import BASELINE, Race, Run
from doublespec.bench.record import record_traces
from doublespec.bench.report import bench_page, sweep_page
from doublespec.bench.results import faults, results
from doublespec.bench.runs import RunLog, read_runs
from doublespec.cli import app
from doublespec.cli.bench_table import table
from doublespec.decoding import Step, decode_plain
from doublespec.errors import ConfigError
from doublespec.llm import LLM, Completion
from doublespec.methods import METHODS, Parts
from doublespec.sampling import Request, SamplingParams
from doublespec.stats import summarise
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens
from tests.commands import Outcome, run_command
from tests.timelines import parallel_steps

END = frozenset({1})
ITEMS = [Item(str(i), "even" if i % 2 == 0 else "odd", ({"role": "user", "content": "x"},))
         for i in range(4)]  # fmt: skip
CATEGORIES = [item.category for item in ITEMS]


def _step(new: Tokens, seconds: float, guess: Tokens = ()) -> Step:
    return Step(tuple(new), tuple(guess), len(guess), None, 0.0, seconds, 0.0, seconds)


def _run(method: str, prompt: int, steps: Sequence[Step], round_number: int = 0) -> Run:
    tokens = tuple(token for step in steps for token in step.new)
    completion = Completion(f"text {tokens}", tokens, 3, None, summarise(steps))
    return Run(method, prompt, round_number, completion, tuple(steps))


def _runs(fast: float = 0.1, plain: float = 0.1) -> list[Run]:
    """Four prompts of eight tokens; "double" settles four tokens a step."""
    runs = []
    for prompt in range(4):
        tokens = [10 + prompt, *range(30, 37)]
        one_by_one = [[token] for token in tokens]
        runs.append(_run(BASELINE, prompt, [_step(new, plain) for new in one_by_one]))
        runs.append(_run("ar", prompt, [_step(new, 0.1) for new in one_by_one]))
        halves = [tokens[:4], tokens[4:]]
        runs.append(_run("double", prompt, [_step(h, fast, [*h[:3], 99]) for h in halves]))
    return runs


def test_the_time_goes_to_the_target_the_draft_and_retrieval() -> None:
    step = _step([1], 1.0)._replace(
        guess_seconds=0.3, retrieval_seconds=0.1, target_seconds=0.6, wait_seconds=0.05
    )
    runs = [replace(run, steps=(step,)) if run.method == "double" else run for run in _runs()]
    time = results(runs, CATEGORIES, {})["double"]["all"]["time"]
    shares = {"target": 0.6, "draft": 0.2, "retrieval": 0.1, "wait": 0.05, "rest": 0.05}
    assert time == pytest.approx(shares)


def test_ratios_are_those_of_times_and_come_by_category() -> None:
    found = results(_runs(), CATEGORIES, {})
    assert found["double"]["all"]["ratio"] == pytest.approx(4)
    assert found["double"]["all"]["ratio_interval"] == pytest.approx([4, 4])
    assert found["double"]["odd"]["texts"] == 2
    assert found["double"]["all"]["mean_accepted_length"] == 4
    assert found["double"]["all"]["acceptance_by_position"][:5] == [1, 1, 1, 0, None]
    assert found[BASELINE]["all"]["ratio"] == pytest.approx(1)


def test_the_interval_knows_how_unequal_prompts_are() -> None:
    runs = [r if r.prompt or r.method != "double" else _slower(r, 10) for r in _runs()]
    low, high = results(runs, CATEGORIES, {})["double"]["all"]["ratio_interval"]
    assert low < results(runs, CATEGORIES, {})["double"]["all"]["ratio"] < high
    assert high - low > 1


def _slower(run: Run, factor: float) -> Run:
    return _run(run.method, run.prompt, [_step(s.new, s.seconds * factor) for s in run.steps])


def test_honest_runs_have_no_fault() -> None:
    assert faults(_runs(), (), END, 8) == []


def test_a_method_that_changes_a_token_is_caught() -> None:
    runs = _runs()
    runs[-1] = _run("double", 3, [_step([13, 30, 31, 77], 0.1), _step(range(33, 37), 0.1)])
    assert faults(runs, (), END, 8) == ["double: 1 of its texts differ from plain decoding's"]
    assert results(runs, CATEGORIES, {})["double"]["all"]["identical"] == 3


def test_a_method_that_runs_past_the_end_is_caught() -> None:
    """Text after the end token repeats itself, and makes retrieval look wonderful."""
    runs = [*_runs(), _run("peer", 0, [_step([5, 1, 5, 5], 0.1)])]
    assert "after the end token" in " ".join(faults(runs, ["peer"], END, 8))
    assert "double: 4 of its answers" in " ".join(faults(_runs(), (), END, 7))


def test_a_baseline_that_is_not_in_its_fastest_shape_is_caught_and_does_not_flatter() -> None:
    runs = _runs(plain=0.2)
    assert "not in its fastest shape" in " ".join(faults(runs, (), END, 8))
    assert results(runs, CATEGORIES, {})["double"]["all"]["ratio"] == pytest.approx(4)


def test_a_baseline_that_speculates_is_caught() -> None:
    runs = [_run(BASELINE, 0, [_step([1, 2], 0.1, [1])]), *_runs()[1:]]
    assert "not plain decoding" in " ".join(faults(runs, (), END, 8))


def test_a_peer_is_compared_with_its_own_plain_decoding() -> None:
    mine = [_run("transformers", p, [_step([50 + p], 0.1)]) for p in range(4)]
    other = [_run("transformers-lookup", p, [_step([50], 0.1)]) for p in range(4)]
    own = {"transformers": "transformers", "transformers-lookup": "transformers"}
    runs = [*_runs(), *mine, *other]
    found = results(runs, CATEGORIES, own)
    assert found["transformers"]["all"]["identical"] == 4
    assert found["transformers-lookup"]["all"]["identical"] == 1
    assert faults(runs, own, END, 8) == []


def test_what_a_parallel_draft_did_is_reported_and_kept(tmp_path: Path) -> None:
    runs = [*_runs(), _run("psd", 0, parallel_steps())]
    row = results(runs, CATEGORIES, {})["psd"]["all"]
    assert row["bubbles"] == pytest.approx(2 / 11)
    assert row["foreseen"] == pytest.approx(3 / 5)
    assert 0 < row["draft_idle"] < 1
    assert "| psd | 77% | 70% | 18% | 74% | 60% |" in as_markdown(_report(runs))
    log = RunLog(tmp_path / "runs.jsonl", {"seed": 1})
    log.keep(runs[-1])
    (kept,) = RunLog(tmp_path / "runs.jsonl", {"seed": 1}).runs
    assert kept.steps == runs[-1].steps


def test_runs_are_kept_and_resumed_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    log = RunLog(path, {"seed": 1})
    for run in _runs():
        log.keep(run)
    with path.open("a") as file:
        file.write('{"method": "dou')
    assert RunLog(path, {"seed": 1}).runs == _runs()
    with pytest.raises(ConfigError, match="another benchmark"):
        RunLog(path, {"seed": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": [1], "answer": [2]}\n', "is no file of runs; give one that"),
        ("[1]\n[2]\n", "is no file of runs; give one that"),
        ("words\n", "is no file of runs; give one that"),
        ("", "holds no runs; measure them with"),
        ('{"benchmark": {}}\n', "holds no runs; measure them with"),
    ],
)
def test_what_holds_no_runs_is_not_validated(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "runs.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_runs(tmp_path / "runs.jsonl")


def _report(runs: list[Run]) -> dict[str, object]:
    origin = {
        "cpu": "a CPU", "device": "cpu", "cores": 2, "threads": 1, "dtype": "bfloat16",
        "revision": "abc", "versions": {"torch": "2"}, "prompts": 4, "rounds": 1,
        "sources": "suite",
        "command": "doublespec bench", "complete": False,
        "params": {"max_tokens": 8, "temperature": 0.0},
    }  # fmt: skip
    return {
        "provenance": origin,
        "results": results(runs, CATEGORIES, {}),
        "faults": ["a fault"],
        "failures": {"peer": "it broke"},
    }


def test_the_document_holds_figures_faults_and_failures() -> None:
    text = as_markdown(_report(_runs()))
    assert "| double | 40.0 | 4.00 (4.00-4.00) | 4.00 |" in text
    for part in ("4 prompts of suite", "a fault", "it broke", "stopped before its end", "torch 2"):
        assert part in text
    assert text == as_markdown(_report(_runs()))
    assert "a CPU, cpu, 2 cores" in text
    report = _report(_runs())
    report["provenance"]["device"] = "a CPU"
    assert "\na CPU, 2 cores" in as_markdown(report)


def test_pages_are_self_contained_and_the_same_each_time() -> None:
    runs = _runs()
    page = bench_page(_report(runs), runs, ITEMS)
    assert page.count("<svg") == 6
    assert "src=" not in page
    assert "<link" not in page
    assert page == bench_page(_report(runs), runs, ITEMS)
    short = bench_page(_report(runs[:1]), runs[:1], ITEMS)  # stopped after its first run
    assert "Steps in the same time" in page
    assert "Steps in the same time" not in short
    assert "Breaking the ceiling" in sweep_page("c", [2, 4], {"psd": [1.9, 3.6]})


def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no Chromium")
    runs = _runs()
    (tmp_path / "page.html").write_text(bench_page(_report(runs), runs, ITEMS))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,2600"]
    target = [f"--screenshot={tmp_path / 'shot.png'}", f"file://{tmp_path / 'page.html'}"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", *target]
    subprocess.run(command, env=environment, capture_output=True, timeout=120, check=True)
    assert (tmp_path / "shot.png").stat().st_size > 40_000  # an empty page has under 10,000


def test_prompts_in_both_schemas_and_a_wrong_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question_id": 7, "category": "a", "turns": ["x", "y"]}\n{"turns": ["z"]}\n')
    first, second = read_questions([str(path)], None)
    assert (first.id, first.category, first.turns) == ("7", "a", ("x", "y"))
    assert second.category == "p"
    path.write_text('{"turns": ["z"]}\n{"turns": []}\n')
    with pytest.raises(ConfigError, match=r"p\.jsonl, line 2: turns must be"):
        read_questions([str(path)], None)


def test_a_prompt_may_hold_line_ends_that_are_not_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"turns": ["one\u2028two\x85three"]}\n', encoding="utf-8")
    (question,) = read_questions([str(tmp_path / "p.jsonl")], None)
    assert question.turns == ("one\u2028two\x85three",)


def test_the_suite_is_balanced_and_a_limit_takes_from_every_category() -> None:
    questions = read_questions(["suite"], None)
    assert len(questions) == 60
    assert len({question.turns for question in questions}) == 60
    assert len({question.category for question in read_questions(["suite"], 8)}) == 8


def test_outputs_are_checked_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    check_output(path, force=False)
    path.write_text("mine")
    check_output(path, force=True)
    with pytest.raises(ConfigError, match="--force"):
        check_output(path, force=False)
    with pytest.raises(ConfigError, match="there is no folder"):
        check_output(tmp_path / "no" / "x.json", force=False)


def test_a_ratio_that_is_not_known_is_not_shown_as_a_number() -> None:
    runs = [_run(BASELINE, 0, [_step([1], 0.1)]), _run("sd", 1, [_step([1], 0.1)])]
    report = _report(runs)
    cells = [str(cell) for column in table(report).columns for cell in column.cells]
    assert cells.count("-") == 2
    assert "0.00-0.00" not in cells


def test_a_peer_that_cannot_be_loaded_is_a_failure_to_report(
    bundled: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ValueError("unknown model type")

    monkeypatch.setattr("doublespec.bench.peers._load", refuse)
    made = make_peers(["transformers"], bundled)
    items = as_items(bundled, read_questions(["suite"], 1), SamplingParams(max_tokens=2))
    race = Race(
        bundled, _encoded(bundled, items[:1]), ["ar"], SamplingParams(max_tokens=2), 1, made
    )
    assert len(list(race.play())) == 2
    assert race.failures == {"transformers": "ValueError: unknown model type"}


def test_a_file_that_cannot_be_written_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(ConfigError, match=r"cannot write .*x\.json: Is a directory"):
        replace_file(tmp_path / "x.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_an_unknown_peer_is_answered_with_the_list() -> None:
    with pytest.raises(ConfigError, match="transformers-assisted"):
        check_peers(["magic"])


def _encoded(llm: LLM, items: Sequence[Item]) -> list[list[int]]:
    return [llm.codec.encode_chat(item.messages) for item in items]


class _Broken:
    def answer(self, tokens: Tokens, request: Request, stop: StopRule) -> list[Step]:
        raise RuntimeError("no such kernel")


def test_peers_answer_like_us_and_a_peer_that_fails_is_reported(bundled: LLM) -> None:
    """A peer that gives up its first forward, or never stops, would not give these texts."""
    params = SamplingParams(max_tokens=12)
    questions = read_questions(["suite"], 2)
    messages = _encoded(bundled, as_items(bundled, questions, params))
    peers = {**make_peers(list(PEERS), bundled), "broken": _Broken()}
    race = Race(bundled, messages, ["ar"], params, 1, peers)
    list(race.play())
    assert race.failures == {"broken": "RuntimeError: no such kernel"}
    assert race.is_complete
    found = results(race.runs, ["a"] * len(messages), dict.fromkeys(PEERS, "transformers"))
    for name in PEERS:
        assert found[name]["all"]["texts"] == len(messages)
        assert found[name]["all"]["tokens"] == found["transformers"]["all"]["tokens"]
    assert found["transformers-assisted"]["all"]["mean_accepted_length"] > 1
    found_faults = faults(race.runs, peers, bundled.codec.end_ids, 12)
    assert [f for f in found_faults if "fastest shape" not in f] == []  # that depends on the load


class _Slow:
    """Has taken five seconds for each of two tokens, by its own account."""

    def answer(self, tokens: Tokens, request: Request, stop: StopRule) -> list[Step]:
        return [_step([5], 5.0), _step([6], 5.0)._replace(finish="length")]


def test_a_peers_steps_take_what_they_took(bundled: LLM) -> None:
    """They are read after its answer, in no time."""
    race = Race(bundled, [[5, 6, 7]], [], SamplingParams(max_tokens=2), 1, {"slow": _Slow()})
    (run,) = [run for run in race.play() if run.method == "slow"]
    assert run.completion.stats.seconds == pytest.approx(10.0, rel=0.01)


class _Watching:
    """Looks at how much the collector of garbage has to look at."""

    def answer(self, tokens: Tokens, request: Request, stop: StopRule) -> list[Step]:
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 10_000
        return [_step([5], 1.0)._replace(finish="length")]


def test_what_is_loaded_is_not_looked_through_in_an_answer(bundled: LLM) -> None:
    race = Race(bundled, [[5, 6]], ["ar"], SamplingParams(max_tokens=2), 2, {"w": _Watching()})
    assert len(list(race.play())) == 6
    assert race.failures == {}
    assert gc.get_freeze_count() == 0


def test_a_race_goes_on_from_earlier_runs_and_later_turns_follow_plain_answers(
    bundled: LLM,
) -> None:
    params = SamplingParams(max_tokens=8)
    question = replace(read_questions(["suite"], 1)[0], turns=("Hello!", "And now?"))
    items = as_items(bundled, [question], params)
    assert [message["role"] for message in items[1].messages] == ["user", "assistant", "user"]
    race = Race(bundled, _encoded(bundled, items), ["ar"], params, 2)
    first = next(race.play())
    assert not race.is_complete
    assert first not in list(race.play())
    assert len(race.runs) == len(set(race.turns())) == 8


def test_recorded_answers_say_where_the_draft_agrees(bundled: LLM) -> None:
    params = SamplingParams(max_tokens=24)
    question = replace(read_questions(["suite"], 1)[0], turns=("Sort: pear, fig, apple.",))
    items = as_items(bundled, [question], params)
    race = Race(bundled, _encoded(bundled, items), ["ar", "sd"], params, 1)
    runs = list(race.play())
    (trace,) = record_traces(bundled, runs, race.prompts, items, params)
    answer = next(run for run in runs if run.method == "ar").completion
    assert trace.answer == answer.tokens
    place, settled, missed = 0, 0, 0
    for step in next(run for run in runs if run.method == "sd").steps:
        judged = trace.agrees[place : place + len(step.guess)]
        kept = min(step.num_accepted, len(judged))
        assert all(judged[:kept])
        assert kept == len(judged) or not judged[kept]
        settled, missed = settled + kept, missed + (kept < len(judged))
        place += len(step.new)
    assert place == len(answer.tokens)
    assert settled > 3 and missed > 3  # both were judged


# -- the command ---------------------------------------------------------------------------------


def _cheat(change: Callable[[Step, int], Step]) -> Callable[..., Iterator[Step]]:
    """Plain decoding whose Steps were tampered with."""

    def method(parts: Parts, prompt: Tokens, request: Request, stop: StopRule) -> Iterator[Step]:
        for number, step in enumerate(METHODS["ar"](parts, prompt, request, stop)):
            yield change(step, number)

    return method


def _other_token(step: Step, number: int) -> Step:
    return step._replace(new=(step.new[0] ^ 1,)) if number == 3 else step


def _goes_on(step: Step, number: int) -> Step:
    return step._replace(new=(*step.new, *step.new)) if step.finish else step


@pytest.mark.parametrize(
    ("change", "message"),
    [(_other_token, "differ from plain decoding"), (_goes_on, "go on after the end token")],
)
def test_bench_fails_loudly_when_a_method_cheats(
    change: Callable[[Step, int], Step], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "lookup", _cheat(change))
    run = _in_process("--methods", "lookup", "--max-tokens", "6")
    assert run.exit_code == 1
    assert "NOT TO BE BELIEVED: lookup:" in run.stderr
    assert message in " ".join(run.stderr.split())


def test_bench_fails_loudly_when_the_baseline_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> Iterator[Step]:
        for step in decode_plain(*arguments):
            sleep(9 * step.seconds)
            yield step

    monkeypatch.setattr(race, "decode_plain", slow)
    run = _in_process("--methods", "ar", "--max-tokens", "6")
    assert run.exit_code == 1
    assert "not in its fastest shape" in " ".join(run.stderr.split())


def test_ctrl_c_reports_what_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play = Race.play

    def stopped(self: Race) -> Iterator[Run]:
        yield from islice(play(self), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(Race, "play", stopped)
    path = tmp_path / "report.json"
    run = _in_process("--methods", "lookup", "--max-tokens", "6", "--json", str(path))
    report = json.loads(path.read_text())
    assert run.exit_code == 130 or report["faults"]
    assert report["provenance"]["complete"] is False
    assert report["results"]["lookup"]["all"]["texts"] == 1
    assert "stopped after 4 of 6 runs" in run.stderr


def _in_process(*arguments: str) -> Result:
    """The command where tests can reach into it."""
    return CliRunner().invoke(app, ["bench", "--limit", "1", "--threads", "1", *arguments])


def _command(*arguments: str) -> Outcome:
    return run_command("bench", *arguments)


def test_the_command_writes_all_its_files_and_resumes(tmp_path: Path) -> None:
    outputs = ["--html", str(tmp_path / "a.html"), "--markdown", str(tmp_path / "a.md")]
    outputs += ["--record", str(tmp_path / "a.jsonl.gz"), "--resume", str(tmp_path / "runs.jsonl")]
    small = ("--limit", "1", "--repeat", "1", "--max-tokens", "8", "--methods", "lookup")
    first = _command(*small, "--threads", "1", "--json", "-", *outputs)
    report = json.loads(first.stdout)
    assert first.returncode == (1 if report["faults"] else 0)
    assert report["results"]["lookup"]["all"]["identical"] == 1
    assert report["provenance"]["models"][0]["sha256"]
    again = _command(*small, "--threads", "1", "--json", "-", *outputs, "--force")
    assert json.loads(again.stdout)["results"] == report["results"]
    other = _command(*small, "--threads", "1", "--gamma", "2", *outputs, "--force")
    assert "holds the runs of another benchmark" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "magic"), "method must be one of"),
        (("--peer-names", "magic"), "peers must be of transformers"),
        (("--methods", "sd", "--draft", "none"), "needs a draft model"),
        (("--prompts", "/no/such/file"), "cannot read the prompt file"),
        (("--html", "/no/such/folder/x.html"), "there is no folder"),
        (("--peers", "--quantize", "int8"), "peers read the weights as they are"),
        (("--html", "x", "--json", "x"), "cannot both be written to x"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    run = _command(*arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
