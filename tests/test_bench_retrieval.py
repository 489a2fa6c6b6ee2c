"""What retrieval is worth, on traces small enough to work out by hand; and what may not count."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from doublespec.bench.questions import Item, read_questions
from doublespec.bench.retrieval import (
    OthersSeen,
    Trace,
    Worth,
    not_stored,
    peers,
    read_traces,
    replay,
)
from doublespec.bench.stored import is_stored, without_stored
from doublespec.cli import app
from doublespec.errors import ConfigError
from doublespec.llm import LLM
from doublespec.retrieval.base import Match
from doublespec.retrieval.building import Source, build
from doublespec.retrieval.datastore import CONTEXT, Datastore, fingerprint
from doublespec.sampling import SamplingParams
from doublespec.tokens import Tokens

NEW = list(range(1000, 1080))  # an answer that nothing has said before


class Oracle:
    """Shows a wrong token, or the next three right ones and a wrong one."""

    def __init__(self, text: list[int]) -> None:
        self._text = text

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        run = (*self._text[len(tokens) : len(tokens) + 3], 0)[:limit]
        return Match(run, 1, "oracle") if len(tokens) % 2 == 0 else None


def stored(path: Path, documents: Sequence[Tokens], llm: LLM | None = None) -> Datastore:
    vocabulary = fingerprint(llm.codec.vocabulary) if llm else "v"
    build(path, [np.array(d, np.uint32) for d in documents], Source("made up", vocabulary, 9000))
    return Datastore(path)


def write_traces(folder: Path, traces: Sequence[Trace]) -> Path:
    lines = [json.dumps({"prompt": t.prompt, "answer": t.answer}) for t in traces]
    with gzip.open(folder / "made.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    return folder


def test_the_worth_of_runs_by_hand() -> None:
    """From 2: three right and a wrong one are shown, 4 settled (to 6); again (to 10). There two
    tokens are left, so that one may be shown, which is right: both settle. 8 + 2 tokens, 3 steps,
    4 + 4 + 1 shown."""
    trace = Trace([1, 2], list(range(10, 20)))
    text = [*trace.prompt, *trace.answer]
    assert replay([trace], lambda number: Oracle(text)) == Worth(10 / 3, 9 / 10)


def test_nothing_found_is_one_token_a_step_and_no_rows() -> None:
    assert replay([Trace([1], NEW)], peers([], [])["context"]) == Worth(1.0, 0.0)
    assert replay([], peers([], [])["context"]) == Worth(0.0, 0.0)


def test_history_has_seen_all_other_answers_and_never_its_own() -> None:
    alone = [Trace([1], NEW), Trace([2], list(range(2000, 2080)))]
    assert replay(alone, OthersSeen(alone)) == Worth(1.0, 0.0), "its own answer would be found"
    twice = [Trace([1], NEW), Trace([2], NEW)]
    assert replay(twice, OthersSeen(twice)).tokens_per_step > 5
    assert replay(twice, peers(twice, [])["context"]) == Worth(1.0, 0.0)


def test_a_stored_answer_is_left_out(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", [[5, 6, *NEW[:CONTEXT], 7], NEW[CONTEXT + 5 :]])
    inside, outside = Trace([1], NEW), Trace([1], NEW[CONTEXT - 20 : CONTEXT + 20])
    assert not_stored([inside, outside], [store]) == [outside]
    assert is_stored(NEW[:CONTEXT], [store])
    assert not is_stored(NEW[: CONTEXT - 1], [store]), "so short a text proves nothing"


def test_a_datastore_adds_what_it_knows(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", [[5, 6, *NEW[:30], 7]])
    indexes = peers([], [store])
    traces = [Trace([1], NEW)]
    assert replay(traces, indexes["context + datastore"]).tokens_per_step > 1.2
    assert replay(traces, indexes["context"]).tokens_per_step == 1.0


def test_the_command_prints_the_object_of_the_issue(tmp_path: Path) -> None:
    traces = [Trace([1, 2, 3], [*NEW[:20], *NEW[:20]]), Trace([4], NEW[40:])]
    folder = write_traces(tmp_path, traces)
    run = CliRunner().invoke(
        app, ["bench-retrieval", "--traces", str(folder), "--limit", "2", "--no-cost", "--json"]
    )
    report = json.loads(run.stdout)
    assert report.keys() == {"worth", "cost"}
    assert report["worth"].keys() == {"made"}
    assert report["worth"]["made"].keys() >= {"scan", "context", "context + history"}
    for figures in report["worth"]["made"].values():
        assert figures.keys() == {"tokens_per_step", "rows_per_token"}
    by_name = report["worth"]["made"]
    assert by_name["context"]["tokens_per_step"] >= by_name["scan"]["tokens_per_step"] > 1


def test_the_cost_of_a_store_is_measured_on_the_shortest_text(tmp_path: Path) -> None:
    folder = write_traces(tmp_path, [Trace([1, 2], [3, 4])])
    stored(tmp_path / "a.store", [NEW])
    given = ["--traces", str(folder), "--datastore", str(tmp_path / "a.store"), "--json"]
    run = CliRunner().invoke(app, ["bench-retrieval", *given])
    assert json.loads(run.stdout)["cost"]["datastore a.store"]["tokens"] == len(NEW)


def test_the_command_says_how_many_answers_it_left_out(tmp_path: Path) -> None:
    folder = write_traces(tmp_path, [Trace([1, 2, 3], NEW), Trace([4], list(range(50)))])
    stored(tmp_path / "a.store", [NEW])
    store = ["--datastore", str(tmp_path / "a.store")]
    run = CliRunner().invoke(
        app, ["bench-retrieval", "--traces", str(folder), *store, "--no-cost", "--json"]
    )
    assert "left out: 1 of 2 answers of made" in run.stderr
    assert json.loads(run.stdout)["worth"]["made"]["context"]["tokens_per_step"] > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON in line 1"), ('{"prompt": [1]}', "each line needs prompt and answer")],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content + "\n")
    with pytest.raises(ConfigError, match=message):
        read_traces(tmp_path, None, None)


def test_a_folder_without_traces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \.jsonl"):
        read_traces(tmp_path, None, None)


def test_two_files_of_one_name_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    bad = write_traces(tmp_path, [Trace([1], NEW)]) / "bad.jsonl.gz"
    bad.write_bytes(gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20)
    with pytest.raises(ConfigError, match=r"cannot read the trace file .*bad"):
        read_traces(tmp_path, None, None)
    bad.rename(tmp_path / "made.jsonl")
    with pytest.raises(ConfigError, match="two trace files have the name 'made'"):
        read_traces(tmp_path, None, None)


# -- doublespec bench ----------------------------------------------------------------------------

PARAMS = SamplingParams(max_tokens=60)


def test_bench_leaves_out_prompts_whose_answer_or_reference_is_stored(
    bundled: LLM, tmp_path: Path
) -> None:
    csv = "Turn this CSV into a JSON list of objects.\n\nname,city\nAnna,Oslo\nTom,Paris\nLena,Rome"
    reference = "A reference of some length. " * 12
    asked = [csv, "Sort these words: pear, fig.", "What is a reference?"]
    items = [
        Item(str(i), "made", ({"role": "user", "content": text},), (reference,) * (i == 2))
        for i, text in enumerate(asked)
    ]
    answer = bundled.chat(items[0].messages, PARAMS, method="ar").tokens
    assert len(answer) > CONTEXT
    store = stored(tmp_path / "s", [answer, bundled.codec.encode(reference)], bundled)
    assert [item.id for item in without_stored(bundled, items, [store], PARAMS)] == ["1"]


def test_the_bench_command_refuses_prompts_that_are_all_stored(
    bundled: LLM, tmp_path: Path
) -> None:
    reference = "one two three four five six seven eight nine ten " * 6
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"turns": ["Count."], "reference": [reference]}, {"turns": ["Say yes."]}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    assert read_questions([str(prompts)], None)[0].references == (reference,)
    stored(tmp_path / "s", [bundled.codec.encode(reference)], bundled)
    command = ["bench", "--prompts", str(prompts), "--datastore", str(tmp_path / "s")]
    command += ["--threads", "1", "--repeat", "1", "--max-tokens", "6", "--methods", "lookup"]
    refused = CliRunner().invoke(app, [*command, "--limit", "1"])
    assert isinstance(refused.exception, ConfigError)
    assert "prove nothing" in str(refused.exception)
    run = CliRunner().invoke(app, [*command, "--json", "-"])
    assert "left out: 1 of 2 prompts" in run.stderr
    provenance = json.loads(run.stdout)["provenance"]
    assert (provenance["datastores"], provenance["left_out"]) == (["s"], 1)
    assert provenance["prompts"] == 1
