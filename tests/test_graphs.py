"""Recorded steps give the bits of the forwards they stand for, or are not used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from doublespec.bench.provenance import model_provenance
from doublespec.llm import LLM
from doublespec.models import graphs, load
from doublespec.models.base import Branch
from doublespec.models.checkpoints import open_checkpoint
from doublespec.models.decoder import Decoder
from doublespec.models.graphs import Bucket, GraphWarning, Inputs, Recording, fill, proven
from doublespec.models.kernels import KernelProbe
from doublespec.models.memory import FIRST_CAPACITY
from doublespec.models.shapes import FASTEST, STRICT, Block, Shapes
from tests.checkpoints import write_family
from tests.test_decoder import CPU, CROSSING, DTYPES, HEAVY, branching_calls, calls, random_text


class Recorder(TorchDispatchMode):
    """Notes what is done to which tensors. To bring values from the host, which a device cannot
    record, is an error. (To look at one is, too, on the "meta" device: see the end.)"""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        assert func is not torch.ops.aten.lift_fresh.default
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> dict[int, Tensor]:
        """Does the same again to the same tensors; the new results by the old ones' ids."""
        made: dict[int, Tensor] = {}

        def new(value: object) -> object:
            return made.get(id(value), value)

        for func, args, kwargs, old in self.calls:
            result = func(*tree_map(new, args), **tree_map(new, kwargs))
            made.update(zip(map(id, tree_leaves(old)), tree_leaves(result), strict=True))
        return made


@dataclass
class FakeCapture:
    """What CUDA does, on the host: a replay runs no line of the step, it does again what was done,
    to the tensors that were there then. `spoil` changes what it leaves."""

    spoil: Callable[[Tensor], object] = lambda output: None
    recorded: int = 0
    replayed: int = 0

    def __call__(self, step: Callable[[], Tensor], *, is_warm: bool = False) -> Recording:
        self.recorded += 1
        with Recorder() as recorder:
            result = step()
        output = torch.full_like(result, float("nan"))

        def replay() -> None:
            self.replayed += 1
            self.spoil(output.copy_(recorder.replay()[id(result)]))

        return Recording(replay, output)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are recorded when their bucket is first met."""
    monkeypatch.setattr(graphs, "MEETINGS", 1)


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = write_family(tmp_path_factory.mktemp("graphs"), "qwen3")
    return Decoder.load(open_checkpoint(str(folder)), CPU, request.param)


def recording(decoder: Decoder, capture: graphs.Capture) -> Decoder:
    """The same weights and shapes, with steps that are recorded."""
    parts = decoder.config, decoder._weights, decoder.shapes
    return Decoder(*parts, decoder.max_length, capture)


# -- the bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True], ids=["found", "strict"])
@HEAVY
@given(requests=calls())
def test_replayed_steps_have_the_bits_of_computed_ones(
    plain: Decoder, strict: bool, at_once: None, requests: list[tuple[list[int], int, int]]
) -> None:
    """Over texts that grow, are cut back after wrong guesses, and cross borders of key lengths."""
    computed = plain.with_shapes(STRICT if strict else plain.shapes)
    replayed = recording(computed, FakeCapture())
    for tokens, last, prompt_length in requests:
        for stop in range(max(last, len(tokens) - 3), len(tokens) + 1):
            wanted = computed.logits(tokens[:stop], last, min(prompt_length, stop))
            found = replayed.logits(tokens[:stop], last, min(prompt_length, stop))
            assert torch.equal(found, wanted)


def test_an_answer_is_replayed_but_for_what_no_bucket_holds(plain: Decoder, at_once: None) -> None:
    """Token by token over a border of key lengths: one recording for each of the two lengths (or a
    few more, where a kernel knows other lengths), everything else is a replay."""
    capture = FakeCapture()
    replayed, computed = recording(plain, capture), plain.with_shapes(plain.shapes)
    tokens = random_text(CROSSING)
    for stop in range(200, len(tokens) + 1):
        wanted = computed.logits(tokens[:stop], 1, 200)
        assert torch.equal(replayed.logits(tokens[:stop], 1, 200), wanted)
    steps, step = len(tokens) - 200, plain.shapes.key_step
    assert step is not None
    lengths = len(tokens) // step - 200 // step + 1
    assert capture.recorded == lengths
    assert capture.replayed == steps


@HEAVY
@given(requests=branching_calls())
def test_replayed_branches_are_texts_of_their_own(
    plain: Decoder, at_once: None, requests: list[tuple[list[int], int, list[Branch]]]
) -> None:
    capture = FakeCapture()
    computed, replayed = plain.fastest(), recording(plain.fastest(), capture)
    close = (
        {"atol": 1e-4, "rtol": 0.0} if plain.dtype is torch.float32 else {"atol": 0.2, "rtol": 0.1}
    )
    for tokens, last, branches in requests:
        for _ in range(2):
            wanted = computed.branch_logits(tokens, last, branches, 1)
            found = replayed.branch_logits(tokens, last, branches, 1)
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, **close)
    assert capture.replayed >= capture.recorded


def test_branches_are_replayed(plain: Decoder, at_once: None) -> None:
    capture = FakeCapture()
    replayed = recording(plain.fastest(), capture)
    tokens = random_text(60)
    replayed.logits(tokens[:50], 1, 50)
    before = capture.replayed
    for stop in (51, 52, 53):
        replayed.branch_logits(tokens[:stop], 1, [Branch(stop - 1, (1, 2)), Branch(stop, (3,))], 50)
    assert capture.recorded == 2  # one of them for the prompt's 50 rows
    assert capture.replayed - before == 3


def test_every_row_of_a_bucket_looks_at_something() -> None:
    """Else it would be no numbers, and so would all that later look at its masked place."""
    branches = [Branch(3, (7, 8)), Branch(5, (9,))]
    values = fill(Bucket(8, 256, True), Block(3, 5, 2, ()), [4, 6], branches)
    assert values.table.tolist() == [
        [4, 6, 7, 8, 9, 0, 0, 0],
        [3, 4, 3, 4, 5, 0, 0, 0],
        [3, 4, 5, 6, 7, 8, 9, 10],
    ]
    assert values.hidden is not None
    seen = [(~row).nonzero().flatten().tolist() for row in values.hidden]
    text = [0, 1, 2]
    assert seen[:5] == [[*text, 3], [*text, 3, 4], [*text, 5], [*text, 5, 6], [*text, 3, 4, 7]]
    assert seen[5:] == [[0], [0], [0]]


def test_recordings_end_with_the_cache_they_write_to(plain: Decoder, at_once: None) -> None:
    capture = FakeCapture()
    replayed = recording(plain, capture)
    tokens = random_text(FIRST_CAPACITY + 10)
    computed = plain.with_shapes(plain.shapes)
    other = [*tokens[: FIRST_CAPACITY - 50], *random_text(48, seed=5)]
    texts = [tokens[:stop] for stop in range(FIRST_CAPACITY - 2, FIRST_CAPACITY + 6)]
    for text in [*texts, other[:-2], other[:-1], other]:
        wanted = computed.logits(text, 1, 900)
        assert torch.equal(replayed.logits(text, 1, 900), wanted)


def test_padding_behind_the_end_of_the_cache_is_not_written(plain: Decoder, at_once: None) -> None:
    """The last rows of a full cache are computed without a recording."""
    replayed, computed = (
        recording(plain.with_shapes(STRICT), FakeCapture()),
        plain.with_shapes(STRICT),
    )
    tokens = random_text(2 * FIRST_CAPACITY)
    replayed.logits(tokens[:-20], 1, 1000)
    for stop in range(len(tokens) - 19, len(tokens) + 1):
        wanted = computed.logits(tokens[:stop], 1, 1000)
        assert torch.equal(replayed.logits(tokens[:stop], 1, 1000), wanted)


# -- what is recorded ------------------------------------------------------------------------------


def test_a_step_is_recorded_when_its_bucket_is_met_again_and_again(plain: Decoder) -> None:
    capture = FakeCapture()
    replayed = recording(plain, capture)
    tokens = random_text(60)
    counts = []
    for stop in range(33, 39):
        replayed.logits(tokens[:stop], 1, 32)
        counts.append((capture.recorded, capture.replayed))
    assert counts == [(0, 0), (0, 0), (0, 0), (1, 1), (1, 2), (1, 3)]


def test_the_longest_unused_recordings_are_forgotten(
    plain: Decoder, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    capture = FakeCapture()
    replayed = recording(plain.fastest(), capture)
    tokens = random_text(100)
    replayed.logits(tokens[:90], 1, 90)  # too many rows for a bucket
    for rows, recorded in [(1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)]:
        replayed.logits(tokens[:90], 1, 90)
        replayed._cached = tokens[: 90 - rows]
        replayed.logits(tokens[:90], 1, 90)
        assert capture.recorded == recorded


def test_the_cost_of_a_forward_is_that_of_replays(
    plain: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed are forwards of one kind: the first ones, which are computed, are not."""
    capture = FakeCapture()
    replayed = recording(plain.with_shapes(plain.shapes), capture)
    measure, recorded = load.Stopwatch.seconds, []

    def watched(*args: Any) -> float:
        before = capture.recorded
        seconds = measure(*args)
        recorded.append(capture.recorded - before)
        return seconds

    monkeypatch.setattr(load.Stopwatch, "seconds", watched)
    load.measure_cost(replayed)
    first = 2 * graphs.MEETINGS
    assert len(recorded) > first
    assert sum(recorded[:first]) == sum(recorded) > 1


# -- what a device may get wrong -------------------------------------------------------------------


def check_given_up(replayed: Decoder, computed: Decoder, match: str) -> None:
    """One warning, and the bits are those of ever."""
    tokens = random_text(60)
    with pytest.warns(GraphWarning, match=match) as caught:
        for stop in range(33, 40):
            wanted = computed.logits(tokens[:stop], 1, 32)
            assert torch.equal(replayed.logits(tokens[:stop], 1, 32), wanted)
    assert len(caught) == 1


def test_a_device_that_cannot_record_is_not_asked_again(plain: Decoder, at_once: None) -> None:
    def refuse(step: Callable[[], Tensor], *, is_warm: bool = False) -> Recording:
        raise RuntimeError("CUDA error: operation not permitted\nmore about it")

    replayed = recording(plain, refuse)
    check_given_up(replayed, plain.with_shapes(plain.shapes), r"longer: CUDA error: .* permitted$")


def test_recordings_with_other_bits_are_not_used(plain: Decoder, at_once: None) -> None:
    """And what they have written to the cache is computed again, which later rows look at."""
    used: list[Decoder] = []

    def spoil(output: Tensor) -> None:
        keys, values = used[0]._room.cache
        keys[..., len(used[0]._cached), :] += 1
        values[..., len(used[0]._cached), :] += 1
        output[0, 0] *= 1.01

    capture = FakeCapture(spoil)
    used.append(recording(plain, capture))
    check_given_up(used[0], plain.with_shapes(plain.shapes), "has other bits than the one it stand")
    assert capture.recorded == 1


def test_kernels_are_tried_on_data_that_cancel_when_a_model_is_loaded(plain: Decoder) -> None:
    """Four products, the norm, and attention over each number of keys, masked and not."""
    probe = KernelProbe(plain.config, CPU, plain.dtype)
    kernels = [*probe.products(), *probe.attention([64, 256])]
    capture = FakeCapture()
    assert proven(capture, kernels, plain.shapes.answer, CPU) is capture
    assert (capture.recorded, capture.replayed) == (len(kernels), len(kernels))


@pytest.mark.parametrize("canonical", [True, False])
def test_a_model_whose_kernels_do_not_stand_it_records_nothing(
    canonical: bool, tmp_path: Path
) -> None:
    """A draft's kernels are not tried: its recordings are compared with its forwards alone."""
    checkpoint = open_checkpoint(str(write_family(tmp_path, "qwen3")))
    capture = FakeCapture(lambda output: output[-1].add_(1e-6))
    options = {"canonical": canonical, "max_length": 64, "capture": capture}
    if not canonical:
        Decoder.load(checkpoint, CPU, torch.float32, **options)
        assert capture.recorded == 0
        return
    with pytest.warns(GraphWarning, match="has other bits"):
        model = Decoder.load(checkpoint, CPU, torch.float32, **options)
    tried = capture.recorded
    for stop in range(2, 20):
        model.logits(random_text(stop), 1, 1)
    assert capture.recorded == tried


# -- the setting -----------------------------------------------------------------------------------


def test_answers_with_recordings_are_those_without(
    pytorch: LLM, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Target and draft of the bundled pair, at temperatures of 0 and above; and the setting turns
    them off."""
    capture = FakeCapture()
    monkeypatch.setattr(load, "find_capture", lambda device: capture)
    options = {"threads": 1, "gamma": 3, "background": "inline", "history_bytes": 0}
    options |= {"kernels": "torch"}
    prompt = "Sort these words: pear, apple, fig."
    cases = [(method, heat) for method in ("ar", "sd", "double") for heat in (0.0, 0.9)]

    def answers(llm: LLM) -> list[tuple[int, ...]]:
        return [
            llm.generate(prompt, method=method, temperature=heat, max_tokens=24).tokens
            for method, heat in cases
        ]

    wanted = answers(pytorch)
    with LLM("bundled", "bundled", graphs=False, **options) as llm:
        assert answers(llm) == wanted
        assert model_provenance(llm)["graphs"] is False
    assert capture.replayed == 0
    with LLM("bundled", "bundled", **options) as llm:
        before = capture.replayed
        assert answers(llm) == wanted
        assert capture.replayed - before > 24 * len(cases) // 2


# -- the host waits once ---------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [FASTEST, STRICT], ids=["fastest", "strict"])
def test_a_forward_reads_nothing_from_its_device(shapes: Shapes, tmp_path: Path) -> None:
    """PyTorch's "meta" device has shapes and no values: to wait for one is an error. So the one
    wait of a step is that of the choice (`test_sampling.py`)."""
    checkpoint = open_checkpoint(str(write_family(tmp_path, "qwen3")))
    model = Decoder.load(checkpoint, torch.device("meta"), torch.bfloat16, canonical=False)
    model = model.with_shapes(shapes)
    tokens = random_text(CROSSING)
    for stop, last in ((200, 1), (201, 1), (240, 3), (290, 50), (205, 2)):
        assert model.logits(tokens[:stop], last, 200).shape == (last, 300)
    if model.can_branch:
        rows, ends = model.branch_logits(
            tokens[:206], 1, [Branch(206, (1, 2)), Branch(205, (3,))], 200
        )
        assert (rows.shape, ends.shape) == ((1, 300), (2, 300))
    buffers = Inputs(torch.zeros((3, 8), dtype=torch.long, device="meta"), None)
    with torch.inference_mode():
        assert model._step(Bucket(8, 256, False), buffers).shape == (8, 32)
    with pytest.raises((RuntimeError, NotImplementedError)):
        model.logits(tokens[:210], 1, 200)[0, 0].item()
