"""Our decoder gives the logits of transformers, and bits that depend on the text alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from doublespec.errors import ModelError
from doublespec.models import branches as behind
from doublespec.models import decoder as decoder_module
from doublespec.models import memory
from doublespec.models.base import Branch, can_branch
from doublespec.models.checkpoints import open_checkpoint
from doublespec.models.decoder import Decoder, _Rows
from doublespec.models.memory import FIRST_CAPACITY
from doublespec.models.shapes import FASTEST, FEW, KEY_STEP, STRICT, Block, Shapes, Span
from tests.checkpoints import FAMILIES, write_family

CPU = torch.device("cpu")
CROSSING = KEY_STEP + 40  # a text that crosses a border of key lengths
DTYPES = [torch.float32, torch.bfloat16]


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: bool) -> Decoder:
    return Decoder.load(open_checkpoint(str(folder)), CPU, dtype, **options)


def random_text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference_logits(folder: Path, tokens: list[int]) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def fresh(decoder: Decoder, tokens: list[int], prompt_length: int) -> Tensor:
    """All logits of a text, computed by the same weights with an empty cache."""
    model = decoder.with_shapes(decoder.shapes)
    return model.logits(tokens, len(tokens), prompt_length)


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def canonical(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Grouped queries, norms of queries and keys: whatever the forward pass can do."""
    return load(write_family(tmp_path_factory.mktemp("exact"), "qwen3"), request.param)


# -- the logits of transformers --------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path, family)
    tokens = random_text(2 * KEY_STEP + 40)
    wanted = reference_logits(folder, tokens)
    logits = load(folder).logits(tokens, len(tokens), prompt_length=KEY_STEP + 7)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_canonical", [True, False], ids=["canonical", "fastest"])
def test_logits_step_by_step_equal_those_of_transformers(
    family: str, is_canonical: bool, tmp_path: Path
) -> None:
    folder = write_family(tmp_path, family)
    tokens = random_text(CROSSING)
    wanted = reference_logits(folder, tokens)
    model = load(folder, canonical=is_canonical)
    first = KEY_STEP - 20
    rows = [model.logits(tokens[:stop], 1, first) for stop in range(first, len(tokens) + 1)]
    torch.testing.assert_close(torch.cat(rows), wanted[first - 1 :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama2", "qwen2", "qwen3"])
def test_what_a_checkpoint_holds_besides_is_read_as_by_transformers(
    family: str, tmp_path: Path
) -> None:
    """A table of its own for the logits of tied embeddings counts; biases that its configuration
    does not know do not."""
    folder = write_family(tmp_path, family, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    shape = tensors["model.embed_tokens.weight"].shape
    tensors["lm_head.weight"] = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tensors["model.layers.0.mlp.down_proj.bias"] = torch.ones(shape[1])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokens = random_text(30)
    wanted = reference_logits(folder, tokens)
    torch.testing.assert_close(load(folder).logits(tokens, 30, 9), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("qwen3", "self_attn.q_norm.weight"),
        ("qwen2", "self_attn.k_proj.bias"),
        ("llama-biased", "mlp.up_proj.bias"),
    ],
)
def test_a_small_weight_that_is_missing_is_missed(family: str, part: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path, family)
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"model.layers.1.{part}"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"no weight 'model.layers.1.{part}'"):
        load(folder)


def test_a_sliding_window_caps_the_context(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "mistral", sliding_window=48)
    model = load(folder)
    tokens = random_text(48)
    assert model.max_length == 48
    wanted = reference_logits(folder, tokens)
    torch.testing.assert_close(model.logits(tokens, 48, 20), wanted, atol=1e-4, rtol=0)


def test_a_window_that_is_not_in_use_caps_nothing(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "qwen2", sliding_window=48, use_sliding_window=False)
    assert load(folder).max_length == 2048


def test_max_length_is_the_smaller_of_the_models_and_what_was_asked_for(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_family(tmp_path, "llama2")))
    lengths = [
        Decoder.load(checkpoint, CPU, torch.float32, max_length=n).max_length for n in (100, 9999)
    ]
    assert lengths == [100, 2048]


def test_a_text_as_long_as_a_small_context_is_read(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "llama2", max_position_embeddings=50)
    tokens = random_text(50)
    model = load(folder)
    model.logits(tokens[:49], 1, 40)
    wanted = reference_logits(folder, tokens)[-1:]
    torch.testing.assert_close(model.logits(tokens, 1, 40), wanted, atol=1e-4, rtol=0)


# -- bits that depend on the text alone ------------------------------------------------------------


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[list[int], int, int]]:
    """Requests (tokens, last, prompt_length) of one base text: it grows, is cut back, is followed
    by guesses that turn out wrong, and is read with its prompt ending elsewhere."""
    base = random_text(2 * KEY_STEP + 60, seed=draw(st.integers(0, 3)))
    near_border = st.integers(KEY_STEP - 20, KEY_STEP + 20)
    lengths = st.one_of(st.integers(1, 60), near_border, st.integers(1, len(base)))
    requests = []
    for _ in range(draw(st.integers(2, 6))):
        tokens = base[: draw(lengths)]
        tokens = tokens + random_text(draw(st.integers(0, 20)), seed=draw(st.integers(10, 12)))
        last = draw(st.one_of(st.integers(1, min(40, len(tokens))), st.just(len(tokens))))
        prompt_length = draw(st.sampled_from([1, 30, KEY_STEP - 5, KEY_STEP + 3, 10**6]))
        requests.append((tokens, last, min(prompt_length, len(tokens))))
    return requests


def check_bits(decoder: Decoder, requests: list[tuple[list[int], int, int]]) -> None:
    used = decoder.with_shapes(decoder.shapes)
    for tokens, last, prompt_length in requests:
        wanted = fresh(decoder, tokens, prompt_length)[-last:]
        assert torch.equal(used.logits(tokens, last, prompt_length), wanted)


HEAVY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@HEAVY
@given(requests=calls())
def test_bits_do_not_depend_on_what_was_asked_before(
    canonical: Decoder, requests: list[tuple[list[int], int, int]]
) -> None:
    check_bits(canonical, requests)


@HEAVY
@given(requests=calls())
def test_bits_in_strict_shapes_do_not_depend_on_what_was_asked_before(
    canonical: Decoder, requests: list[tuple[list[int], int, int]]
) -> None:
    check_bits(canonical.with_shapes(STRICT), requests)


def test_strict_shapes_compute_answers_apart_from_prompts(canonical: Decoder) -> None:
    """A text read as prompt is computed anew as answer: in the same cache it would keep the bits
    of its other role. Here the roles differ visibly, by what a padded prompt row looks at."""
    strict = canonical.with_shapes(STRICT)
    tokens = random_text(100)
    strict.logits(tokens, 1, prompt_length=100)
    forwards = count_forwards(strict)
    strict.logits(tokens, 1, prompt_length=50)
    assert [(block.start, block.rows) for block in forwards][:2] == [(50, 16), (66, 16)]


def count_forwards(decoder: Decoder) -> list[decoder_module.Block]:
    """Collects the blocks that a decoder computes from now on."""
    blocks: list[decoder_module.Block] = []
    forward = decoder._forward

    def noted(block: decoder_module.Block, *arguments: Any) -> Tensor:
        blocks.append(block)
        return forward(block, *arguments)

    decoder._forward = noted
    return blocks


def test_what_is_cached_is_not_computed_again(canonical: Decoder) -> None:
    model = canonical.with_shapes(canonical.shapes)
    tokens = random_text(100)
    model.logits(tokens, 1, 60)
    blocks = count_forwards(model)
    model.logits([*tokens[:90], 5, 6], 1, 60)
    assert [(block.start, block.stop) for block in blocks] == [(90, 92)]


@pytest.mark.parametrize("shapes", [None, STRICT], ids=["found", "strict"])
def test_one_token_at_a_time_equals_many_at_once(canonical: Decoder, shapes: Shapes | None) -> None:
    model = canonical.with_shapes(shapes or canonical.shapes)
    tokens = random_text(CROSSING)
    rows = [model.logits(tokens[:stop], 1, 200) for stop in range(200, len(tokens) + 1)]
    assert torch.equal(torch.cat(rows), fresh(model, tokens, 200)[199:])


def test_the_fastest_shapes_do_not_give_equal_bits(tmp_path: Path) -> None:
    """Else canonical shapes would be for nothing, and the tests above blind."""
    model = load(write_family(tmp_path, "qwen3"), canonical=False)
    tokens = random_text(CROSSING)
    rows = [model.logits(tokens[:stop], 1, 200) for stop in range(200, len(tokens) + 1)]
    assert not torch.equal(torch.cat(rows), fresh(model, tokens, 200)[199:])


def test_growing_the_cache_changes_no_bit(canonical: Decoder) -> None:
    capacity = FIRST_CAPACITY
    tokens = random_text(capacity + 10)
    model = canonical.with_shapes(canonical.shapes)
    before = model.logits(tokens[:capacity], 5, 30)
    after = model.logits(tokens, 15, 30)
    assert torch.equal(before, after[:5])
    assert torch.equal(after, fresh(model, tokens, 30)[-15:])


def test_an_interrupt_while_the_cache_grows_changes_no_bit(
    canonical: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever part of the new room was being laid out: all of it is left, or nothing."""
    tokens = random_text(FIRST_CAPACITY + 20)
    wanted = fresh(canonical, tokens, 30)[-1:]
    for part in ("_grown", "_rotary_table", "_staircase", "_lay_out"):
        model = canonical.with_shapes(canonical.shapes)
        model.logits(tokens[:FIRST_CAPACITY], 1, 30)

        def interrupted(*args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Decoder, part, interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.logits(tokens, 1, 30)
        short = tokens[: FIRST_CAPACITY - 10]
        assert torch.equal(model.logits(short, 1, 30), fresh(canonical, short, 30)[-1:])
        assert torch.equal(model.logits(tokens, 1, 30), wanted)


def test_a_cache_with_room_from_the_beginning_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(write_family(tmp_path, "llama2")))
    reserve = min(checkpoint.config.max_length, FIRST_CAPACITY + 1) if checkpoint.config else 0
    assert reserve > FIRST_CAPACITY
    model = Decoder.load(checkpoint, CPU, torch.float32, reserve=reserve)
    monkeypatch.delattr(Decoder, "_grown")
    model.logits(random_text(reserve), 1, 1)


def test_attention_takes_what_any_kernel_leaves(
    canonical: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's memory-efficient kernel, of CUDA, leaves the heads of a row side by side."""
    tokens = random_text(40)
    wanted = fresh(canonical, tokens, 20)
    attend = functional.scaled_dot_product_attention

    def apart(*args: Any, **options: Any) -> Tensor:
        return attend(*args, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", apart)
    assert torch.equal(fresh(canonical, tokens, 20), wanted)
    model = canonical.with_shapes(canonical.shapes)
    rows = [model.logits(tokens[:stop], 1, 20) for stop in range(21, 41)]
    assert torch.equal(torch.cat(rows), wanted[20:])


def test_the_mask_of_a_lone_row_begins_where_a_gpu_can_read_it(tmp_path: Path) -> None:
    """It is no window of the staircase, which begins anywhere: also where a row has one row of
    queries, of which a copy that is to be contiguous would be the window itself."""
    checkpoint = open_checkpoint(str(write_family(tmp_path, "llama2")))
    model = Decoder.load(checkpoint, torch.device("meta"), torch.float32, canonical=False)
    model = model.with_shapes(Shapes((16,), (1, 2), KEY_STEP, alike=False))
    assert model.config.num_heads == model.config.num_kv_heads
    mask = model._mask(Block(5, 6, 1, ()), Span(0, 1, KEY_STEP, 0, 1))
    assert mask is not None
    assert not mask._is_view()


def test_padded_rows_change_no_real_row(canonical: Decoder) -> None:
    """In strict shapes 3 rows come with 13 of padding, 16 with none."""
    few, many = canonical.with_shapes(STRICT), canonical.with_shapes(STRICT)
    tokens = random_text(66)
    short = few.logits(tokens[:53], 3, 50)
    assert torch.equal(short, many.logits(tokens, 16, 50)[:3])


def test_bits_do_not_depend_on_the_number_of_threads(canonical: Decoder) -> None:
    tokens = random_text(CROSSING)
    alone = fresh(canonical, tokens, 200)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(fresh(canonical, tokens, 200), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shapes", [None, STRICT], ids=["found", "strict"])
def test_an_interrupt_leaves_no_lie_in_the_cache(
    canonical: Decoder, shapes: Shapes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = canonical.with_shapes(shapes or canonical.shapes)
    before, other = random_text(100), [*random_text(80), *random_text(60, seed=5)]
    model.logits(before, 1, 50)
    with monkeypatch.context() as patch:
        patch.setattr(model, "_layer", interrupted(model, after=1))
        with pytest.raises(KeyboardInterrupt):
            model.logits(other, 1, 50)
    for tokens in (before, other):
        assert torch.equal(model.logits(tokens, 10, 50), fresh(model, tokens, 50)[-10:])


def interrupted(model: Decoder, after: int) -> Callable[..., Tensor]:
    """The layer function of `model`, which is interrupted after some calls."""
    layer, calls_left = model._layer, iter(range(after))

    def run(*arguments: object) -> Tensor:
        if next(calls_left, None) is None:
            raise KeyboardInterrupt
        return layer(*arguments)

    return run


# -- branches --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fastest(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(write_family(tmp_path_factory.mktemp("fastest"), "qwen3"), canonical=False)


@st.composite
def branching_calls(draw: st.DrawFn) -> list[tuple[list[int], int, list[Branch]]]:
    """Requests (tokens, last, branches): the text grows and is cut back, branches start in what is
    cached and among the rows of this forward, and several at the same place."""
    base = random_text(KEY_STEP + 90, seed=draw(st.integers(0, 3)))
    requests = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = base[: draw(st.integers(1, len(base)))]
        last = draw(st.integers(1, min(9, len(tokens))))
        starts = st.one_of(
            st.integers(1, len(tokens)), st.integers(max(1, len(tokens) - last), len(tokens))
        )
        runs = st.lists(st.integers(0, 299), min_size=1, max_size=6).map(tuple)
        branches = draw(st.lists(st.builds(Branch, starts, runs), max_size=6))
        requests.append((tokens, last, branches))
    return requests


@HEAVY
@given(
    requests=branching_calls(),
    prompt_length=st.sampled_from([1, 40, 10**6]),
    shapes=st.sampled_from([FASTEST, FEW]),
)
def test_branches_are_texts_of_their_own(
    fastest: Decoder,
    requests: list[tuple[list[int], int, list[Branch]]],
    prompt_length: int,
    shapes: Shapes,
) -> None:
    used = fastest.with_shapes(shapes)
    for tokens, last, branches in requests:
        rows, ends = used.branch_logits(tokens, last, branches, min(prompt_length, len(tokens)))
        wanted = fresh(fastest, tokens, 1)
        torch.testing.assert_close(rows, wanted[-last:], atol=1e-5, rtol=0)
        assert ends.shape == (len(branches), 300)
        for branch, end in zip(branches, ends, strict=True):
            alone = fresh(fastest, [*tokens[: branch.start], *branch.tokens], 1)[-1]
            torch.testing.assert_close(end, alone, atol=1e-5, rtol=0)
            assert end.argmax() == alone.argmax()
        plain = used.logits([*tokens, 7, 8], 3, min(prompt_length, len(tokens)))
        again = fresh(fastest, [*tokens, 7, 8], 1)[-3:]
        torch.testing.assert_close(plain, again, atol=1e-5, rtol=0)


def test_no_branches_are_just_logits(fastest: Decoder) -> None:
    tokens = random_text(50)
    rows, ends = fastest.fastest().branch_logits(tokens, 4, [], 30)
    assert torch.equal(rows, fastest.fastest().logits(tokens, 4, 30))
    assert ends.shape == (0, 300)


def test_branches_cost_one_forward_and_only_their_own_rows(
    fastest: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fastest.fastest()
    tokens = random_text(60)
    model.logits(tokens[:58], 1, 40)
    heads: list[int] = []
    head = model._head
    monkeypatch.setattr(model, "_head", lambda hidden: heads.append(len(hidden)) or head(hidden))
    forwards = count_forwards(model)
    model.branch_logits(tokens, 1, [Branch(58, (1, 2, 3)), Branch(59, (4,))], 40)
    assert [(block.start, block.stop) for block in forwards] == [(58, 60)]
    assert heads == [3]


def test_a_draft_on_a_cpu_computes_few_different_numbers_of_rows(
    fastest: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new one costs time and memory."""
    model = fastest.with_shapes(fastest.shapes)
    counts: set[int] = set()
    hidden = model._hidden

    def run(ids: Tensor, rows: _Rows) -> Tensor:
        counts.add(len(ids))
        return hidden(ids, rows)

    monkeypatch.setattr(model, "_hidden", run)
    for length in range(2, 120):
        tokens = random_text(length, seed=length)
        model.branch_logits(tokens, 1, [Branch(length - 1, (1,) * (length % 9 + 1))], length - 1)
    assert counts <= {*FEW.prompt, *FEW.answer}


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_branches_may_end_where_the_context_does(spare: int, tmp_path: Path) -> None:
    """Their slots lie behind the text, beyond what the context holds; their positions do not."""
    folder = write_family(tmp_path, "llama2", max_position_embeddings=KEY_STEP)
    model = load(folder, canonical=False)
    tokens = random_text(KEY_STEP - spare)
    branches = [Branch(KEY_STEP - n, (9,) * n) for n in (2, 3, 4)]
    _, ends = model.branch_logits(tokens, 1, branches, 30)
    for branch, end in zip(branches, ends, strict=True):
        alone = fresh(model, [*tokens[: branch.start], *branch.tokens], 30)[-1]
        torch.testing.assert_close(end, alone, atol=1e-5, rtol=0)


def test_branches_are_refused_in_canonical_shapes_and_past_the_context(fastest: Decoder) -> None:
    canonical = fastest.with_shapes(STRICT)
    assert can_branch(fastest)
    assert not can_branch(canonical)
    with pytest.raises(AssertionError):
        canonical.branch_logits([1, 2], 1, [Branch(1, (3,))], 1)
    for branch in (Branch(3, (3,)), Branch(2, (3,) * 2047)):
        with pytest.raises(AssertionError):
            fastest.branch_logits([1, 2], 1, [branch], 1)


def test_rows_of_branches_stand_and_look_where_their_text_does() -> None:
    """The table of models/branches.py, one token of the text being cached."""
    branches = [Branch(2, (8, 9)), Branch(3, (7,))]
    assert behind.positions(1, 4, branches) == [1, 2, 3, 2, 3, 3]
    assert behind.final_rows(3, branches) == [4, 5]
    seen = ["".join("01"[int(not h)] for h in row) for row in behind.hidden(1, 4, branches)]
    assert seen == ["1100000", "1110000", "1111000", "1100100", "1100110", "1110001"]


# -- memory ----------------------------------------------------------------------------------------


def test_a_cache_that_does_not_fit_is_refused_with_what_to_change(
    canonical: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = canonical.with_shapes(canonical.shapes)
    needed = model.config.cache_bytes_per_token(model.dtype) * 2048
    monkeypatch.setattr(memory, "available_memory", lambda device: needed - 1)
    with pytest.raises(ModelError, match=r"2048 tokens needs 0\.00 GB.*max_length to at most 1023"):
        model.logits(random_text(1100), 1, 1100)
    monkeypatch.setattr(memory, "available_memory", lambda device: needed)
    assert len(model.logits(random_text(1100), 1, 1100)) == 1
