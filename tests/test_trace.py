"""What happened, as a timeline: files that come back whole or not at all, and drawings."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import pytest

from doublespec.bench.timeline import draw_timeline
from doublespec.cli.lanes import Drawing, in_ascii, legend
from doublespec.decoding import Step
from doublespec.errors import ConfigError
from doublespec.trace.chrome import chrome_trace
from doublespec.trace.jsonl import as_jsonl, read_jsonl
from doublespec.trace.lanes import Timeline, draft_lane, from_zero, target_lane
from doublespec.trace.ruler import Ruler
from tests.commands import run_command
from tests.timelines import parallel_steps, parallel_timeline


def _serial(new: list[int], guess: list[int], num_drafted: int, begun: float) -> Step:
    return Step(tuple(new), tuple(guess), num_drafted, None, 0.25, 0.5, 0.0, 0.75, begun)


# -- lanes ---------------------------------------------------------------------------------------


def test_a_serial_draft_works_before_the_target_and_retrieval_alone_is_no_draft() -> None:
    steps = [_serial([1, 2, 9], [1, 2, 3], 2, 5.0), _serial([4], [8], 0, 6.0)]
    (drafted,) = draft_lane(steps)
    assert (drafted.begun, drafted.seconds, drafted.tokens) == (5.0, 0.25, (1, 2))
    first, second = target_lane(steps)
    assert first.waits == [(5.0, 5.25)]
    assert first.judging == (5.25, 5.75)
    assert (first.kept_drafted, first.kept_retrieved, first.settled) == (2, 0, 3)
    assert second.waits == []
    assert second.retrieval == (6.0, 6.25)
    assert (first.is_bubble, second.is_bubble) == (False, True)


def test_a_parallel_draft_works_beside_the_target() -> None:
    steps = from_zero(parallel_steps())
    target, draft = target_lane(steps), draft_lane(steps)
    assert len(draft) == sum(len(step.forwards) for step in steps)
    start, stop = target[1].judging
    assert any(start <= event.begun < stop for event in draft)
    assert [event.step for event in target if event.is_bubble] == [3, 9]
    assert target[5].foreseen
    assert target[0].waits[0] == pytest.approx((0.0, 0.4))


def test_time_begins_with_the_first_event() -> None:
    assert from_zero(parallel_steps())[0].begun == 0
    early = parallel_steps()[1].forwards[0]._replace(begun=99.0)
    steps = from_zero([parallel_steps()[0]._replace(forwards=(early,))])
    assert (steps[0].begun, steps[0].forwards[0].begun) == (1.0, 0.0)
    assert from_zero([]) == ()


def test_a_ruler_shortens_what_is_long_and_keeps_the_order() -> None:
    events = target_lane(from_zero(parallel_steps()))
    ruler = Ruler(events, 0.02)
    moments = [moment / 1000 for moment in range(-10, 700)]
    assert [ruler(m) for m in moments] == sorted(ruler(m) for m in moments)
    assert ruler(events[0].judging[0]) == pytest.approx(0.02)
    assert ruler.is_shortened(*events[0].waits[0])
    assert not ruler.is_shortened(*events[1].judging)


# -- our own format ------------------------------------------------------------------------------


def _written(folder: Path, text: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_bytes(text.encode())
    return path


def test_a_trace_comes_back_as_it_was(tmp_path: Path) -> None:
    timeline = replace(parallel_timeline(), texts={7: "a\u2028b\r\n", 8: "\x85"})
    found = read_jsonl(_written(tmp_path, as_jsonl(timeline)))
    assert replace(found, steps=()) == replace(timeline, steps=())
    assert as_jsonl(found) == as_jsonl(timeline)
    for a, b in zip(found.steps, from_zero(timeline.steps), strict=True):
        assert (a.new, a.guess, a.finish, a.foreseen) == (b.new, b.guess, b.finish, b.foreseen)
        assert a.begun == pytest.approx(b.begun, abs=1e-9)
        assert [f.tokens for f in a.forwards] == [f.tokens for f in b.forwards]


def test_an_answer_without_steps_has_a_trace_too(tmp_path: Path) -> None:
    timeline = Timeline("ar", "a target", None, 3, ())
    assert read_jsonl(_written(tmp_path, as_jsonl(timeline))) == timeline


def test_any_damage_is_noticed(tmp_path: Path) -> None:
    text = as_jsonl(parallel_timeline())
    lines = text.splitlines(keepends=True)
    damaged = [text[:-1], text[:-20], "".join(lines[:-1]), "".join([*lines[:4], *lines[5:]])]
    damaged += [text.replace('"num_drafted":4', '"num_drafted":3', 1), text + "\n", lines[0]]
    for wrong in damaged:
        with pytest.raises(ConfigError, match="is damaged"):
            read_jsonl(_written(tmp_path, wrong))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no trace"),
        (b"\xff\xfe\x00", "is no trace"),
        (b'{"id": 1}\n', "is no trace"),
        (b"[1]\n", "is no trace"),
        (b'{"traceEvents": []}\n', "open it in Perfetto"),
        (b'{"format": "doublespec-trace", "version": 3}\n', "version 3"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"num_drafted":4', '"num_drafted":40'),
        ('"seconds":0.0175', '"seconds":NaN'),
        ('"finish":null', '"finish":"soon"'),
        ('"rows":2', '"row":2'),
        ('"event":"step"', '"event":"forward"'),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path: Path, old: str, new: str) -> None:
    """Also where the checksum is right: somebody may have written it by hand."""
    body, _, _ = as_jsonl(parallel_timeline()).replace(old, new, 1).rpartition('{"event":"end"')
    end = json.dumps({"event": "end", "crc32": crc32(body.encode())}, separators=(",", ":"))
    with pytest.raises(ConfigError, match=r"trace\.jsonl, line \d+: this is no event"):
        read_jsonl(_written(tmp_path, body + end + "\n"))


# -- Chrome's format -----------------------------------------------------------------------------


def test_a_chrome_trace_has_two_named_lanes_of_complete_events() -> None:
    timeline = parallel_timeline()
    found = json.loads(json.dumps(chrome_trace(timeline)))
    events = found["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {1: "draft", 2: "target"}
    complete = [event for event in events if event["ph"] == "X"]
    assert all(
        {"name", "ts", "dur", "pid", "tid", "cat", "args"} <= event.keys() for event in complete
    )
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in complete)
    for lane in names:
        mine = sorted((e["ts"], e["ts"] + e["dur"]) for e in complete if e["tid"] == lane)
        assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(mine))
    assert sum(event["cat"] == "bubble" for event in complete) == 2
    judged = [event for event in complete if event["cat"] in ("judge", "bubble")]
    assert len(judged) == len(timeline.steps)
    assert judged[1]["args"]["accepted_retrieved"] == 6
    assert judged[1]["args"]["drafted"][0] == " t21"
    assert judged[5]["args"]["foreseen"] is True
    assert judged[1]["ts"] == pytest.approx((0.417 + 0.0005) * 1e6)


# -- drawings ------------------------------------------------------------------------------------


def _drawn(width: int, timeline: Timeline | None = None) -> str:
    steps = from_zero((timeline or parallel_timeline()).steps)
    lines = list(Drawing(target_lane(steps), draft_lane(steps), width).lines())
    assert all(len(line.plain) <= width for line in lines)
    return "\n".join(line.plain for line in [*lines, *legend(lines)])


def test_the_drawing_shows_what_happened() -> None:
    text = _drawn(120)
    for sign in ("├∅rxx+", "├ddddrrrrrr+", "├xxxxx⊕", "d6r21x3⊕", "3*1", "»", "│417"):
        assert sign in text
    lanes = [line.split()[0] for line in text.splitlines()[:3]]
    assert lanes == ["ms", "draft", "target"]


@pytest.mark.parametrize("width", [20, 60, 80, 120, 400])
def test_the_drawing_fits_any_width(width: int) -> None:
    assert _drawn(width).count("target  ") == _drawn(width).count("draft   ") > 0


def test_a_drawing_of_one_slow_step_and_of_no_time_at_all() -> None:
    one = replace(parallel_timeline(), steps=tuple(parallel_steps()[:1]))
    assert "target" in _drawn(60, one)
    instant = parallel_steps()[0]._replace(guess_seconds=0.0, target_seconds=0.0, wait_seconds=0.0)
    assert "target" in _drawn(60, replace(one, steps=(instant,)))


def test_a_terminal_of_few_characters_gets_ascii() -> None:
    steps = from_zero(parallel_steps())
    lines = list(Drawing(target_lane(steps), draft_lane(steps), 100).lines())
    text = "".join(in_ascii(line).plain for line in [*lines, *legend(lines)])
    assert text.isascii()
    assert "[ddddrrrrrr+" in text


def test_pictures_are_the_same_each_time() -> None:
    timeline = parallel_timeline()
    picture = draw_timeline(timeline, range(12), "svg", "a title")
    assert picture == draw_timeline(timeline, range(12), "svg", "a title")
    assert picture.startswith(b"<?xml")
    assert draw_timeline(timeline, range(2, 5), "png", "a title").startswith(b"\x89PNG")


# -- the commands --------------------------------------------------------------------------------


def test_generate_records_and_trace_draws(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    small = ("generate", "A dog and a cat", "--max-tokens", "8", "--method", "sd")
    assert run_command(*small, "--trace", str(path)).returncode == 0
    outputs = [f"--{kind}={tmp_path / f'a.{kind}'}" for kind in ("svg", "png", "chrome")]
    run = run_command("trace", str(path), "--steps", "3", *outputs)
    assert run.returncode == 0, run.stderr
    assert "sd: bundled, drafted by bundled" in run.stdout
    # one that is short beside the rest shows its end only, or how many tokens it made
    assert re.search(r"draft  .*[├┤\d]", run.stdout)
    assert json.loads((tmp_path / "a.chrome").read_text())["otherData"]["method"] == "sd"
    assert (tmp_path / "a.svg").stat().st_size > 1000
    assert (tmp_path / "a.png").stat().st_size > 1000
    again = run_command(*small, "--trace", str(path))
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run_command(*small, "--trace", str(tmp_path / "a.json")).returncode == 0
    assert json.loads((tmp_path / "a.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trace", "/no/such/file"), "cannot read the trace"),
        (("trace", "README.md"), "is no trace"),
        (("trace", "README.md", "--svg", "/no/such/folder/x.svg"), "there is no folder"),
        (("trace", "README.md", "--chrome", "-"), "name a file instead of -"),
        (("generate", "x", "--trace", "x.txt"), "a trace is written to a file"),
        (("generate", "x", "--trace", "/no/such/folder/x.json"), "there is no folder"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    run = run_command(*arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--start", "13"), ("--start", "0"), ("--steps", "0")]
)
def test_steps_that_are_not_there_are_refused(tmp_path: Path, option: str, value: str) -> None:
    path = _written(tmp_path, as_jsonl(parallel_timeline()))
    run = run_command("trace", str(path), option, value)
    assert run.returncode == 2
    assert option in run.stderr
