"""`doublespec bench-shapes`: the limit by hand, and every part on shapes that are tiny."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from doublespec.bench.forwards import WARM_UPS, decode_plain, hottest_kernels, time_rows
from doublespec.bench.limits import measure_bandwidth, token_bytes
from doublespec.bench.shapes_markdown import as_markdown
from doublespec.bench.static_peer import StaticPeer, peer_times
from doublespec.bench.traces import Trace, write_traces
from doublespec.cli import shape_parts
from doublespec.cli.shape_models import Bench
from doublespec.cli.shape_parts import PARTS
from doublespec.models.checkpoints import find_shape, open_source
from doublespec.models.configs import built_in_config
from doublespec.models.load import load_model
from doublespec.models.outlines import decoder_config
from tests.commands import Outcome, run_command
from tests.test_random_weights import write_shape

CPU = torch.device("cpu")
ANSWER = tuple(50 + i % 9 for i in range(24))
AGREES = tuple(i % 4 != 3 for i in range(24))


@pytest.fixture
def shape(tmp_path: Path) -> str:
    return write_shape(tmp_path / "a.json")


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    for name in ("a", "b"):
        prompt = tuple(range(20, 40 + len(name)))
        made = [Trace(f"{name}{i}", (*prompt, i), ANSWER, AGREES) for i in range(2)]
        write_traces(folder / f"{name}.jsonl", made)
    return folder


def run_shapes(tmp_path: Path, *more: str) -> Outcome:
    shape = tmp_path / "a.json"
    small = ["--contexts", "40,80", "--rows", "1,4", "--tokens", "3", "--repeats", "2"]
    small += ["--buffer-mib", "1", "--kernels", "torch", "--threads", "1"]
    small += ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    return run_command("bench-shapes", "--random-weights", f"{shape},{shape}", *small, *more)


def report(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    return found


# -- the limit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen3-32B", "Qwen3-0.6B", "Llama-3.3-70B"])
def test_a_token_reads_all_weights_but_for_the_embedding_and_its_whole_context(name: str) -> None:
    config = decoder_config(built_in_config(name))
    assert config is not None
    table = config.vocab_size * config.hidden_size
    read = config.num_parameters() - (0 if config.tied else table) + config.hidden_size
    found = token_bytes(config, torch.bfloat16, None, 1000)
    assert found.weights == 2 * read
    assert found.cache == 1000 * 2 * config.num_layers * config.kv_size * 2
    assert found.total == found.weights + found.cache
    rounded = token_bytes(config, torch.bfloat16, "int8", 1000)
    assert found.weights - rounded.weights == config.num_layer_weights()


def test_the_bandwidth_is_the_best_of_several_kernels() -> None:
    found = measure_bandwidth(CPU, 1 << 20)
    assert len(found.reads) > 2
    assert found.read == max(found.reads.values()) > 0
    assert found.copy > 0


# -- forwards --------------------------------------------------------------------------------------


def test_plain_decoding_is_timed_behind_what_the_model_has_not_read_yet(shape: str) -> None:
    model = load_model(open_source(shape), CPU, torch.float32, canonical=True, kernels="torch")
    first, second = decode_plain(model, 40, 5), decode_plain(model, 80, 5)
    assert (first.read, second.read) == (40, 40)
    assert 0 < second.seconds <= second.slowest_seconds < second.prompt_seconds + 1
    times = time_rows(model, 80, (1, 4), 2)
    assert set(times.seconds) == {1, 4}
    assert times.share(1) == 1.0


def test_forwards_that_warm_up_do_not_count(monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    counted = iter([100.0] * WARM_UPS + [3.0, 1.0, 2.0])
    monkeypatch.setattr("doublespec.bench.forwards.forward_seconds", lambda *_: next(counted))
    model = load_model(open_source(shape), CPU, torch.float32, canonical=True, kernels="torch")
    assert time_rows(model, 40, (1,), 3).seconds == {1: 2.0}


def test_kernels_are_watched(shape: str) -> None:
    """On a CPU there are none of a device."""
    model = load_model(open_source(shape), CPU, torch.float32, canonical=True, kernels="torch")
    seconds, kernels = hottest_kernels(model, 40, 2)
    assert seconds > 0
    assert kernels == []


def test_the_peer_has_the_weights_that_our_decoder_has(shape: str) -> None:
    source = open_source(shape)
    ours = load_model(source, CPU, torch.float32, canonical=True, kernels="torch")
    peer = StaticPeer(source, find_shape(shape), CPU, torch.float32)
    text = [1 + i % 7 for i in range(20)]
    with torch.inference_mode():
        theirs = peer.model(torch.tensor([text])).logits[0]
    torch.testing.assert_close(ours.logits(text, 20, 20), theirs, atol=1e-4, rtol=1e-3)
    found = peer_times(peer, 20, 6, compiled=False)
    assert len(peer.answer(20, 6, compiled=False)) == 6
    assert min(found.values()) > 0


# -- the command -----------------------------------------------------------------------------------


def test_every_part_is_measured_and_written_down(tmp_path: Path, shape: str, traces: Path) -> None:
    methods = "ar,sd,double,double-serial"
    more = ["--replay", str(traces), "--methods", methods, "--limit", "4", "--max-tokens", "16"]
    outcome = run_shapes(tmp_path, *more, "--gamma", "3")
    assert outcome.returncode == 0, outcome.stderr
    found = report(tmp_path)
    assert list(found["parts"]) == list(PARTS)
    assert all(part["found"] and not part["stopped"] for part in found["parts"].values())
    for name in ("plain", "canonical", "draft"):
        row = found["parts"][name]["found"]["80 tokens"]
        assert row["share_of_limit"] == pytest.approx(
            row["tokens_per_second"] / row["limit_tokens_per_second"]
        )
    for name in ("agreement 0.82", "as recorded"):
        replayed = found["parts"]["replay"]["found"][name]
        assert replayed["complete"]
        assert not [fault for fault in replayed["faults"] if "baseline" not in fault]
        assert set(replayed["results"]) == {
            f"{method} (replayed)" for method in ["plain", *methods.split(",")]
        }
        assert replayed["results"]["sd (replayed)"]["all"]["mean_accepted_length"] > 1.5
        simulated = found["parts"]["simulate"]["found"][f"{name}, beside as measured"]
        assert set(simulated) == set(methods.split(","))
        assert simulated["ar"]["simulated"]["mean_accepted_length"] == 1.0
    text = (tmp_path / "r.md").read_text()
    assert text == as_markdown(found)
    for title in ("Plain decoding in its fastest", "The draft", "Replayed, agreement 0.82", "Peer"):
        assert f"## {title}" in text
    assert "Not measured" not in text
    assert "replay, as recorded" in outcome.stdout


def _failing(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "one", {"step_seconds": 1.5, "kernels": []}
    raise RuntimeError("CUDA error: out of luck")


def test_a_part_that_fails_keeps_what_it_has_found_and_the_others_go_on(
    tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shape_parts.PARTS, "kernels", _failing)
    outcome = run_shapes(tmp_path, "--parts", "kernels,bandwidth")
    assert outcome.returncode == 1
    assert "kernels: RuntimeError: CUDA error: out of luck" in outcome.stderr
    parts = report(tmp_path)["parts"]
    assert parts["kernels"]["found"] == {"one": {"step_seconds": 1.5, "kernels": []}}
    assert parts["bandwidth"]["found"]["read"]["bytes_per_second"] > 0


def test_parts_are_added_to_a_report(tmp_path: Path, shape: str) -> None:
    assert run_shapes(tmp_path, "--parts", "bandwidth").returncode == 0
    first = report(tmp_path)["parts"]["bandwidth"]
    refused = run_shapes(tmp_path, "--parts", "load")
    assert refused.returncode == 2
    assert "is there already" in refused.stderr
    assert run_shapes(tmp_path, "--parts", "load", "--add").returncode == 0
    assert list(report(tmp_path)["parts"]) == ["bandwidth", "load"]
    assert report(tmp_path)["parts"]["bandwidth"] == first
    (tmp_path / "r.json").write_text("[]")
    assert "no report of bench-shapes" in run_shapes(tmp_path, "--add").stderr


def test_a_part_that_takes_too_long_begins_nothing_more(tmp_path: Path, shape: str) -> None:
    outcome = run_shapes(tmp_path, "--parts", "plain", "--part-seconds", "0")
    assert outcome.returncode == 1
    part = report(tmp_path)["parts"]["plain"]
    assert list(part["found"]) == ["40 tokens"]
    assert part["stopped"].startswith("stopped after")
    assert "- plain: stopped after" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--parts", "plane"], "parts must be of load, memory"),
        (["--rows", "1,x"], "rows must be whole numbers"),
        (["--contexts", "0"], "contexts must be whole numbers"),
        (["--agreements", "0.8,most"], "agreements must be shares"),
        (["--tokens", "0"], "tokens must be a whole number"),
        (["--methods", "fast"], "fast"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(
    tmp_path: Path, shape: str, wrong: list[str], message: str
) -> None:
    outcome = run_shapes(tmp_path, *wrong)
    assert outcome.returncode == 2
    assert message in " ".join(outcome.stderr.split())


@pytest.mark.parametrize(
    ("part", "message"),
    [("replay", "no traces were given"), ("simulate", "cannot read the profile")],
)
def test_a_part_that_lacks_something_says_what(
    tmp_path: Path, shape: str, part: str, message: str
) -> None:
    outcome = run_shapes(tmp_path, "--parts", part)
    assert outcome.returncode == 1
    assert message in report(tmp_path)["parts"][part]["stopped"]
