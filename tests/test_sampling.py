"""The rule for choosing: it samples what it says, row by row, and from shared noise."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from doublespec import sampling
from doublespec.errors import ConfigError
from doublespec.noise import noise, perturbed, prepare_noise
from doublespec.sampling import Ranking, Request, SamplingParams, choose, logprobs, rank

CPU = torch.device("cpu")
LOGITS = [2.0, 1.0, 0.9, 0.0, -0.3, -1.0, 1.7, -1.2]
TEXT = [0, 0, 1, 2, 2, 6, 6, 6]  # the first 3 are the prompt
HIGH_SEED, HIGH_POSITION, HIGH_TOKEN = 3, 294, 43170  # whose hash is just below 2^31
FILTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.2},
    "repetition": {"repetition_penalty": 1.5},
    "presence": {"presence_penalty": 0.7},
    "frequency": {"frequency_penalty": 0.4},
    "bias": {"logit_bias": {3: 2.0, 0: -1.5}},
    "all": {
        "temperature": 1.3,
        "top_k": 6,
        "top_p": 0.9,
        "min_p": 0.06,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "logit_bias": {4: 1.0},
    },
}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """The first use takes longer than a test may."""
    prepare_noise(CPU)


def request_for(prompt_length: int = 3, **values: Any) -> Request:
    return Request(SamplingParams(**{"temperature": 1.0, **values}), prompt_length)


def naive_probabilities(
    logits: list[float], before: list[int], request: Request
) -> dict[int, float]:
    """The distribution that parameters describe, by their definitions."""
    params, answer = request.params, before[request.prompt_length :]
    scores = {}
    for token, logit in enumerate(logits):
        score = logit + params.logit_bias.get(token, 0.0)
        if token in before:
            penalty = params.repetition_penalty
            score = score / penalty if score > 0 else score * penalty
        score -= params.presence_penalty * (token in answer)
        score -= params.frequency_penalty * answer.count(token)
        scores[token] = score / params.temperature
    ordered = sorted(scores, key=lambda token: -scores[token])
    lowest = scores[ordered[: params.top_k][-1]]
    kept = [token for token in ordered if scores[token] >= lowest]  # ties are kept
    kept = naive_nucleus(normalised({token: scores[token] for token in kept}), params.top_p)
    floor = params.min_p * max(normalised({token: scores[token] for token in kept}).values())
    probabilities = normalised({token: scores[token] for token in kept})
    return normalised({token: scores[token] for token in kept if probabilities[token] >= floor})


def normalised(scores: Mapping[int, float]) -> dict[int, float]:
    total = sum(math.exp(score) for score in scores.values())
    return {token: math.exp(score) / total for token, score in scores.items()}


def naive_nucleus(probabilities: Mapping[int, float], top_p: float) -> list[int]:
    kept, total = [], 0.0
    for token in sorted(probabilities, key=lambda token: -probabilities[token]):
        if total < top_p or not kept:
            kept.append(token)
        total += probabilities[token]
    return kept


def check_frequencies(chosen: list[int], probabilities: Mapping[int, float]) -> None:
    """Pearson's chi-square test, at 5 standard deviations of the statistic."""
    counts = Counter(chosen)
    assert counts.keys() <= probabilities.keys()
    expected = {token: len(chosen) * p for token, p in probabilities.items()}
    assert min(expected.values()) > 5
    statistic = sum((counts[token] - e) ** 2 / e for token, e in expected.items())
    freedom = len(expected) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 1e-9


# -- sampling is from the softmax ------------------------------------------------------------------


@pytest.mark.parametrize("name", FILTERS)
def test_over_seeds_a_position_is_sampled_from_its_distribution(name: str) -> None:
    logits = torch.tensor([LOGITS])
    chosen = []
    for seed in range(3000):
        request = request_for(seed=seed * 7919, **FILTERS[name])
        chosen += choose(logits, TEXT, len(TEXT), request)
    check_frequencies(chosen, naive_probabilities(LOGITS, TEXT, request))


@pytest.mark.parametrize("name", ["plain", "temperature", "top-k", "top-p", "min-p", "bias"])
@pytest.mark.parametrize("seed", [0, 1, (1 << 63) - 1])
def test_over_positions_a_seed_samples_the_distribution(name: str, seed: int) -> None:
    logits = torch.tensor([LOGITS]).expand(20000, -1)
    request = request_for(seed=seed, **FILTERS[name])
    chosen = choose(logits, [], 0, request)
    check_frequencies(chosen, naive_probabilities(LOGITS, [], request))


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "plain"])
def test_every_parameter_makes_a_difference(name: str) -> None:
    plain = naive_probabilities(LOGITS, TEXT, request_for())
    assert naive_probabilities(LOGITS, TEXT, request_for(**FILTERS[name])) != plain


def test_pairs_of_neighbouring_tokens_are_independent() -> None:
    """Noise that followed from position to position would show in pairs, not in singles."""
    chosen = choose(torch.tensor([LOGITS]).expand(40000, -1), [], 0, request_for(top_k=4))
    single = naive_probabilities(LOGITS, [], request_for(top_k=4))
    for lag in (1, 2, 16):
        firsts, seconds = chosen[:: 2 * lag], chosen[lag :: 2 * lag]
        pairs = [8 * a + b for a, b in zip(firsts, seconds, strict=True)]
        check_frequencies(pairs, {8 * a + b: single[a] * single[b] for a in single for b in single})


# -- noise -----------------------------------------------------------------------------------------


def naive_bits(seed: int, position: int, token: int) -> int:
    """The 31 bits of the hash, on Python's integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    key = mix((mix(seed % 2**32) + (seed >> 32)) % 2**32)
    x = mix((token + 0x9E3779B9) % 2**32) ^ mix(mix(position) ^ key)
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    sign = 0xFFFF0000 if x >= 2**31 else 0
    return x ^ (x >> 16) ^ sign


def naive_noise(seed: int, position: int, token: int) -> float:
    """From a uniform number of 24 bits; where that is nearly 1, more of them would show."""
    bits = np.float32(min(naive_bits(seed, position, token), 2**31 - 128)) + np.float32(0.5)
    return -math.log(-math.log1p(-float(bits) / 2**31))


seeds = st.one_of(st.integers(0, 3), st.integers(0, 2**63 - 1), st.just(2**63 - 1))


@example(0, 236, 0)  # nearly 1
@given(seeds, st.integers(0, 10**6), st.integers(0, 299))
def test_noise_is_a_hash_that_can_be_computed_by_hand(seed: int, position: int, token: int) -> None:
    value = float(noise(seed, [position], 300, CPU)[0, token])
    assert value == pytest.approx(naive_noise(seed, position, token), rel=1e-5, abs=1e-5)


@given(seeds, st.integers(0, 10**6), st.integers(1, 70), st.integers(71, 300))
def test_noise_does_not_depend_on_the_padding_of_the_vocabulary(
    seed: int, position: int, size: int, padded: int
) -> None:
    small, large = (noise(seed, [position], n, CPU) for n in (size, padded))
    assert torch.equal(small, large[:, :size])


@given(seeds, st.integers(0, 10**6), st.integers(2, 20), st.sampled_from([1, 31, 300]))
def test_noise_of_many_positions_is_that_of_each(
    seed: int, position: int, count: int, size: int
) -> None:
    positions = range(position, position + count)
    each = [noise(seed, [p], size, CPU) for p in positions]
    assert torch.equal(noise(seed, positions, size, CPU), torch.cat(each))


@given(seeds, st.integers(1, 70), st.floats(0.1, 10.0), st.booleans())
def test_our_function_gives_what_pytorch_gives(
    seed: int, size: int, temperature: float, is_part: bool
) -> None:
    """Up to rounding: also of rows that lie apart, and of some excluded tokens."""
    logits = torch.randn(3, 80, generator=torch.Generator().manual_seed(seed % 1000))
    logits[:, 1::7] = -math.inf
    logits = logits[:, :size] if is_part else logits[:, :size].clone()
    with patch("doublespec.noise.has_fma", return_value=False):
        wanted = perturbed(logits, temperature, seed, range(5, 8))
    found = perturbed(logits, temperature, seed, range(5, 8))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_filters_that_exclude_nothing_change_no_bit() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    wanted = rank(logits, [], 7, request_for(temperature=0.7), 5)
    assert rank(logits, [], 7, request_for(temperature=0.7, min_p=1e-30), 5) == wanted


def test_noise_is_gumbel_distributed() -> None:
    """Kolmogorov and Smirnov's test, at a level of 1 in 10,000."""
    values = noise(5, range(200), 1000, CPU).flatten().double().sort().values
    expected = torch.exp(-torch.exp(-values))
    steps = torch.arange(1, len(values) + 1) / len(values)
    assert (expected - steps).abs().max() < 2.23 / math.sqrt(len(values))


def test_noise_is_never_infinite() -> None:
    """Hashes near 2^31 rounded to 1, hence to noise of minus infinity, which made token 0 win where
    top-k had left one token: 1 in 33 million.."""
    assert naive_bits(HIGH_SEED, HIGH_POSITION, HIGH_TOKEN) > 2**31 - 64
    assert noise(HIGH_SEED, [HIGH_POSITION], HIGH_TOKEN + 1, CPU).isfinite().all()
    logits = torch.zeros((1, HIGH_TOKEN + 1))
    logits[0, HIGH_TOKEN] = 1.0
    request = request_for(seed=HIGH_SEED, top_k=1)
    assert choose(logits, [], HIGH_POSITION, request) == [HIGH_TOKEN]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


@pytest.mark.parametrize("distance", [1, 2, 3, 8, 64, 256])
def test_noise_of_neighbours_is_uncorrelated(distance: int) -> None:
    """100,000 pairs: 5 standard deviations are 0.016."""
    table = noise(1, range(400), 600, CPU)
    other_seed = noise(1 + distance, range(400), 600, CPU)
    far_seed = noise(1 + (distance << 32), range(400), 600, CPU)
    pairs = {
        "positions": (table[distance:], table[:-distance]),
        "ids": (table[:, distance:], table[:, :-distance]),
        "diagonal": (table[distance:, distance:], table[:-distance, :-distance]),
        "seeds": (table, other_seed),
        "far seeds": (table, far_seed),
    }
    assert max(abs(correlation(*pair)) for pair in pairs.values()) < 0.016


# -- draft and target share the noise --------------------------------------------------------------


@pytest.mark.parametrize("closeness", [0.3, 1.0])
def test_a_draft_that_is_near_in_distribution_agrees_in_tokens(closeness: float) -> None:
    """At least (1 - TV) / (1 + TV) (arXiv 2408.07978), far above independent draws."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(40, generator=generator)
    draft = target + closeness * torch.randn(40, generator=generator)
    p, q = target.softmax(-1), draft.softmax(-1)
    distance = float((p - q).abs().sum() / 2)
    n = 20000
    ours, theirs = (choose(x.expand(n, -1), [], 0, request_for()) for x in (target, draft))
    agreement = sum(a == b for a, b in zip(ours, theirs, strict=True)) / n
    assert agreement > (1 - distance) / (1 + distance) - 4 * math.sqrt(0.25 / n)
    assert agreement > 5 * float((p * q).sum())


def test_another_seed_draws_independently() -> None:
    target = torch.tensor(LOGITS).expand(20000, -1)
    ours, theirs = (choose(target, [], 0, request_for(seed=seed)) for seed in (1, 2))
    agreement = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    by_chance = sum(p * p for p in naive_probabilities(LOGITS, [], request_for()).values())
    assert abs(agreement - by_chance) < 4 * math.sqrt(0.25 / len(ours))


# -- a row is chosen by itself ---------------------------------------------------------------------


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, list[int], int, Request]:
    """(logits, text, start, request) with every feature on or off; values tie now and then."""
    vocab_size = draw(st.sampled_from([5, 33, 300]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    count, start = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    logits = (torch.randn((count, vocab_size), generator=generator) * 3).to(dtype)
    text = torch.randint(vocab_size, (start + count,), generator=generator).tolist()
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.5, 1.3])),
        top_k=draw(st.sampled_from([None, 1, 4, 1000])),
        top_p=draw(st.sampled_from([1.0, 0.9, 1e-9])),
        min_p=draw(st.sampled_from([0.0, 0.05])),
        seed=draw(seeds),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, 0.4])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.2])),
        logit_bias=draw(st.sampled_from([{}, {0: 2.0, 3: -100.0, 999: 5.0}])),
    )
    return logits, text, start, Request(params, draw(st.integers(1, start)))


@settings(max_examples=300, deadline=None)
@given(rows())
def test_rows_chosen_together_are_those_chosen_alone(
    case: tuple[Tensor, list[int], int, Request],
) -> None:
    logits, text, start, request = case
    alone = [choose(logits[i : i + 1], text, start + i, request)[0] for i in range(len(logits))]
    assert choose(logits, text, start, request) == alone


@settings(max_examples=300, deadline=None)
@given(rows(), st.integers(1, 40))
def test_the_best_ranked_token_is_the_one_chosen(
    case: tuple[Tensor, list[int], int, Request], count: int
) -> None:
    logits, text, start, request = case
    before = logits.clone()
    ranked = rank(logits, text, start, request, count)
    assert [ranking.tokens[0] for ranking in ranked] == choose(logits, text, start, request)
    assert torch.equal(logits, before)


@settings(max_examples=300, deadline=None)
@given(rows(), st.integers(2, 40))
def test_the_next_in_rank_is_chosen_once_the_best_are_banned(
    case: tuple[Tensor, list[int], int, Request], count: int
) -> None:
    """Without filters, whose thresholds a ban would move. It moves the largest logit, too, from
    which scores are counted, and so how they are rounded: of two that differ by no more than that
    either may be chosen."""
    logits, text, start, request = case
    request = request_plain(request)
    (ranking,) = rank(logits[:1], text, start, request, count)
    (whole,) = rank(logits[:1], text, start, request, logits.shape[-1])
    behind = dict(zip(whole.tokens, whole.behind, strict=True))
    for i, token in enumerate(ranking.tokens):
        banned = {**request.params.logit_bias, **dict.fromkeys(ranking.tokens[:i], -1000.0)}
        params = replace(request.params, logit_bias=banned)
        (found,) = choose(logits[:1], text, start, replace(request, params=params))
        assert behind[found] == pytest.approx(behind[token], rel=1e-5, abs=1e-5)
        assert found == token or found not in ranking.tokens[:i]


@pytest.mark.parametrize(
    ("values", "kept"),
    [({"top_k": 3}, {0, 6, 1}), ({"min_p": 0.5}, {0, 6}), ({"temperature": 0.0}, set(range(8)))],
)
def test_ranks_hold_what_the_filters_keep_and_nothing_else(
    values: dict[str, Any], kept: set[int]
) -> None:
    (ranking,) = rank(torch.tensor([LOGITS]), [], 0, request_for(**values), 100)
    assert set(ranking.tokens) == kept
    assert len(ranking.tokens) == len(kept)


def test_ranks_say_how_far_behind_a_token_is() -> None:
    (ranking,) = rank(torch.tensor([LOGITS]), [], 0, request_for(temperature=0.0), 3)
    assert ranking.tokens == (0, 6, 1)
    assert ranking.behind == pytest.approx((0.0, 0.3, 1.0))


def test_ranks_include_the_noise() -> None:
    request = request_for(temperature=0.5, seed=9)
    (ranking,) = rank(torch.tensor([LOGITS]), [], 4, request, len(LOGITS))
    scores = (torch.tensor(LOGITS) / 0.5 + noise(9, [4], len(LOGITS), CPU)[0]).tolist()
    order = sorted(range(len(LOGITS)), key=lambda token: -scores[token])
    assert ranking.tokens == tuple(order)
    assert ranking.behind == pytest.approx([max(scores) - scores[t] for t in order], abs=1e-5)


def test_ties_rank_by_the_lowest_id_and_banned_tokens_not_at_all() -> None:
    logits = torch.tensor([[1.0, -math.inf, 3.0, 1.0, 3.0]])
    (ranking,) = rank(logits, [], 0, request_for(temperature=0.0), 9)
    assert ranking == Ranking((2, 4, 0, 3), (0.0, 0.0, 2.0, 2.0))


@settings(max_examples=200, deadline=None)
@given(rows())
def test_only_tokens_that_the_filters_keep_are_chosen(
    case: tuple[Tensor, list[int], int, Request],
) -> None:
    logits, text, start, request = case
    if request.params.temperature == 0.0:
        request = replace(request, params=replace(request.params, temperature=1.0))
    for i, token in enumerate(choose(logits, text, start, request)):
        row = logits[i].float()
        kept = naive_probabilities(row.tolist(), text[: start + i], request)
        scores = naive_probabilities(row.tolist(), text[: start + i], request_plain(request))
        assert any(scores[token] >= scores[k] * (1 - 1e-5) for k in kept)


def request_plain(request: Request) -> Request:
    """The same without filters, to compare tokens by their scores: ties are kept."""
    return replace(request, params=replace(request.params, top_k=None, top_p=1.0, min_p=0.0))


def test_choosing_does_not_change_the_logits() -> None:
    logits = torch.tensor([LOGITS])
    choose(logits, TEXT, len(TEXT), request_for(**FILTERS["all"]))
    assert logits.tolist() == [pytest.approx(LOGITS)]


def test_the_text_after_a_position_is_not_looked_at() -> None:
    request = request_for(temperature=0.0, presence_penalty=100.0)
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert choose(logits, [0, 2, 1], 2, replace(request, prompt_length=0)) == [1]
    assert choose(logits, [0, 1, 2], 2, replace(request, prompt_length=0)) == [2]


def test_tokens_that_a_draft_does_not_know_have_no_penalty() -> None:
    request = request_for(temperature=0.0, repetition_penalty=2.0, frequency_penalty=1.0)
    assert choose(torch.tensor([[1.0, 1.5]]), [7, 8, 1, 9, 1], 5, request) == [0]


# -- edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_ties_go_to_the_lowest_id(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0, 5.0], [3.0, 3.0, 3.0, 3.0]], dtype=dtype)
    assert choose(logits, [], 0, request_for(temperature=0.0)) == [1, 0]


@pytest.mark.parametrize("values", [{"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}])
def test_the_strictest_filters_leave_the_likeliest_token(values: dict[str, Any]) -> None:
    logits = torch.randn((50, 300), generator=torch.Generator().manual_seed(0))
    chosen = choose(logits, [], 0, request_for(temperature=5.0, **values))
    assert chosen == logits.argmax(-1).tolist()


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 1.0]]).expand(300, -1)
    assert set(choose(logits, [], 0, request_for(top_k=2))) == {0, 1, 3}
    assert set(choose(logits, [], 0, request_for(top_p=0.3))) == {0, 1, 3}


@pytest.mark.parametrize("temperature", [1e-300, 1e-10, 1e-3])
def test_a_very_low_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn((50, 300), generator=torch.Generator().manual_seed(0)) * 20
    chosen = choose(logits, [], 0, request_for(temperature=temperature, top_p=0.9, min_p=0.1))
    assert chosen == logits.argmax(-1).tolist()


def test_a_token_with_a_logit_of_minus_infinity_is_never_chosen() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0]]).expand(500, -1)
    assert set(choose(logits, [], 0, request_for(top_p=0.99))) == {1, 2}


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("temperature", -0.1, "from 0 to 100"),
        ("temperature", math.nan, "from 0 to 100"),
        ("temperature", "hot", "from 0 to 100"),
        ("top_k", 0, "from 1 to"),
        ("top_k", 2.5, "from 1 to"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("seed", -1, "from 0 to 9223372036854775807"),
        ("seed", 1 << 63, "from 0 to 9223372036854775807"),
        ("seed", True, "from 0 to"),
        ("max_tokens", 0, "from 1 to"),
        ("repetition_penalty", 0.0, "above 0 and at most 100"),
        ("presence_penalty", math.inf, "from -100 to 100"),
        ("frequency_penalty", -101, "from -100 to 100"),
        ("logprobs", -1, "from 0 to 1000"),
        ("stop", [""], "non-empty strings"),
        ("stop", [7], "non-empty strings"),
        ("stop", 5, "a list of strings"),
        ("stop_token_ids", 5, "a list of token ids"),
        ("logit_bias", 5, "must map token ids to numbers"),
        ("logit_bias", "a", "must map token ids to numbers"),
        ("ignore_eos", "yes", "True or False"),
        ("stop_token_ids", ["a"], "from 0 to"),
        ("logit_bias", {-1: 1.0}, "from 0 to"),
        ("logit_bias", {3: math.nan}, "from -1000 to 1000"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(
    name: str, value: object, range_: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert range_ in message
    assert message.endswith(f"got {innermost(value)!r}")
    assert "\n" not in message


def innermost(value: object) -> object:
    """What of a value is at fault."""
    if isinstance(value, list):
        return value[0]
    if isinstance(value, dict):
        ((token, bias),) = value.items()
        return token if token < 0 else bias
    return value


def test_none_is_no_stop_and_no_bias() -> None:
    assert SamplingParams(stop=None, stop_token_ids=None, logit_bias=None) == SamplingParams()


def test_a_single_stop_string_may_be_given_by_itself() -> None:
    assert SamplingParams(stop="END").stop == ("END",)


def test_logprobs_are_those_of_the_unfiltered_distribution() -> None:
    found = logprobs(torch.tensor([LOGITS, LOGITS[::-1]]), [3], top=2)
    (one,) = found
    table = torch.tensor(LOGITS).double().log_softmax(-1).tolist()
    assert one.token == 3
    assert one.logprob == pytest.approx(table[3])
    assert one.top == ((0, pytest.approx(table[0])), (6, pytest.approx(table[6])))


# -- a device that keeps its values to itself ------------------------------------------------------


@contextmanager
def reading_noted() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what a device hands to the host. PyTorch's "meta" device has shapes and no
    values: to read one in any other way is an error."""
    shapes: list[tuple[int, ...]] = []

    def tolist(values: Tensor) -> object:
        shapes.append(tuple(values.shape))
        return np.zeros(values.shape, dtype=int).tolist()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "tolist", tolist, raising=False)
        yield shapes


@settings(max_examples=100, deadline=None)
@given(rows(), st.integers(1, 5))
def test_a_step_reads_from_the_device_once_whatever_is_asked_for(
    case: tuple[Tensor, list[int], int, Request], count: int
) -> None:
    logits, text, start, request = case
    far, n = logits.to("meta"), len(logits)
    with reading_noted() as shapes:
        assert choose(far, text, start, request) == [0] * n
        assert shapes == [(n,)]
        rank(far, text, start, request, count)
        assert shapes[1:] == [(n, 2 * count)]
        logprobs(far, text[:n], 3)
        assert shapes[2:] == [(n, 7)]


@settings(max_examples=100, deadline=None)
@given(rows(), st.integers(1, 5))
def test_ranks_found_on_a_device_are_those_of_the_host(
    case: tuple[Tensor, list[int], int, Request], count: int
) -> None:
    logits, text, start, request = case
    here = rank(logits, text, start, request, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_table", lambda values: values)
        assert rank(logits, text, start, request, count) == here


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab_size", [8191, 8192])
def test_scores_of_many_rows_have_the_bits_of_each(vocab_size: int, threads: int) -> None:
    """So many values are divided among threads, wherever the border falls."""
    text = torch.randint(vocab_size, (80,), generator=torch.Generator().manual_seed(1)).tolist()
    logits = torch.randn((48, vocab_size), generator=torch.Generator().manual_seed(2)) * 3
    request = request_for(**FILTERS["all"])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = sampling._scores(logits, text, 30, request)
        for i, count in ((0, 1), (3, 7), (20, 2), (17, 31), (47, 1)):
            some = sampling._scores(logits[i : i + count], text, 30 + i, request)
            assert torch.equal(some, together[i : i + count])
    finally:
        torch.set_num_threads(before)
